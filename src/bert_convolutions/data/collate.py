"""From samples to the batch that the model takes: truncated, sentence order swapped, masked, laid out in rows.

Legend: R rows, S row length, M masked positions (padded to a bucket), X examples.
"""

from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_convolutions.data.masking import IGNORED, Masking
from bert_convolutions.data.packing import one_per_row, pack


class Examples(Protocol):
    """Anything that gives token ids ``[CLS] a [SEP] b [SEP]`` by index, such as ``data.store``."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> NDArray[np.integer]:
        """Token ids (S,) of an example, un-truncated."""
        ...


class Feature(TypedDict):
    """One sample on its way into a batch."""

    epoch: int
    sample: int
    input_ids: NDArray[np.integer]


@dataclass(frozen=True)
class PretrainingCollator:
    """Makes a batch; a pure function of the keys and ids of its samples.

    Attributes:
        masking: which tokens are to be predicted.
        cls_id, sep_id, pad_id: ids of special tokens.
        block_size: S, at most; longer samples are truncated as the original does, to their first tokens.
        pack: several examples in a row; else one, padded to ``block_size``.
        sentence_order: swap the sentences of half of the samples, and say so in ``next_sentence_label``.
        row_bucket, position_bucket: rows and masked positions are padded to multiples of these, so that a compiled
            model sees few shapes; 1 for none.
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

    def __call__(self, features: list[Feature]) -> dict[str, Tensor]:
        """Lay out samples.

        Returns:
            ``input_ids``, ``attention_mask`` (0 padding, k the k-th example of the row) and ``position_ids``, all
            (R, S) int64; ``masked_positions`` and ``labels`` (M,), -100 where the bucket is filled up; ``sample_ids``
            (X,); ``num_real_tokens`` (); with sentence order ``example_starts`` and ``next_sentence_label`` (X,).
        """
        prepared = [self._prepare(feature) for feature in features]
        lengths = [len(ids) for ids, _, _ in prepared]
        places, rows = pack(lengths, self.block_size) if self.pack else one_per_row(lengths)
        rows = -(-rows // self.row_bucket) * self.row_bucket
        shape = (rows, self.block_size)
        input_ids = np.full(shape, self.pad_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        examples = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        in_row = [0] * rows
        for place, (ids, targets, _) in sorted(zip(places, prepared, strict=True), key=lambda pair: pair[0].column):
            in_row[place.row] += 1
            span = slice(place.column, place.column + len(ids))
            input_ids[place.row, span] = ids
            labels[place.row, span] = targets
            examples[place.row, span] = in_row[place.row]
            positions[place.row, span] = np.arange(len(ids))
        batch = {"input_ids": input_ids, "attention_mask": examples, "position_ids": positions}
        batch["masked_positions"], batch["labels"] = self._masked(labels.ravel())
        batch["sample_ids"] = np.array([feature["sample"] for feature in features], dtype=np.int64)
        batch["num_real_tokens"] = np.array(sum(lengths), dtype=np.int64)
        if self.sentence_order:
            batch["example_starts"] = np.array([place.row * self.block_size + place.column for place in places])
            batch["next_sentence_label"] = np.array([int(swapped) for _, _, swapped in prepared])
        return {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()}

    def _prepare(self, feature: Feature) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
        ids = np.asarray(feature["input_ids"], dtype=np.int64)
        epoch, sample = feature["epoch"], feature["sample"]
        swapped = self.sentence_order and self.masking.swaps(epoch, sample)
        if swapped:
            ids = self._swap(ids)
        ids, labels = self.masking(ids[: self.block_size], epoch, sample)
        return ids, labels, swapped

    def _swap(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[CLS] a [SEP] b [SEP]`` -> ``[CLS] b [SEP] a [SEP]``."""
        first_end = int(np.argmax(ids == self.sep_id))
        a, b = ids[1 : first_end + 1], ids[first_end + 1 :]
        return np.concatenate([ids[:1], b, a])

    def _masked(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Flat positions with a label, and the labels, filled up to a multiple of the bucket."""
        positions = np.flatnonzero(labels != IGNORED)
        size = max(1, -(-len(positions) // self.position_bucket)) * self.position_bucket
        filled = np.zeros(size, dtype=np.int64)
        filled[: len(positions)] = positions
        targets = np.full(size, IGNORED, dtype=np.int64)
        targets[: len(positions)] = labels[positions]
        return filled, targets
