"""Tiles of a few matrices of scores each, which stay in the cache from the first product to the last.

Legend: G = batch x heads matrices of scores, S sequence; a tile has g matrices and R rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

SCORES_AT_ONCE = 2**20
"""Scores per tile: 4 MiB in float32. With half as many, attention takes up to 7 % longer on two cores of an EPYC."""


@dataclass(frozen=True)
class Tile:
    """A part of the scores (G, S, S) that is processed at once: some whole matrices, or rows of one.

    Attributes:
        examples, matrices, rows: slices of B, G and S. Several examples come with all their matrices, rows with one.
        length: S.
    """

    examples: slice
    matrices: slice
    rows: slice
    length: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(g, R, S)."""
        return self.matrices.stop - self.matrices.start, self.rows.stop - self.rows.start, self.length

    @property
    def is_whole(self) -> bool:
        """Whether it contains all rows of its matrices."""
        return self.rows.start == 0 and self.rows.stop == self.length

    def of_queries(self, tensor: Tensor) -> Tensor:
        """Select this tile's queries from (G, S, ..)."""
        return tensor[self.matrices] if self.is_whole else tensor[self.matrices, self.rows]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """Select this tile's keys from (G, ..)."""
        return tensor[self.matrices]


def empty_with_margin(like: Tensor, shape: tuple[int, ...], margin: int) -> Tensor:
    """An uninitialised tensor of ``shape`` with at least ``margin`` elements before and after it in memory.

    Strided views include these elements where an offset leads out of the sequence.
    """
    size = prod(shape)
    margin = -(-margin // 16) * 16  # keeps the alignment of the allocation
    return like.new_empty(size + 2 * margin)[margin : margin + size].view(shape)


def tiles(batch: int, heads: int, length: int) -> Iterator[Tile]:
    """Yield tiles of about ``SCORES_AT_ONCE``: whole examples, or matrices of one, or rows of one matrix."""
    number = max(1, round(batch * heads * length**2 / SCORES_AT_ONCE))
    examples_at_once = -(-batch // number)
    heads_at_once = min(heads, max(1, SCORES_AT_ONCE // length**2))
    rows_at_once = min(length, max(1, SCORES_AT_ONCE // length))
    for example in range(0, batch, examples_at_once):
        examples = slice(example, min(example + examples_at_once, batch))
        for head in range(0, heads, heads_at_once):
            last = heads * (examples.stop - 1) + min(head + heads_at_once, heads)
            for row in range(0, length, rows_at_once):
                rows = slice(row, min(row + rows_at_once, length))
                yield Tile(examples, slice(heads * example + head, last), rows, length)


class Scratch:
    """A buffer with a margin, reused for one tile after another; the first tile is the largest."""

    def __init__(self, like: Tensor, margin: int = 0) -> None:
        self._like, self._margin = like, margin
        self._buffer: Tensor | None = None

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """The buffer as an uninitialised tensor of ``shape``; the previous content is lost."""
        if self._buffer is None:
            self._buffer = empty_with_margin(self._like, shape, self._margin)
        if self._buffer.shape == shape:
            return self._buffer
        return self._buffer.view(-1)[: prod(shape)].view(shape)
