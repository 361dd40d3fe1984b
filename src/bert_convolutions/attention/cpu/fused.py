"""The same attention on a CPU in one function with its own backward: no S x S tensor but the scores themselves.

Bias and scores share a buffer, which softmax turns into probabilities in place. ``columns`` tells what the convolution
terms come down to, ``bias`` how they get to the scores, ``tiles`` what is worked on at a time.

Legend: B batch, H heads, G = B x H matrices of scores, S sequence, d head size, n reach; g, R the same of a tile.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.cpu.bias import Bias, BiasGradient, write_mask
from bert_convolutions.attention.cpu.columns import Columns
from bert_convolutions.attention.cpu.dropout import draw_keep_mask
from bert_convolutions.attention.cpu.tiles import Scratch, Tile, tiles, with_room


@dataclass(frozen=True)
class _Setting:
    """What the attention is given beside tensors.

    Attributes:
        dot_product, scaling: as in ``ScoreParts``.
        width: 2n+1, or 0 without a convolution term.
        dropout: its rate.
        with_gradient: whether there may be a backward, for which the probabilities are kept.
    """

    dot_product: bool
    scaling: float
    width: int
    dropout: float
    with_gradient: bool

    @property
    def room(self) -> int:
        """n-1: elements around the scores that their band touches."""
        return max(self.width - 2, 0) // 2


def attend_fused(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, faster on a CPU.

    Falls back to it where the band would wrap around (a sequence shorter than a kernel) or in a compiled model, whose
    compiler does its own fusing.
    """
    if torch.compiler.is_compiling():
        return attend_eager(parts, value, dropout)
    kernels = (*parts.kernel("query"), *parts.kernel("key"))
    width = max((kernel.shape[-1] for kernel in kernels if kernel is not None), default=0)
    if value.shape[2] < width:
        return attend_eager(parts, value, dropout)
    query, key = (None if part is None else part.to(value.dtype) for part in (parts.query, parts.key))
    mask = parts.mask
    if mask is not None:  # which may be shared by examples or queries, while tiles take theirs
        mask = mask.expand(value.shape[0], -1, value.shape[2], value.shape[2])
    setting = _Setting(parts.dot_product, parts.scaling, width, dropout, torch.is_grad_enabled())
    return _FusedAttention.apply(query, key, value, *kernels, mask, setting), None


