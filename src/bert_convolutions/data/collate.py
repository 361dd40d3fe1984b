"""Collates samples into a batch for the model: truncates, swaps sentences, masks and packs into rows.

Legend: R rows, S row length, M masked positions (padded to a bucket), X examples.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from bert_convolutions.data.masking import IGNORED, Masking
from bert_convolutions.data.packing import Rows


class Feature(TypedDict):
    """One sample for the collator."""

    epoch: int
    sample: int
    input_ids: NDArray[np.integer]


@dataclass(frozen=True)
class PretrainingCollator:
    """Makes a batch of samples, a pure function of their features.

    Attributes:
        masking: chooses the tokens to predict.
        cls_id, sep_id, pad_id: ids of special tokens.
        block_size: S; longer samples are truncated to their first tokens, as in the original.
        pack: pack several examples into a row; otherwise each has a row, padded to ``block_size``.
        sentence_order: swap the sentences of half of the samples and set ``next_sentence_label``.
        row_bucket, position_bucket: the numbers of rows and masked positions are padded to multiples of these, so that
            few shapes occur; 1 for no padding.
    """

    masking: Masking
    cls_id: int
    sep_id: int
    pad_id: int
    block_size: int = 128
    pack: bool = True
    sentence_order: bool = False
    row_bucket: int = 1
    position_bucket: int = 64

    def __call__(self, features: list[Feature]) -> dict[str, Any]:
        """Collate samples.

        Returns:
            ``input_ids``, ``attention_mask`` (0 for padding, k for the k-th example of the row) and ``position_ids``,
            all (R, S) int64; ``masked_positions`` and ``labels`` (M,), with label -100 for padding; ``sample_ids``
            (X,); ``num_real_tokens`` (); ``examples_per_row``, an int, the maximum over the rows; with
            ``sentence_order`` also ``example_starts`` and ``next_sentence_label`` (X,).
        """
        samples = np.array([feature["sample"] for feature in features], dtype=np.int64)
        epochs = np.array([feature["epoch"] for feature in features], dtype=np.int64)
        swapped = self.masking.swaps(epochs, samples) if self.sentence_order else np.zeros(len(samples), dtype=bool)
        ids, lengths = self._truncated([feature["input_ids"] for feature in features], swapped)
        masked, labels = self.masking(ids, epochs, samples, lengths=lengths)

        rows = Rows.of(lengths, self.block_size, packed=self.pack, row_bucket=self.row_bucket)
        batch = {
            "input_ids": rows.lay_out(masked, self.pad_id),
            "attention_mask": rows.attention_mask(),
            "position_ids": rows.lay_out(rows.positions),
        }
        chosen = np.flatnonzero(labels != IGNORED)
        chosen = chosen[np.argsort(rows.slots[chosen])]
        padding = max(1, -(-len(chosen) // self.position_bucket)) * self.position_bucket - len(chosen)
        batch["masked_positions"] = np.pad(rows.slots[chosen], (0, padding))
        batch["labels"] = np.pad(labels[chosen], (0, padding), constant_values=IGNORED)
        batch["sample_ids"], batch["num_real_tokens"] = samples, np.array(len(ids))
        if self.sentence_order:
            batch["example_starts"], batch["next_sentence_label"] = rows.starts, swapped.astype(np.int64)
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        return {**tensors, "examples_per_row": int(rows.numbers.max(initial=1))}

    def _truncated(
        self, examples: list[NDArray[np.integer]], swapped: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of all examples, concatenated and truncated to ``block_size``, and the length of each.

        A swapped ``[CLS] a [SEP] b [SEP]`` becomes ``[CLS] b [SEP] a [SEP]`` before it is truncated.
        """
        for index in np.flatnonzero(swapped):
            ids = examples[index]
            middle = int(np.argmax(ids == self.sep_id)) + 1
            examples[index] = np.concatenate([ids[:1], ids[middle:], ids[1:middle]])
        lengths = np.array([min(len(ids), self.block_size) for ids in examples], dtype=np.int64)
        return np.concatenate([ids[: self.block_size] for ids in examples]).astype(np.int64, copy=False), lengths
