"""What the dataset builder needs of a tokenizer, whichever it is."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bert_convolutions.data.pieces import PieceTokenizer, find_model_file, flatten


class Encoder(Protocol):
    """Sentences to ids, and the special ids around them."""

    cls_id: int
    sep_id: int

    @property
    def hash(self) -> str:
        """The sha256 that identifies vocabulary and rules."""

    def __len__(self) -> int:
        """The size of the vocabulary, special tokens included."""

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts in one int32 array, and the number of ids of each text (int64)."""


class HuggingFaceEncoder:
    """Any Hugging Face tokenizer; needs ``transformers``, so more memory than ``PieceTokenizer``."""

    def __init__(self, path: str | Path) -> None:
        from bert_convolutions.data.tokenizer import load_tokenizer

        self._tokenizer: Any = load_tokenizer(path)
        self.cls_id: int = self._tokenizer.cls_token_id
        self.sep_id: int = self._tokenizer.sep_token_id

    @functools.cached_property
    def hash(self) -> str:
        """The sha256 that identifies vocabulary and rules."""
        from bert_convolutions.data.tokenizer import tokenizer_hash

        return tokenizer_hash(self._tokenizer)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts in one int32 array, and the number of ids of each text (int64)."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return flatten(encoded)


def open_encoder(path: str | Path) -> Encoder:
    """Open a bare ``spm.model``, a directory with one, or the directory of any Hugging Face tokenizer.

    Raises:
        UsageError: nothing is there, or it is no tokenizer.
    """
    model_file = find_model_file(path)
    return PieceTokenizer(model_file) if model_file is not None else HuggingFaceEncoder(path)
