"""Texts as token ids, held in flat arrays: a task is tokenised once and shared by all its rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from bert_convolutions.glue.reading import Examples

TEXTS_PER_CALL = 10_000
"""Texts handed to the tokenizer at once: enough to use its threads, few enough to hold its Python lists."""


@dataclass(frozen=True)
class EncodedExamples(Dataset[dict[str, Any]]):
    """Tokenised, truncated, un-padded examples. Item i is what a padding collator takes.

    Attributes:
        columns: name (``input_ids``, ``token_type_ids`` where the tokenizer makes them) to all examples' values one
            after the other, int32.
        offsets: (N + 1,) int64; example i is ``offsets[i]:offsets[i + 1]``.
        labels: (N,) int64 label ids or float32 scores; None for a test file.
    """

    columns: dict[str, np.ndarray]
    offsets: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        item: dict[str, Any] = {name: values[start:end].tolist() for name, values in self.columns.items()}
        if self.labels is not None:
            item["labels"] = self.labels[index].item()
        return item

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each example."""
        return np.diff(self.offsets)


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_length: int) -> EncodedExamples:
    """Tokenise examples as ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``, the longer text cut first.

    Args:
        tokenizer: any tokenizer of ``transformers``.
        examples: as read.
        max_seq_length: most tokens of an example, special tokens included.
    """
    parts: dict[str, list[np.ndarray]] = {}
    lengths: list[np.ndarray] = []
    for start in range(0, len(examples), TEXTS_PER_CALL):
        texts = [column[start : start + TEXTS_PER_CALL] for column in examples.texts]
        batch = tokenizer(*texts, truncation="longest_first", max_length=max_seq_length, return_attention_mask=False)
        lengths.append(np.array([len(ids) for ids in batch["input_ids"]], dtype=np.int64))
        for name, values in batch.items():
            parts.setdefault(name, []).append(_flatten(values))
    return EncodedExamples(
        columns={name: np.concatenate(arrays) for name, arrays in parts.items()},
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        labels=_label_array(examples),
    )


def _flatten(values: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter((value for row in values for value in row), dtype=np.int32)


def _label_array(examples: Examples) -> np.ndarray | None:
    if examples.labels is None:
        return None
    whole = all(isinstance(label, int) for label in examples.labels)
    return np.array(examples.labels, dtype=np.int64 if whole else np.float32)
