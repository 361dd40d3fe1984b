"""What is loaded from a folder must be what its configuration says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertTokenizer

from bert_convolutions import (
    CompositeBertConfig,
    CompositeBertForMaskedLM,
    CompositeBertForPreTraining,
    CompositeBertModel,
)
from bert_convolutions.errors import UsageError
from bert_convolutions.model.loading import load_strictly, set_max_length

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
KERNEL = {"attention_kernel": "qk_convfixed_convq 3"}


@pytest.fixture(params=[CompositeBertForMaskedLM, CompositeBertModel])
def folder(request, tmp_path):
    request.param(CompositeBertConfig(**SIZES, **KERNEL)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 3}, r"lacks bert.encoder.layer.2.* more"),
        ({"num_hidden_layers": 1}, r"configuration lacks: .*encoder.layer.1.* more"),
        ({"attention_kernel": "qk_convfixed 3"}, "configuration lacks: .*convq_param and 1 more"),
        ({"attention_kernel": "qk_convfixed_convq_convk 3"}, "lacks bert.*convk_param and 1 more"),
        ({"attention_kernel": "qk_convfixed_convq 4"}, r"convfixed_param has shape \(1, 4, 1, 7\), .*\(1, 4, 1, 9\)"),
        ({"remove_position_embeddings": True}, "configuration lacks: .*position_embeddings"),
    ],
)
@pytest.mark.parametrize("model_class", [CompositeBertForMaskedLM, AutoModelForSequenceClassification])
def test_weights_of_another_configuration_are_refused_by_name(folder, change, named, model_class):
    config = CompositeBertConfig(**{**SIZES, **KERNEL, **change})
    with pytest.raises(UsageError, match=named):
        load_strictly(model_class, folder, config, new_head=True)


def test_a_head_may_be_missing_only_where_that_is_allowed(folder, capfd, monkeypatch):
    config = CompositeBertConfig(**SIZES, **KERNEL)
    for model_class in (CompositeBertForPreTraining, AutoModelForSequenceClassification):
        assert load_strictly(model_class, folder, config, new_head=True)
        told = capfd.readouterr().err
        assert ("which start at random values" in told) == (model_class is CompositeBertForPreTraining)
        assert told.count("\n") <= 1  # not transformers' report, which calls such a folder corrupted
        with pytest.raises(UsageError, match=r"lacks bert.pooler|lacks classifier|lacks cls"):
            load_strictly(model_class, folder, config)
    monkeypatch.setenv("RANK", "1")
    assert load_strictly(CompositeBertForPreTraining, folder, config, new_head=True)
    assert not capfd.readouterr().err


def test_position_ids_in_old_checkpoints_are_ignored(folder):
    """As in Longformer's; for most models ``transformers`` itself ignores them."""
    held = load_file(folder / "model.safetensors")
    save_file({**held, "bert.embeddings.position_ids": torch.arange(512)[None]}, folder / "model.safetensors")
    assert load_strictly(
        AutoModelForSequenceClassification, folder, CompositeBertConfig(**SIZES, **KERNEL), new_head=True
    )


def test_damaged_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="can't be loaded"):
        load_strictly(CompositeBertModel, folder, CompositeBertConfig(**SIZES, **KERNEL))
    assert json.loads((folder / "config.json").read_text())["attention_kernel"] == KERNEL["attention_kernel"]


@pytest.mark.parametrize("positions", [True, False])
def test_a_tokenizer_saved_beside_a_model_truncates_to_its_positions(folder, tmp_path, positions):
    tokenizer = BertTokenizer(vocab={token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])})
    config = CompositeBertConfig(**SIZES, max_position_embeddings=9, remove_position_embeddings=not positions)
    set_max_length(config, tokenizer).save_pretrained(tmp_path / "saved")
    loaded = BertTokenizer.from_pretrained(tmp_path / "saved")
    assert len(loaded("a " * 20, truncation=True)["input_ids"]) == (9 if positions else 22)
    other = BertConfig(max_position_embeddings=7)
    assert set_max_length(other, loaded).model_max_length == loaded.model_max_length
