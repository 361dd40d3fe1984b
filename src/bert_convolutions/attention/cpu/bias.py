"""Adds the convolution terms to tiles of scores, and collects their gradients from the gradients of the scores.

The terms are given as ``near`` and ``later`` columns (derived in ``fused``). The ``later`` weights are written to all
scores, and all but the triangle of distant later keys is then zeroed by a bitwise AND, fast in every dtype. The
elements near the diagonal are copied: arithmetic on strides or with broadcast bfloat16 is several times slower.

Legend: G = batch x heads matrices of scores, S sequence, d head size, R rows of scores, n reach.
"""

from functools import lru_cache

import torch
from torch import Tensor

from bert_convolutions.attention.cpu.tiles import Tile, empty_with_margin

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype of the same width, by the bytes of a floating-point dtype."""


def band(scores: Tensor, first_row: int, columns: int) -> Tensor:
    """The scores near the diagonal, (g, R, 2n): [.., i, r] is the pair of query i and the key at offset r - (n-1).

    This is a strided view. Where that key is outside of the sequence, the element is another one: in the last rows one
    of the next matrix's first rows, and vice versa. The last column, offset n, only serves alignment.

    Args:
        scores: (g, R, S), contiguous, with a margin of n elements.
        first_row: the query position of row 0.
        columns: 2n, or 1 if n is 0.
    """
    matrices, rows, length = scores.shape
    offset = scores.storage_offset() + first_row - (columns - 1) // 2
    return scores.as_strided((matrices, rows, columns), (rows * length, length + 1, 1), offset)


def band_of_keys(key_columns: Tensor) -> Tensor:
    """The weights of the pairs in ``band`` from the keys' columns (G, S, 2n), by query and offset.

    This is a strided view: [.., i, r] is column r of key i + r - (n-1). It needs a margin of n keys.
    """
    matrices, length, columns = key_columns.shape
    offset = key_columns.storage_offset() - (columns - 1) // 2 * columns
    return key_columns.as_strided((matrices, length, columns), (length * columns, columns, columns + 1), offset)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # cached for training too, which can't use inference tensors
def _outside(length: int, columns: int) -> Tensor:
    """(S, 2n): whether position plus offset lies outside of the sequence."""
    positions = torch.arange(length, device="cpu").unsqueeze(1)
    other = positions + torch.arange(columns, device="cpu") - (columns - 1) // 2
    return (other < 0) | (other >= length)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _later_bits(rows: int, columns: int, reach: int, dtype: torch.dtype) -> Tensor:
    """(R, C): all bits set where the key is n or more, and at least 1, after the query; else none."""
    return torch.full((rows, columns), -1, dtype=_BITS[dtype.itemsize], device="cpu").triu_(max(reach, 1))


def _keep_later(scores: Tensor, reach: int, out: Tensor) -> Tensor:
    """Write scores (g, R, C) to ``out``, with zeros where the key is not n or more after the query."""
    bits = _later_bits(*scores.shape[1:], reach, scores.dtype)
    torch.bitwise_and(scores.view(bits.dtype), bits, out=out.view(bits.dtype))
    return out


def _keys_in_reach(tile: Tile, reach: int) -> slice:
    """The keys from a tile's first query to n after its last; all after these are n or more after all queries."""
    return slice(tile.rows.start, min(tile.rows.stop + reach, tile.length))


def _ends(rows: int, reach: int) -> tuple[slice, slice]:
    """The first n and the last n of the rows, none of them twice: their bands may lead out of the sequence."""
    return slice(0, reach), slice(max(rows - reach, reach), None)


