"""Laying out the examples of a step in as few rows as hold them.

Best fit, longest first: at most 11/9 of the fewest rows possible plus one, and in practice one row more than none
(Johnson, 1973). The layout changes no number of the model: an example attends to itself alone wherever it stands.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where an example stands: its row and the column of its first token."""

    row: int
    column: int


def pack(lengths: list[int], row_length: int) -> tuple[list[Place], int]:
    """Place examples in rows.

    Args:
        lengths: tokens of each example, each from 1 to ``row_length``.
        row_length: S.

    Returns:
        A place for each example, in the order given, and the number of rows.

    Raises:
        ValueError: for an example longer than a row.
    """
    if lengths and max(lengths) > row_length:
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


def one_per_row(lengths: list[int]) -> tuple[list[Place], int]:
    """The padded layout: each example in a row of its own."""
    return [Place(row, 0) for row in range(len(lengths))], len(lengths)
