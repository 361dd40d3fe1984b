"""Random models of several architectures, and a tokenizer for them."""

from pathlib import Path

import pytest
import torch

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForSequenceClassification
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.model.loading import set_max_length
from tests.helpers import trained_tokenizer

TEXT = "In 1,900 the cat sleeps on the warm mats .\nA dog barked, loudly, at 20, 30, or 40 unbelievable neighbours .\n"
SIZES = {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "composite": {"attention_kernel": "qk_convfixed_convq_convk 3"},
    "convolved": {"value_forward": "convolution_depth 3 1", "qk": "convolution_mixed 2 2"},
    "spans": {"attention_kernel": "qk_convspan 2", "attention_head_size": 4},
    "positionless": {"attention_kernel": "convfixed_convolution_scaled 2", "remove_position_embeddings": True},
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CompositeBertTokenizer:
    loaded = load_tokenizer(trained_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEXT * 20, vocab_size=38))
    assert isinstance(loaded, CompositeBertTokenizer)
    return loaded


@pytest.fixture(scope="session")
def folders(tokenizer: CompositeBertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of saved models, one a classifier of one layer, each with the tokenizer."""
    torch.manual_seed(0)
    parent, found = tmp_path_factory.mktemp("models"), {}
    for name, options in (*MODELS.items(), ("classifier", {**MODELS["composite"], "num_hidden_layers": 1})):
        model_class = CompositeBertForSequenceClassification if name == "classifier" else CompositeBertForMaskedLM
        config = CompositeBertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
            **{**SIZES, **options},
        )
        found[name] = parent / name
        model_class(config).save_pretrained(found[name])
        set_max_length(config, tokenizer).save_pretrained(found[name])
    return found
