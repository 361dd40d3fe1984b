"""Laying out the examples of a step in as few rows as hold them.

Best fit, longest first. Its bound is that of first fit, longest first: at most 11/9 of the fewest rows possible plus a
constant (Johnson, "Near-optimal bin packing algorithms", 1973; for first fit the constant is 6/9 by Dosa, 2007). In
practice it is one row more than the fewest, or none. The layout changes no number of the model: an example attends to
itself alone wherever it stands.

Legend: R rows, S row length, X examples, T their tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Place(NamedTuple):
    """Where an example stands: its row and the column of its first token."""

    row: int
    column: int


def pack(lengths: Sequence[int], row_length: int) -> tuple[list[Place], int]:
    """Place examples of ``lengths`` tokens, each from 1 to ``row_length``, in rows of so many slots.

    Returns:
        A place for each example, in the order given, and the number of rows.

    Raises:
        ValueError: for an example longer than a row.
    """
    if len(lengths) and max(lengths) > row_length:
        raise ValueError(f"an example of {max(lengths)} tokens doesn't fit a row of {row_length}")
    places = [Place(0, 0)] * len(lengths)
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
        places[example] = Place(row, row_length - slots)
        insort(free, (slots - length, row))
    return places, rows


def one_per_row(lengths: Sequence[int]) -> tuple[list[Place], int]:
    """The padded layout: each example in a row of its own."""
    return [Place(row, 0) for row in range(len(lengths))], len(lengths)


def positions_within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position (T,) of each token in its example, from 0, for examples of ``lengths`` (X,) one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


@dataclass(frozen=True)
class Rows:
    """The tokens of X examples, one example after the other, laid out in rows. All arrays are int64.

    Attributes:
        shape: (R, S).
        lengths: (X,) tokens of each example.
        starts: (X,) slot of the first token of each, counted through all rows.
        numbers: (X,) which one of its row each is from the left, counted from 1.
        positions: (T,) of each token in its example, from 0.
        slots: (T,) where each token stands, counted through all rows.
    """

    shape: tuple[int, int]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], row_length: int, *, packed: bool = True, row_bucket: int = 1) -> "Rows":
        """Place examples of ``lengths`` (X,) in rows of ``row_length`` S, whose number is a multiple of ``row_bucket``.

        A row has several examples, or one where they are not ``packed``.

        Raises:
            ValueError: for an example longer than a row.
        """
        places, rows = pack(lengths.tolist(), row_length) if packed else one_per_row(lengths.tolist())
        row, column = np.array(places, dtype=np.int64).reshape(-1, 2).T
        starts = row * row_length + column
        order = np.argsort(starts)
        numbers = np.empty_like(row)
        numbers[order] = np.arange(1, len(row) + 1) - np.searchsorted(row[order], row[order])
        positions = positions_within(lengths)
        shape = -(-rows // row_bucket) * row_bucket, row_length
        return cls(shape, lengths, starts, numbers, positions, np.repeat(starts, lengths) + positions)

    def lay_out(self, values: NDArray[np.integer], padding: int = 0) -> NDArray[np.int64]:
        """A value for each token (T,), in its place among ``padding``: (R, S)."""
        laid_out = np.full(self.shape, padding, dtype=np.int64)
        laid_out.reshape(-1)[self.slots] = values
        return laid_out

    def attention_mask(self) -> NDArray[np.int64]:
        """(R, S): 0 for padding and k for the tokens of the k-th example of a row."""
        return self.lay_out(np.repeat(self.numbers, self.lengths))


def token_budget_batches(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cut examples of ``lengths`` (N,) into batches that padded to their longest hold at most ``budget`` tokens.

    For predictions, whose batches may be any. The largest comes first, so that too little memory shows at once. An
    example longer than the budget is alone. Returns the indices of each batch's examples.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches
