"""The same attention on a CPU in one function with its own backward: no S x S tensor but the scores themselves.

The bias is laid out inside the buffer of the scores; softmax and the gradient work in place. The layout uses that,
beyond the reach, a convolution term is the same for all later positions and the same for all earlier ones:

    bias[i, j] = near[i, j - i] + (later_i + later_j  if j > i  else  earlier_j),    near = 0 beyond the reach

``later`` and ``earlier`` are the end weights for keys after and before the query. Softmax doesn't see a term that is
the same for all keys of a query, so ``earlier_i`` is taken off the query's weights beforehand.

Legend: G = B x H matrices of scores, S sequence, d head size, n reach.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.dropout import keep_mask

_BLOCK = 64  # rows written at once: small triangles, few calls


def attend_fused(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, faster on a CPU.

    Falls back to it where the band would wrap around (a sequence shorter than two kernels) or in a compiled model,
    whose compiler does its own fusing.
    """
    if torch.compiler.is_compiling():
        return attend_eager(parts, value, dropout)
    batch, heads, length, _ = value.shape
    widths = [parameter.shape[-1] for side in parts.terms.values() for _, parameter in side]
    width = max(widths, default=0)
    if length < 2 * width:
        return attend_eager(parts, value, dropout)
    parts = replace(parts, query=_contiguous(parts.query), key=_contiguous(parts.key))

    def matrices(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.expand(batch, heads, length, -1).flatten(0, 1).to(value.dtype)

    def ends(side: str) -> Tensor | None:
        if side not in parts.terms:
            return None
        return matrices(parts.offset_weights(side, _ends_basis(width, side, value.dtype)))

    context = _FusedAttention.apply(
        matrices(parts.query) if parts.dot_product else None,
        matrices(parts.key) if parts.dot_product else None,
        value.flatten(0, 1),
        ends("query"),
        ends("key"),
        parts.mask,
        (batch, heads),
        parts.scaling,
        dropout,
    )
    return context.unflatten(0, (batch, heads)), None


def _contiguous(projection: Tensor | None) -> Tensor | None:
    """The heads of (B, H, S, d) apart in memory, once for all products."""
    return None if projection is None else projection.contiguous()


@lru_cache
@torch.inference_mode(False)  # kept for training too, which takes no inference tensors
def _ends_basis(width: int, row: str, dtype: torch.dtype) -> Tensor:
    """(2n+1, 2n+3): weights by offset times this are near (2n+1), later, earlier. An offset is "other minus row"."""
    reach = width // 2
    later, earlier = (width - 1, 0) if row == "query" else (0, width - 1)
    matrix = torch.zeros(width, width + 2, dtype=dtype)
    for offset in range(width):
        is_later = offset > reach if row == "query" else offset < reach
        matrix[offset, offset] += 1
        matrix[later if is_later else earlier, offset] -= 1
    matrix[later, width] = 1
    if row == "query":
        matrix[earlier, width] -= 1  # what softmax doesn't see
    else:
        matrix[earlier, width + 1] = 1
    return matrix


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _inside(length: int, width: int, dtype: torch.dtype) -> Tensor:
    """(S, 2n+1): 1 where row + offset is a position, else 0."""
    other = torch.arange(length).unsqueeze(1) + torch.arange(width) - width // 2
    return ((other >= 0) & (other < length)).to(dtype)


class _ScoreBuffer:
    """Scores (G, S, S) with room around them, so that their bands can be seen as (G, S, 2n+1) by plain strides."""

    def __init__(self, like: Tensor, width: int) -> None:
        matrices, self.length, _ = like.shape
        self.width = width
        size, room = matrices * self.length**2, (width // 2) * self.length
        self._flat = like.new_empty(size + 2 * room)
        self._flat[:room] = 0
        self._flat[room + size :] = 0
        self._room = room
        self.scores = self._flat[room : room + size].view(matrices, self.length, self.length)

    def band(self, row: str) -> Tensor:
        """[row, n + r] is the score of the pair (row, row + r), seen from the query or from the key.

        Where row + r is no position, it is some other element; two elements of a view are never the same one.
        """
        step = 1 if row == "query" else self.length
        size, strides = (*self.scores.shape[:2], self.width), (self.length**2, self.length + 1, step)
        return self._flat.as_strided(size, strides, self._room - (self.width // 2) * step)

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Blocks of rows, with the columns before and after the rows' own."""
        for start in range(0, self.length, _BLOCK):
            stop = min(start + _BLOCK, self.length)
            yield slice(start, stop), slice(0, start), slice(stop, self.length)

    def write_bias(self, by_query: Tensor | None, by_key: Tensor | None) -> None:
        """Write the bias from the weights in ``_ends_basis``, (G, S, 2n+3) each, in one pass over the scores."""
        scores, width = self.scores, self.width
        later_query, _ = self._ends(by_query)
        later_key, earlier_key = self._ends(by_key)
        rise_key = later_key - earlier_key
        for rows, before, after in self.blocks():
            scores[:, rows, before] = earlier_key[:, None, before]
            torch.add(later_query[:, rows, None], later_key[:, None, after], out=scores[:, rows, after])
            triangle = (later_query[:, rows, None] + rise_key[:, None, rows]).triu_(1)
            torch.add(triangle, earlier_key[:, None, rows], out=scores[:, rows, rows])
        inside = _inside(self.length, width, scores.dtype)
        if by_query is not None:
            self.band("query").addcmul_(by_query[..., :width], inside)
        if by_key is not None:
            self.band("key").addcmul_(by_key[..., :width], inside)

    def _ends(self, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The later and earlier weights (G, S) each, side by side in memory; zeros for no weights."""
        if weights is None:
            zeros = self.scores.new_zeros(self.scores.shape[:2])
            return zeros, zeros
        later, earlier = weights[..., self.width :].unbind(-1)
        return later.contiguous(), earlier.contiguous()

    def bias_gradients(self, with_query: bool, with_key: bool) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of ``write_bias``'s arguments, where the scores hold their own gradient."""
        scores = self.scores
        later_query, later_key, earlier_key = (scores.new_zeros(scores.shape[:2]) for _ in range(3))
        for rows, before, after in self.blocks():
            square = scores[:, rows, rows]
            triangle = square.triu(1)
            in_triangle = triangle.sum(-2)
            later_query[:, rows] = scores[:, rows, after].sum(-1) + triangle.sum(-1)
            if with_key:
                later_key[:, rows] += in_triangle
                later_key[:, after] += scores[:, rows, after].sum(-2)
                earlier_key[:, rows] += square.sum(-2) - in_triangle
                earlier_key[:, before] += scores[:, rows, before].sum(-2)
        by_query = self._with_band("query", later_query, torch.zeros_like(later_query)) if with_query else None
        by_key = self._with_band("key", later_key, earlier_key) if with_key else None
        return by_query, by_key

    def _with_band(self, side: str, later: Tensor, earlier: Tensor) -> Tensor:
        """The gradients near the diagonal and those of the ends, (G, S, 2n+3)."""
        gradient = self.scores.new_empty(*self.scores.shape[:2], self.width + 2)
        inside = _inside(self.length, self.width, self.scores.dtype)
        torch.mul(self.band(side), inside, out=gradient[..., : self.width])
        gradient[..., self.width] = later
        gradient[..., self.width + 1] = earlier
        return gradient


class _FusedAttention(torch.autograd.Function):
    """softmax(query . key * scaling + bias + mask), dropout, . value; see the head of the file for the bias.

    query, key, value (G, S, d), the first two maybe None; by_query, by_key (G, S, 2n+3) in ``_ends_basis`` or None;
    mask (B, 1 or H, S, S) or None. Returns (G, S, d).
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, query, key, value, by_query, by_key, mask, shape, scaling, rate):  # type: ignore[no-untyped-def]
        """Scores are built and turned into probabilities in one buffer."""
        ctx.rows = (by_query is not None, by_key is not None)
        width = max((part.shape[-1] - 2 for part in (by_query, by_key) if part is not None), default=0)
        buffer = _ScoreBuffer(value, width)
        scores = buffer.scores
        if any(ctx.rows):
            buffer.write_bias(by_query, by_key)
        elif query is None:
            scores.zero_()
        if query is not None:
            torch.baddbmm(scores, query, key.transpose(1, 2), beta=int(any(ctx.rows)), alpha=scaling, out=scores)
        if mask is not None:
            scores.unflatten(0, shape).add_(mask)
        probabilities = torch.softmax(scores, dim=-1, out=scores)
        keep = keep_mask(scores.shape, rate, scores.dtype) if rate > 0 else None
        dropped = probabilities if keep is None else probabilities * keep
        ctx.save_for_backward(query, key, value, probabilities, keep)
        ctx.scaling, ctx.keep_scale, ctx.width = scaling, 1 / (1 - rate), width
        return torch.bmm(dropped, value).mul_(ctx.keep_scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # type: ignore[no-untyped-def]
        """The gradient of the scores is the one S x S tensor; all others are products with it or sums of it."""
        query, key, value, probabilities, keep = ctx.saved_tensors
        gradient = gradients[0] * ctx.keep_scale
        dropped = probabilities if keep is None else probabilities * keep
        gradient_value = torch.bmm(dropped.transpose(1, 2), gradient)
        gradient_dropped = torch.bmm(gradient, value.transpose(1, 2))
        if keep is not None:
            gradient_dropped.mul_(keep)
        buffer = _ScoreBuffer(value, ctx.width)
        scores = buffer.scores
        torch._softmax_backward_data(gradient_dropped, probabilities, -1, scores.dtype, grad_input=scores)
        gradient_query = gradient_key = None
        if query is not None:
            gradient_query = torch.bmm(scores, key).mul_(ctx.scaling)
            gradient_key = torch.bmm(scores.transpose(1, 2), query).mul_(ctx.scaling)
        by_query, by_key = buffer.bias_gradients(*ctx.rows) if any(ctx.rows) else (None, None)
        return gradient_query, gradient_key, gradient_value, by_query, by_key, None, None, None, None
