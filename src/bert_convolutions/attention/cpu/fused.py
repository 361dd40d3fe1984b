"""Composite attention on a CPU as one function with its own backward: the bias is never a separate S x S tensor.

For one of the G matrices of scores s, with the mask m, probabilities p and dropout factors keep / (1 - rate):

    s_ij = scaling q_i . k_j + bias_ij + m_ij,    p = softmax(s),    output_i = sum_j p_ij keep_ij v_j / (1 - rate)

**The bias in few columns.** At distances of n and more, a convolution term has one weight for all later positions and
one for all earlier positions. Subtracting its weight for earlier positions leaves 2n columns per position, ``near`` and
``later``; these are 16 with the paper's n, as many as a matrix product processes at once:

    bias_ij = near[i, j - i]       if |j - i| < n, the sum of the query's and the key's weight
              later_i + later_j    if j - i >= n
              0                    if j - i <= -n

For the queries' terms this changes nothing, since subtracting a constant from a row of scores leaves its softmax
unchanged. For a fixed kernel of the keys, the subtracted weight is the same for all keys, again a constant. For a
dynamic kernel of the keys, it is scaling k_j . c, where c is the kernel at its last offset. This is a dot product with
the key, so it is restored by adding c to all queries: scaling (q_i + c) . k_j.

**Backward.** Let dx be the gradient of x. In this order, for one tile of scores at a time:

    dv_j    = sum_i p_ij keep_ij / (1 - rate) doutput_i
    dp_ij   = keep_ij / (1 - rate) doutput_i . v_j
    ds_ij   = p_ij (dp_ij - sum_l p_il dp_il)
    dq_i    = scaling sum_j ds_ij k_j,    and dc is the sum of dq_i over all positions and matrices
    dk_j    = scaling sum_i ds_ij (q_i + c)
    dnear[i, r] = ds[i, i + r],    dlater_i = sum_{j >= i + n} ds_ij,    dlater_j = sum_{i <= j - n} ds_ij

The gradients of the columns then give those of the kernels and contribute to those of queries and keys (``columns``).

Legend: B batch, H heads, G = B x H matrices of scores, S sequence, d head size, n reach; a tile has g matrices, R rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bert_convolutions.attention.autograd import once_differentiable, requires_plain_ops
from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.cpu.bias import Bias, BiasGrad
from bert_convolutions.attention.cpu.columns import Columns
from bert_convolutions.attention.cpu.dropout import draw_keep_mask
from bert_convolutions.attention.cpu.tiles import Scratch, Tile, empty_with_margin, tiles


class _Settings(NamedTuple):
    """Arguments of the attention that are not tensors; the first two as in ``ScoreParts``."""

    dot_product: bool
    scaling: float
    width: int  # 2n+1, or 0 without a convolution term
    dropout: float
    with_grad: bool  # whether to keep the probabilities for a backward pass

    @property
    def margin(self) -> int:
        """n: elements before and after the scores that their band touches."""
        return self.width // 2


def attend_fused(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, faster on a CPU.

    Falls back to ``attend_eager`` for an empty batch, a sequence shorter than the kernel (its band would wrap around),
    one kernel per head, a mask that requires a gradient, and tensors that ``requires_plain_ops``.
    """
    if requires_plain_ops(value):
        return attend_eager(parts, value, dropout)
    kernels = (*parts.kernel("query"), *parts.kernel("key"))
    width = 2 * parts.reach + 1 if parts.terms else 0
    mask, by_head = parts.mask, any(kernel is not None and kernel.dim() == 3 for kernel in kernels)
    if not value.numel() or value.shape[2] < width or by_head or (mask is not None and mask.requires_grad):
        return attend_eager(parts, value, dropout)
    query, key = (None if part is None else part.to(value.dtype) for part in (parts.query, parts.key))
    if mask is not None:  # tiles slice its examples and queries, which may be broadcast
        mask = mask.expand(value.shape[0], -1, value.shape[2], value.shape[2])
    settings = _Settings(parts.dot_product, parts.scaling, width, dropout, torch.is_grad_enabled())
    return _FusedAttention.apply(query, key, value, *kernels, mask, settings), None


