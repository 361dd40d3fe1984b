"""Working on a few matrices of scores at a time, so that they stay in the cache from the first product to the last.

Legend: G = batch x heads matrices of scores, S sequence; g, R the same of a tile, where rows take the place of S.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

SCORES_AT_ONCE = 2**19
"""2 MiB in float32: about what the second-level caches of two cores hold. Half or twice as many are slower."""


@dataclass(frozen=True)
class Tile:
    """A part of the scores (G, S, S) that is worked on at a time: some whole matrices, or rows of one.

    Attributes:
        examples, matrices, rows: which they are. Of several examples, all matrices; of a matrix in parts, only that.
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
        """Whether all rows are in it."""
        return self.rows.start == 0 and self.rows.stop == self.length

    def of_queries(self, tensor: Tensor) -> Tensor:
        """The part of (G, S, ..) that belongs to its queries."""
        return tensor[self.matrices] if self.is_whole else tensor[self.matrices, self.rows]

    def of_keys(self, tensor: Tensor) -> Tensor:
        """The part of (G, ..) that belongs to its keys."""
        return tensor[self.matrices]


def with_room(like: Tensor, shape: tuple[int, ...], room: int) -> Tensor:
    """An uninitialised tensor of ``shape`` with ``room`` zeros before and after it in memory.

    Views by strides read and write there, where an offset leads out of the sequence.
    """
    if not room:
        return like.new_empty(shape)
    size = prod(shape)
    room = -(-room // 16) * 16  # keeps the tensor as well aligned as memory comes
    flat = like.new_empty(size + 2 * room)
    flat[:room].zero_()
    flat[room + size :].zero_()
    return flat[room : room + size].view(shape)


def tiles(batch: int, heads: int, length: int) -> Iterator[Tile]:
    """Whole examples, or matrices of one, or rows of a single matrix: about ``SCORES_AT_ONCE``."""
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
    """A buffer with room around it, for one tile after the other; the first is the largest."""

    def __init__(self, like: Tensor, room: int = 0) -> None:
        self._like, self._room = like, room
        self._buffer: Tensor | None = None

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised, of ``shape``; what it held is given up."""
        if self._buffer is None:
            self._buffer = with_room(self._like, shape, self._room)
        if self._buffer.shape == shape:
            return self._buffer
        return self._buffer.view(-1)[: prod(shape)].view(shape)
