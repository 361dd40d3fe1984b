"""The convolution terms on the scores: written to them, and read off their gradient.

They come as columns (``fused`` derives them), near and later. Near the diagonal a few strides make them scores; beyond
it they are added to a triangle.

Legend: G = batch x heads matrices of scores, S sequence, d head size, R rows of scores, n reach, w = 2n-1 offsets near.
"""

from functools import lru_cache

import torch
from torch import Tensor

from bert_convolutions.attention.cpu.tiles import Tile, with_room


def band(scores: Tensor, first_row: int, near: int) -> Tensor:
    """The scores near the diagonal, (g, R, w): [.., i, r] is the pair of query i and the key at offset r - (n-1).

    A view by strides. Where the key is no position, it is some other element; no two of the view are the same one.

    Args:
        scores: (g, R, S), side by side in memory, with room for n-1 elements.
        first_row: the query of row 0.
        near: w.
    """
    matrices, rows, length = scores.shape
    offset = scores.storage_offset() + first_row - near // 2
    return scores.as_strided((matrices, rows, near), (rows * length, length + 1, 1), offset)


def seen_from_query(key_columns: Tensor, near: int) -> Tensor:
    """The same pairs as ``band``'s in the keys' columns (G, S, 2n), whose offsets are counted from the key.

    A view by strides: [.., i, r] is key i + r - (n-1), column w-1-r. It needs room for n-1 keys.
    """
    matrices, length, columns = key_columns.shape
    offset = key_columns.storage_offset() - near // 2 * columns + max(near - 1, 0)
    return key_columns.as_strided((matrices, length, near), (length * columns, columns, columns - 1), offset)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept for training too, which takes no inference tensors
def _inside(length: int, near: int, dtype: torch.dtype) -> Tensor:
    """(S, w): 1 where the position plus the offset is a position, else 0."""
    other = torch.arange(length).unsqueeze(1) + torch.arange(near) - near // 2
    return ((other >= 0) & (other < length)).to(dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _later(rows: int, dtype: torch.dtype) -> Tensor:
    """(R, R): 1 where the key is after the query, else 0."""
    return torch.ones(rows, rows, dtype=dtype).triu_(1)


class Bias:
    """The convolution terms of all scores, less what they are for earlier keys.

    Args:
        query_columns, key_columns: (G, S, 2n), the keys' with room for n-1 positions; one of them maybe None.
    """

    def __init__(self, query_columns: Tensor | None, key_columns: Tensor | None) -> None:
        near, self._later_query, self._later_key = [], None, None
        if query_columns is not None:
            self._later_query = query_columns[..., -1:]  # (G, S, 1)
            near.append(query_columns[..., :-1])
        if key_columns is not None:
            self._later_key = key_columns[..., -1].contiguous().unsqueeze(1)  # (G, 1, S)
            near.append(seen_from_query(key_columns, key_columns.shape[-1] - 1))
        self._near = near[0] if len(near) == 1 else near[0] + near[1]  # (G, S, w)

    def write(self, scores: Tensor, tile: Tile, mask: Tensor | None) -> None:
        """Write the bias and the mask.

        Args:
            scores: (g, R, S) of the tile, with room for n-1 elements.
            tile: which they are.
            mask: theirs, (b, 1 or h, R, S), or None.
        """
        write_mask(scores, mask)
        later = _later(scores.shape[1], scores.dtype)
        square = scores if tile.is_whole else scores[..., tile.rows]  # (g, R, R)
        after = slice(tile.rows.stop, None)
        if self._later_query is not None:
            later_query = tile.of_queries(self._later_query)
            square.addcmul_(later_query, later)
            if not tile.is_whole:
                scores[..., after].add_(later_query)
        if self._later_key is not None:
            later_key = tile.of_keys(self._later_key)
            square.addcmul_(later_key if tile.is_whole else later_key[..., tile.rows], later)
            if not tile.is_whole:
                scores[..., after].add_(later_key[..., after])
        near = self._near.shape[-1]
        inside = _inside(tile.length, near, scores.dtype)[tile.rows]
        band(scores, tile.rows.start, near).addcmul_(tile.of_queries(self._near), inside)


def write_mask(scores: Tensor, mask: Tensor | None) -> None:
    """Write a mask (b, 1 or h, R, S) to the scores (b*h, R, S); zeros without any."""
    if mask is None:
        scores.zero_()
    else:
        by_example = scores.unflatten(0, (mask.shape[0], -1))
        by_example.copy_(mask.expand_as(by_example))


class BiasGrad:
    """The gradients of ``Bias``'s columns, collected tile by tile.

    Args:
        like: (G, S, d), of the dtype.
        width: 2n+1.
        with_key: whether the keys' are wanted too.
    """

    def __init__(self, like: Tensor, width: int, with_key: bool) -> None:
        shape, self._near = like.shape[:2], max(width - 2, 0)
        self.query_columns = like.new_empty(*shape, self._near + 1)
        """The gradient of the queries' columns (G, S, 2n), complete after the last tile."""
        self._later_key = like.new_zeros(shape) if with_key else None

    def read(self, grad_scores: Tensor, tile: Tile, scratch: Tensor) -> None:
        """Take what a tile adds.

        Args:
            grad_scores: (g, R, S), with room for n-1 elements.
            tile: which they are.
            scratch: overwritten, (g, R, S).
        """
        columns = tile.of_queries(self.query_columns)
        inside = _inside(tile.length, self._near, grad_scores.dtype)[tile.rows]
        torch.mul(band(grad_scores, tile.rows.start, self._near), inside, out=columns[..., :-1])
        later, after = _later(grad_scores.shape[1], grad_scores.dtype), slice(tile.rows.stop, None)
        square = grad_scores if tile.is_whole else grad_scores[..., tile.rows]  # (g, R, R)
        triangle = torch.mul(square, later, out=scratch if tile.is_whole else scratch[..., tile.rows])
        torch.sum(triangle, -1, out=columns[..., -1])
        if not tile.is_whole:
            columns[..., -1] += grad_scores[..., after].sum(-1)
        if self._later_key is not None:
            later_key = tile.of_keys(self._later_key)
            later_key[..., tile.rows] += triangle.sum(-2)
            if not tile.is_whole:
                later_key[..., after] += grad_scores[..., after].sum(-2)

    def key_columns(self) -> Tensor:
        """The gradient of the keys' columns (G, S, 2n), after the last tile."""
        assert self._later_key is not None
        number, room = self._near + 1, self._near // 2
        columns = with_room(self.query_columns, self.query_columns.shape, room * number)
        if room:  # of the first and the last keys, what no query sees
            columns.view(-1, number)[:room].zero_()
            columns.view(-1, number)[-room:].zero_()
        seen_from_query(columns, self._near).copy_(self.query_columns[..., :-1])
        columns[..., -1] = self._later_key
        return columns