class _FusedAttention(torch.autograd.Function):
    """softmax(query . key * scaling + bias + mask), then dropout, then the product with value.

    Takes query, key and value (B, H, S, d); the dynamic (d, 2n+1) and fixed (1, H or 1, 1, 2n+1) kernels of the
    queries, then of the keys; and the mask (B, 1 or H, S, S). All but value may be None. Returns (B, H, S, d).
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, query, key, value, query_dynamic, query_fixed, key_dynamic, key_fixed, mask, settings):  # type: ignore[no-untyped-def]
        """Compute the scores and turn them into probabilities in one buffer."""
        shape = value.shape
        terms = {"query": (query_dynamic, query_fixed), "key": (key_dynamic, key_fixed)}
        columns = {
            side: Columns(side, *kernels, settings.scaling, shape, value.dtype)
            for side, kernels in terms.items()
            if any(kernel is not None for kernel in kernels)
        }
        shift = None if key_dynamic is None else key_dynamic[:, -1].to(value.dtype)  # c
        shifted_query = _shifted(query if settings.dot_product else None, shift, shape)  # q + c
        # Only one copy of the query is kept; where it includes the shift, the columns subtract it again.
        query, included_shift = (shifted_query, shift) if settings.dot_product else (_matrices(query), None)
        key, value = _matrices(key), _matrices(value)
        bias = None
        if columns:
            query_columns = columns["query"].of(query, included_shift) if "query" in columns else None
            bias = Bias(query_columns, columns["key"].of(key) if "key" in columns else None)
        all_scores = (*value.shape[:2], shape[2])
        probabilities = empty_with_margin(value, all_scores, settings.margin) if settings.with_grad else None
        keep = value.new_empty(all_scores) if settings.dropout > 0 else None
        context, scratch, score_scratch = torch.empty_like(value), Scratch(value), Scratch(value, settings.margin)
        for tile in tiles(*shape[:3]):
            scores = score_scratch(tile.shape) if probabilities is None else tile.of_queries(probabilities)
            filled = _fill(scores, tile, bias, mask)
            if shifted_query is not None:
                factors = tile.of_queries(shifted_query), tile.of_keys(key).mT
                torch.baddbmm(scores, *factors, beta=int(filled), alpha=settings.scaling, out=scores)
            torch.softmax(scores, dim=-1, out=scores)
            dropped = scores
            if keep is not None:
                kept = draw_keep_mask(tile.of_queries(keep), settings.dropout)
                dropped = torch.mul(scores, kept, out=scratch(scores.shape))
            _product(tile.of_queries(context), dropped, tile.of_keys(value), 1 / (1 - settings.dropout))
        ctx.save_for_backward(query, key, value, shifted_query, shift, included_shift, probabilities, keep)
        ctx.settings, ctx.columns, ctx.shape = settings, columns, shape
        return context.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads):  # type: ignore[no-untyped-def]
        """Compute the gradient of the scores, tile by tile; all others are products with it or sums of it."""
        query, key, value, shifted_query, shift, included_shift, probabilities, keep = ctx.saved_tensors
        settings, columns, shape = ctx.settings, ctx.columns, ctx.shape
        grad_output = torch.mul(grads[0], 1 / (1 - settings.dropout), out=value.new_empty(shape)).flatten(0, 1)
        grad_value = torch.empty_like(value)
        grad_query: Any = None if shifted_query is None else torch.empty_like(value)  # of q + c
        grad_key: Any = None if shifted_query is None else torch.empty_like(value)
        bias = BiasGrad(value, settings.width, with_key="key" in columns) if columns else None
        first, second = Scratch(value), Scratch(value, settings.margin)
        for tile in tiles(*shape[:3]):
            probability, grad_tile = tile.of_queries(probabilities), tile.of_queries(grad_output)
            kept = None if keep is None else tile.of_queries(keep)
            dropped = probability if kept is None else torch.mul(probability, kept, out=first(probability.shape))
            accumulate = tile.rows.start > 0  # an earlier tile has set the gradients of these keys
            _product(tile.of_keys(grad_value), dropped.mT, grad_tile, add=accumulate)
            grad_probability = torch.bmm(grad_tile, tile.of_keys(value).mT, out=first(probability.shape))
            if kept is not None:
                grad_probability.mul_(kept)
            grad_scores = second(probability.shape)
            torch._softmax_backward_data(grad_probability, probability, -1, value.dtype, grad_input=grad_scores)
            if shifted_query is not None:
                _product(tile.of_queries(grad_query), grad_scores, tile.of_keys(key), settings.scaling)
                factors = grad_scores.mT, tile.of_queries(shifted_query)
                _product(tile.of_keys(grad_key), *factors, settings.scaling, add=accumulate)
            if bias is not None:
                bias.accumulate(grad_scores, tile, scratch=grad_probability)
        grad_shift = None if shift is None else grad_query.sum((0, 1))
        if not settings.dot_product:
            grad_query = None
        query_kernels: Any = (None, None)
        key_kernels: Any = (None, None)
        query_columns, key_columns = (None, None) if bias is None else bias.columns()
        if query_columns is not None and "query" in columns:
            grad_query, *query_kernels = columns["query"].grads(query_columns, query, included_shift, grad_query)
        if key_columns is not None:
            grad_key, *key_kernels = columns["key"].grads(key_columns, key, None, grad_key)
        if grad_shift is not None:
            key_kernels[0][:, -1] += grad_shift
        grad_query, grad_key = (None if grad is None else grad.view(shape) for grad in (grad_query, grad_key))
        return grad_query, grad_key, grad_value.view(shape), *query_kernels, *key_kernels, None, None


def _matrices(projection: Tensor | None) -> Tensor | None:
    """Reshape (B, H, S, d) to contiguous (G, S, d): one copy for all products."""
    return None if projection is None else projection.contiguous().flatten(0, 1)


def _shifted(query: Tensor | None, shift: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Query (B, H, S, d) plus shift (d,) as (G, S, d). Either may be None; None if both are."""
    if query is None or shift is None:
        return _matrices(query if shift is None else shift.expand(shape))
    shifted = query.new_empty(shape).copy_(query)
    shifted.view(-1, shape[2] * shape[3]).add_(shift.repeat(shape[2]))  # long rows, as in ``Columns.of``
    return shifted.flatten(0, 1)


def _fill(scores: Tensor, tile: Tile, bias: Bias | None, mask: Tensor | None) -> bool:
    """Write the bias and the mask to the scores; return whether there is either."""
    if mask is not None:
        mask = mask[tile.examples, :, tile.rows]
        if mask.shape[1] > 1:
            heads = mask.shape[1]
            first = tile.matrices.start % heads
            mask = mask[:, first : first + scores.shape[0] // mask.shape[0]]
    if bias is not None:
        bias.write(scores, tile, mask)
    elif mask is not None:
        scores.unflatten(0, (mask.shape[0], -1)).copy_(mask)
    return bias is not None or mask is not None


def _product(target: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, add: bool = False) -> None:
    """Write the product of two batches of matrices to ``target``, or add it."""
    torch.baddbmm(target, left, right, beta=int(add), alpha=scale, out=target)