class _FusedAttention(torch.autograd.Function):
    """softmax(query . key * scaling + bias + mask), dropout, . value.

    query, key, value (B, H, S, d), the first two maybe None; dynamic (d, 2n+1) and fixed (1, H or 1, 1, 2n+1) terms of
    the queries, then of the keys, each maybe None; mask (B, 1 or H, S, S) or None. Returns (B, H, S, d).
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, query, key, value, query_dynamic, query_fixed, key_dynamic, key_fixed, mask, setting):  # type: ignore[no-untyped-def]
        """Scores are built and turned into probabilities in one buffer."""
        shape = value.shape
        terms = {"query": (query_dynamic, query_fixed), "key": (key_dynamic, key_fixed)}
        columns = {
            side: Columns(side, *kernels, setting.scaling, shape, value.dtype)
            for side, kernels in terms.items()
            if any(kernel is not None for kernel in kernels)
        }
        shift = None if key_dynamic is None else key_dynamic[:, -1].to(value.dtype)  # the c of attention.columns
        scoring = _scoring_query(query if setting.dot_product else None, shift, shape)
        query, unseen = (scoring, shift) if setting.dot_product else (_matrices(query), None)
        key, value = _matrices(key), _matrices(value)
        bias = None
        if columns:
            by_query = columns["query"].of(query, unseen) if "query" in columns else None
            bias = Bias(by_query, columns["key"].of(key) if "key" in columns else None)
        all_scores = (*value.shape[:2], shape[2])
        probabilities = with_room(value, all_scores, setting.room) if setting.with_gradient else None
        keep = value.new_empty(all_scores) if setting.dropout > 0 else None
        context, scratch, roomy_scratch = torch.empty_like(value), Scratch(value), Scratch(value, setting.room)
        for tile in tiles(*shape[:3]):
            scores = roomy_scratch(tile.shape) if probabilities is None else tile.of_queries(probabilities)
            filled = _fill(scores, tile, bias, mask)
            if scoring is not None:
                product = tile.of_queries(scoring), tile.of_keys(key).mT
                torch.baddbmm(scores, *product, beta=int(filled), alpha=setting.scaling, out=scores)
            torch.softmax(scores, dim=-1, out=scores)
            dropped = scores
            if keep is not None:
                kept = draw_keep_mask(tile.of_queries(keep), setting.dropout)
                dropped = torch.mul(scores, kept, out=scratch(scores.shape))
            _product(tile.of_queries(context), dropped, tile.of_keys(value), 1 / (1 - setting.dropout))
        ctx.save_for_backward(query, key, value, scoring, shift, unseen, probabilities, keep)
        ctx.setting, ctx.columns, ctx.shape = setting, columns, shape
        return context.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients):  # type: ignore[no-untyped-def]
        """The gradient of the scores is the one S x S tensor; all others are products with it or sums of it."""
        query, key, value, scoring, shift, unseen, probabilities, keep = ctx.saved_tensors
        setting, columns, shape = ctx.setting, ctx.columns, ctx.shape
        gradient = torch.mul(gradients[0], 1 / (1 - setting.dropout), out=value.new_empty(shape)).flatten(0, 1)
        by_value = torch.empty_like(value)
        by_scoring: Any = None if scoring is None else torch.empty_like(value)
        by_key: Any = None if scoring is None else torch.empty_like(value)
        bias = BiasGradient(value, setting.width, with_key="key" in columns) if columns else None
        first, second = Scratch(value), Scratch(value, setting.room)
        for tile in tiles(*shape[:3]):
            probability, incoming = tile.of_queries(probabilities), tile.of_queries(gradient)
            kept = None if keep is None else tile.of_queries(keep)
            dropped = probability if kept is None else torch.mul(probability, kept, out=first(probability.shape))
            more = tile.rows.start > 0  # of the same keys
            _product(tile.of_keys(by_value), dropped.mT, incoming, add=more)
            by_dropped = torch.bmm(incoming, tile.of_keys(value).mT, out=first(probability.shape))
            if kept is not None:
                by_dropped.mul_(kept)
            scores = second(probability.shape)  # their gradient
            torch._softmax_backward_data(by_dropped, probability, -1, scores.dtype, grad_input=scores)
            if scoring is not None:
                _product(tile.of_queries(by_scoring), scores, tile.of_keys(key), setting.scaling)
                _product(tile.of_keys(by_key), scores.mT, tile.of_queries(scoring), setting.scaling, add=more)
            if bias is not None:
                bias.read(scores, tile, scratch=by_dropped)
        by_shift = None if shift is None else by_scoring.sum((0, 1))
        of_query: Any = (by_scoring if setting.dot_product else None, None, None)
        of_key: Any = (by_key, None, None)
        if bias is not None and "query" in columns:
            of_query = columns["query"].gradients(bias.by_query, query, unseen, of_query[0])
        if bias is not None and "key" in columns:
            of_key = columns["key"].gradients(bias.by_key(), key, None, by_key)
        if by_shift is not None:
            of_key[1][:, -1] += by_shift
        by_query, by_key = (None if part is None else part.view(shape) for part in (of_query[0], of_key[0]))
        return by_query, by_key, by_value.view(shape), *of_query[1:], *of_key[1:], None, None


def _matrices(projection: Tensor | None) -> Tensor | None:
    """(B, H, S, d) as (G, S, d), the heads apart in memory, once for all products."""
    return None if projection is None else projection.contiguous().flatten(0, 1)


def _scoring_query(query: Tensor | None, shift: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Query (B, H, S, d) plus shift (d,), each maybe None, as (G, S, d); None where both are."""
    if query is None or shift is None:
        return _matrices(query if shift is None else shift.expand(shape))
    return torch.add(query, shift, out=query.new_empty(shape)).flatten(0, 1)


def _fill(scores: Tensor, tile: Tile, bias: Bias | None, mask: Tensor | None) -> bool:
    """Write what the score is beside the dot product; whether there is anything."""
    if mask is not None:
        mask = mask[tile.examples, :, tile.rows]
        if mask.shape[1] > 1:
            heads = mask.shape[1]
            first = tile.matrices.start % heads
            mask = mask[:, first : first + scores.shape[0] // mask.shape[0]]
    if bias is not None:
        bias.write(scores, tile, mask)
    elif mask is not None:
        write_mask(scores, mask)
    return bias is not None or mask is not None


def _product(target: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, add: bool = False) -> None:
    """Write the products of two batches of matrices, or add them."""
    torch.baddbmm(target, left, right, beta=int(add), alpha=scale, out=target)
