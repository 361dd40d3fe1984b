"""Packing the examples of a step into few rows.

The algorithm is best-fit decreasing. Like first-fit decreasing, it needs at most 11/9 of the minimum number of rows
plus a constant (Johnson, "Near-optimal bin packing algorithms", 1973; for first fit the constant is 6/9 by Dosa, 2007);
in practice at most one more than the minimum. Packing does not change the model's outputs: an example attends only to
itself, wherever it is placed.

Legend: R rows, S row length, X examples, T total number of tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Placement(NamedTuple):
    """The row of an example and the column of its first token."""

    row: int
    column: int


def pack(lengths: Sequence[int], row_length: int) -> tuple[list[Placement], int]:
    """Pack examples of ``lengths`` tokens, each from 1 to ``row_length``, into rows of ``row_length`` slots.

    Returns:
        The placement of each example, in the order of ``lengths``, and the number of rows.

    Raises:
        ValueError: an example is longer than a row.
    """
    if len(lengths) and max(lengths) > row_length:
        raise ValueError(f"an example of {max(lengths)} tokens doesn't fit a row of {row_length}")
    placements = [Placement(0, 0)] * len(lengths)
    free: list[tuple[int, int]] = []  # (free slots, row), sorted
    rows = 0
    for example in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[example]
        fit = bisect_left(free, (length, 0))
        if fit < len(free):
            slots, row = free.pop(fit)
        else:
            slots, row = row_length, rows
            rows += 1
        placements[example] = Placement(row, row_length - slots)
        insort(free, (slots - length, row))
    return placements, rows


def one_per_row(lengths: Sequence[int]) -> tuple[list[Placement], int]:
    """The padded layout: one example per row."""
    return [Placement(row, 0) for row in range(len(lengths))], len(lengths)


def positions_within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position (T,) of each token in its example, from 0, for concatenated examples of ``lengths`` (X,)."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


@dataclass(frozen=True)
class Rows:
    """The layout of X concatenated examples in rows. All arrays are int64.

    Attributes:
        shape: (R, S).
        lengths: (X,) tokens of each example.
        starts: (X,) index of each example's first token in the flattened rows.
        numbers: (X,) number of each example in its row, from 1.
        positions: (T,) position of each token in its example, from 0.
        slots: (T,) index of each token in the flattened rows.
    """

    shape: tuple[int, int]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], row_length: int, *, packed: bool = True, row_bucket: int = 1) -> "Rows":
        """Place examples of ``lengths`` (X,) in rows of ``row_length`` S, one per row unless ``packed``.

        The number of rows is a multiple of ``row_bucket``.

        Raises:
            ValueError: an example is longer than a row.
        """
        placements, rows = pack(lengths.tolist(), row_length) if packed else one_per_row(lengths.tolist())
        row, column = np.array(placements, dtype=np.int64).reshape(-1, 2).T
        starts = row * row_length + column
        order = np.argsort(starts)
        numbers = np.empty_like(row)
        numbers[order] = np.arange(1, len(row) + 1) - np.searchsorted(row[order], row[order])
        positions = positions_within(lengths)
        shape = -(-rows // row_bucket) * row_bucket, row_length
        return cls(shape, lengths, starts, numbers, positions, np.repeat(starts, lengths) + positions)

    def lay_out(self, values: NDArray[np.integer], padding: int = 0) -> NDArray[np.int64]:
        """Scatter one value per token (T,) into rows (R, S) filled with ``padding``."""
        laid_out = np.full(self.shape, padding, dtype=np.int64)
        laid_out.reshape(-1)[self.slots] = values
        return laid_out

    def attention_mask(self) -> NDArray[np.int64]:
        """(R, S): 0 for padding, k for the tokens of the k-th example of a row."""
        return self.lay_out(np.repeat(self.numbers, self.lengths))


def token_budget_batches(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Group examples of ``lengths`` (N,) into batches of at most ``budget`` tokens, padding to the longest included.

    For prediction, where the order doesn't matter. The longest examples come first, so that a lack of memory shows at
    once. An example longer than the budget is a batch of its own. Returns the indices of each batch's examples.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches
