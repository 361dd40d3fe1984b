"""A tiny tokenizer, and random models that use it."""

from pathlib import Path

import pytest
from transformers import set_seed

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from tests.helpers import TINY, trained_tokenizer

TEXT = """the cat sleeps on the warm mat .
the cats sleep on the warm mats .
a dog barks at the small cat , loudly .
dogs bark at small cats and at unbelievable neighbours .
who sees the dog that sees the cat ?
nobody has ever seen an unbelievably warm dog .
"""


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEXT * 20, vocab_size=45)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> CompositeBertTokenizer:
    return CompositeBertTokenizer(tokenizer_dir / "spm.model")


def composite(tokenizer: CompositeBertTokenizer, **options: object) -> CompositeBertForMaskedLM:
    """A random model whose scores are far from uniform."""
    set_seed(1)
    config = CompositeBertConfig(
        vocab_size=len(tokenizer),
        embedding_size=8,
        **TINY,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        **options,  # type: ignore[arg-type]
    )
    return CompositeBertForMaskedLM(config).eval()


@pytest.fixture(scope="session")
def model_dir(tokenizer: CompositeBertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    composite(tokenizer, attention_kernel="qk_convfixed_convq_convk 3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
