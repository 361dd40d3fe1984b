"""What tests of several packages share: tiny models, their tokenizers, masks, and comparisons of folders."""

import itertools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from bert_convolutions import CompositeAttention
from bert_convolutions.attention.spec import SCORE_TERMS, parse_kernel
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.files import LOCK_NAME

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
"""Sizes that every encoder of ``transformers`` knows by these names."""
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TERM_SUBSETS = ["_".join(terms) for size in range(1, 5) for terms in itertools.combinations(SCORE_TERMS[:4], size)]
TERM_SUBSETS += ["convqhead", "qk_convkhead", "qk_convqhead_convkhead", "_".join(SCORE_TERMS)]
"""Every subset of the paper's four score terms, and some with a kernel for each head."""


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder but its lock, by relative path."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK_NAME]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the model that is saved in a folder."""
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold models that are equal bit for bit."""
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def random_attention(kernel: str, hidden_size: int = 16, heads: int = 2, **options: Any) -> CompositeAttention:
    """Composite attention with random weights also in the terms that are initially zero."""
    module = CompositeAttention(hidden_size, heads, parse_kernel(kernel), **options)
    for name, parameter in module.named_parameters():
        if name.endswith(("_param", "_scalar")):
            nn.init.normal_(parameter)
    return module.eval()


def packed_mask(*lengths: int, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """An attention mask (1, S) of a row with examples of these lengths, with padding before and after."""
    numbers = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths, start=1)])
    return nn.functional.pad(numbers, padding).unsqueeze(0)


def trained_tokenizer(folder: Path, text: str, vocab_size: int) -> Path:
    """Train a tokenizer of ours on a text, which is written to ``folder`` too, and return its folder."""
    (folder / "text.txt").write_text(text)
    return train_tokenizer(TrainTokenizerOptions([str(folder / "text.txt")], str(folder / "tokenizer"), vocab_size))


def fast_tokenizer(
    kind: type[models.WordLevel | models.WordPiece], before: pre_tokenizers.PreTokenizer, words: list[str]
) -> PreTrainedTokenizerFast:
    """A fast tokenizer of Hugging Face with BERT's special tokens and some words as its vocabulary."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *words])}
    backend = Tokenizer(kind(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = before
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    )