class Bias:
    """The convolution terms of all scores, minus their weights for earlier keys.

    Args:
        query_columns, key_columns: (G, S, 2n), the latter with a margin of n positions. One of them may be None.
    """

    def __init__(self, query_columns: Tensor | None, key_columns: Tensor | None) -> None:
        columns = key_columns if query_columns is None else query_columns
        assert columns is not None
        matrices, length, number = columns.shape
        self._reach = number // 2
        # Their product is the sum of both weights: (G, S, 2) with weight, 1 and (G, 2, S) with 1, weight.
        self._later_query = columns.new_zeros(matrices, length, 2)
        self._later_key = columns.new_zeros(matrices, 2, length)
        self._later_query[..., 1] = self._later_key[:, 0] = 1
        self._near = torch.zeros_like(columns)  # (G, S, 2n), by the query and the offset; the last is of n, so later
        if key_columns is not None:
            self._later_key[:, 1] = key_columns[..., -1]
            self._near.copy_(band_of_keys(key_columns))
        if query_columns is not None:
            self._later_query[..., 0] = query_columns[..., -1]
            self._near.add_(query_columns)

    def write(self, scores: Tensor, tile: Tile, mask: Tensor | None) -> None:
        """Write the bias and the mask to the scores of a tile.

        Args:
            scores: (g, R, S), with a margin of n elements.
            tile: the tile.
            mask: mask of the tile, (b, 1 or h, R, S), or None.
        """
        self._write_later(scores, tile)
        near, number = tile.of_queries(self._near), self._near.shape[-1]
        part, outside = band(scores, tile.rows.start, number), _outside(tile.length, number)[tile.rows]
        first, last = _ends(scores.shape[1], self._reach)
        for rows in (first, last):  # no element is addressed twice
            part[:, rows] = torch.where(outside[rows], part[:, rows], near[:, rows])
        part[:, first.stop : last.start] = near[:, first.stop : last.start]
        if mask is not None:
            scores.unflatten(0, (mask.shape[0], -1)).add_(mask)

    def _write_later(self, scores: Tensor, tile: Tile) -> None:
        """Write the ``later`` weights to the scores of distant later keys, and zeros to the others."""
        of_queries, of_keys = tile.of_queries(self._later_query), tile.of_keys(self._later_key)
        if scores.dtype.itemsize < 4:  # broadcast sums of half precision are three times slower
            torch.bmm(of_queries, of_keys, out=scores)
        else:
            torch.add(of_queries[..., :1], of_keys[:, 1:], out=scores)
        part = scores[..., _keys_in_reach(tile, self._reach)]
        _keep_later(part, self._reach, out=part)
        scores[..., : tile.rows.start].zero_()


class BiasGrad:
    """The gradients of the columns of ``Bias``, accumulated tile by tile.

    Args:
        like: (G, S, d), of the dtype of the gradients.
        width: 2n+1.
        with_key: whether there are columns of keys.
    """

    def __init__(self, like: Tensor, width: int, with_key: bool) -> None:
        shape = like.shape[:2]
        self._reach = width // 2
        self._query_columns = like.new_empty(*shape, max(width - 1, 1))
        self._later_query = like.new_empty(shape)
        self._later_key = like.new_zeros(shape) if with_key else None

    def accumulate(self, grad_scores: Tensor, tile: Tile, scratch: Tensor) -> None:
        """Add the contribution of a tile.

        Args:
            grad_scores: (g, R, S), with a margin of n elements.
            tile: the tile.
            scratch: (g, R, S), overwritten.
        """
        columns, later_query = tile.of_queries(self._query_columns), tile.of_queries(self._later_query)
        columns.copy_(band(grad_scores, tile.rows.start, columns.shape[-1]))
        in_reach = _keys_in_reach(tile, self._reach)
        triangle = _keep_later(grad_scores[..., in_reach], self._reach, out=scratch[..., in_reach])
        torch.sum(triangle, -1, out=later_query)
        after = slice(in_reach.stop, None)
        if not tile.is_whole:
            later_query += grad_scores[..., after].sum(-1)
        if self._later_key is not None:
            later_key = tile.of_keys(self._later_key)
            later_key[..., in_reach] += triangle.sum(-2)
            if not tile.is_whole:
                later_key[..., after] += grad_scores[..., after].sum(-2)

    def columns(self) -> tuple[Tensor, Tensor | None]:
        """The gradients of the queries' and the keys' columns, (G, S, 2n), after the last tile."""
        query_columns = self._query_columns
        _, length, number = query_columns.shape
        for rows in _ends(length, self._reach):
            query_columns[:, rows].masked_fill_(_outside(length, number)[rows], 0)
        query_columns[..., -1] = self._later_query
        if self._later_key is None:
            return query_columns, None
        key_columns = empty_with_margin(query_columns, query_columns.shape, self._reach * number)
        for keys in _ends(length, self._reach):  # some of their weights have no query
            key_columns[:, keys].zero_()
        band_of_keys(key_columns)[..., :-1].copy_(query_columns[..., :-1])
        key_columns[..., -1] = self._later_key
        return query_columns, key_columns
