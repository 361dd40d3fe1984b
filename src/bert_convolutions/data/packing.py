"""Laying out the examples of a step in as few rows as hold them.

Best fit, longest first. Its bound is that of first fit, longest first: at most 11/9 of the fewest rows possible plus a
constant (Johnson, "Near-optimal bin packing algorithms", 1973; for first fit the constant is 6/9 by Dosa, 2007). In
practice it is one row more than the fewest, or none. The layout changes no number of the model: an example attends to
itself alone wherever it stands.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Where an example stands: its row and the column of its first token."""

    row: int
    column: int


def pack(lengths: Sequence[int], row_length: int) -> tuple[list[Place], int]:
    """Place examples in rows.

    Args:
        lengths: tokens of each example, each from 1 to ``row_length``.
        row_length: S.

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
