"""Composite attention on a GPU, at about the price of plain attention, with nothing of size S x S in memory.

For keys at least n to the right of the query, the terms are constants of the query and of the key, so that the score is
that of shifted queries and keys; and mirrored on the left:

    q.k + q.Cq[n] + k.Ck[-n] + sqrt(d) f[n] = (q + Ck[-n]).(k + Cq[n]) - Ck[-n].Cq[n] + sqrt(d) f[n]  (over sqrt(d))

The kernels add the two constants to a tile as vectors: that is one addition a score, and no second set of queries and
keys. Only nearer pairs, 2n-1 a query, have weights of their own: the band. What is kept for backward beside queries,
keys, values and context are the band, these vectors and one number a row of the softmax: all linear in S.

The kernels are operators of PyTorch, so that its compiler takes them as they are.

Legend: B rows, S sequence, H heads, d head size, n reach (a kernel is 2n+1 wide).
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.triton import kernels
from bert_convolutions.attention.triton.tiling import choose_tiles, padded_head_size

INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether the kernels run on a CPU, for tests: TRITON_INTERPRET=1 was in the environment when they were imported."""

LARGEST_HEAD = 128
# Triton's interpreter multiplies the bits of bfloat16 as whole numbers.
_DTYPES = {torch.float32, torch.float16} | (set() if INTERPRETED else {torch.bfloat16})


def attend_triton(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, on a GPU. Dropout's rate is rounded to 1/65536.

    What the kernels don't take goes to ``attend_eager``: masks of pairs, float64, heads larger than 128.
    """
    if parts.segments.pairs is not None or value.dtype not in _DTYPES or value.shape[-1] > LARGEST_HEAD:
        return attend_eager(parts, value, dropout)
    query = key = None
    if parts.dot_product and parts.query is not None and parts.key is not None:
        query, key = (_by_position(part.to(value.dtype)) for part in (parts.query, parts.key))
    weights = [parts.offset_weights(side) for side in ("query", "key")]
    by_query, by_key = (None if part is None else part.to(value.dtype) for part in weights)
    band, ends = fold(by_query, by_key, value.shape[:3])
    seed = torch.randint(2**62, (1,), device=value.device) if dropout > 0 else None
    context, _ = banded_attention(
        query, key, _by_position(value), band, ends, parts.segments.spans(), seed, dropout, parts.scaling
    )
    return context.transpose(1, 2), None


def _by_position(heads: Tensor) -> Tensor:
    """(B, H, S, d) as (B, S, H, d): how projections lie in memory, so mostly without a copy."""
    return heads.transpose(1, 2).contiguous()


def fold(
    by_query: Tensor | None, by_key: Tensor | None, shape: torch.Size
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """What the terms come down to: weights of pairs nearer than n, and constants of queries and keys further apart.

    Args:
        by_query, by_key: ``ScoreParts.offset_weights`` of either side, broadcastable to (B, H, S, 2n+1), or None.
        shape: B, H, S.

    Returns:
        Band (B, H, S, 2n-1), at [i, n-1 + r] for the key i + r; and ends (4, B, H, S) float32: what queries add for all
        keys far to their left and to their right, what keys add where they are on the left and on the right. None
        without a term.
    """
    given = by_key if by_query is None else by_query
    if given is None:
        return None, None
    length, width = shape[-1], given.shape[-1]
    by_query, by_key = (
        (given.new_zeros(1) if part is None else part).expand(*shape, width) for part in (by_query, by_key)
    )
    ends = torch.stack([by_query[..., 0], by_query[..., -1], by_key[..., -1], by_key[..., 0]]).float()
    if width == 1:
        return given.new_empty(*shape, 0), ends
    # What key j adds for query i is by_key[j, n + i-j]. In the transpose, filled up with n zeros on both sides, i and j
    # are one further to the right in each row; reading with a row length shorter by one makes it j, as in ``offsets``.
    shorter = length + width - 2
    filled = functional.pad(by_key.transpose(-1, -2), (width // 2, width // 2)).flatten(-2)
    skewed = filled[..., width - 1 : width - 1 + width * shorter].unflatten(-1, (width, shorter))[..., :length]
    band = by_query + skewed.flip(-2).transpose(-1, -2)
    return band[..., 1:-1].contiguous(), ends


@torch.library.custom_op("bert_convolutions::banded_attention", mutates_args=())
def banded_attention(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    band: Tensor | None,
    ends: Tensor | None,
    examples: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """The score of ``kernels``, softmax, dropout, times the values.

    Args:
        query, key, value: (B, S, H, d); the first two None where their product is not in the score.
        band, ends: as ``fold`` gives them.
        examples: (3, B, S) int32, as ``Segments.spans`` gives them, or None.
        seed: (1,) int64, of dropout.
        dropout: its rate.
        scaling: 1/sqrt(d).

    Returns:
        Context (B, S, H, d), and the logarithm of the softmax's denominator (B, H, S) float32, which backward needs.
    """
    batch, length, heads, _ = value.shape
    context, log_sum_exp = torch.empty_like(value), value.new_empty((batch, heads, length), dtype=torch.float32)
    inputs = query, key, value, band, ends, examples, seed
    _launch(kernels.forward, 0, inputs, (context, log_sum_exp), dropout, scaling)
    return context, log_sum_exp


@torch.library.custom_op("bert_convolutions::banded_attention_backward", mutates_args=())
def _backward(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    band: Tensor | None,
    ends: Tensor | None,
    examples: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    scaling: float,
    context: Tensor,
    log_sum_exp: Tensor,
    by_context: Tensor,
) -> list[Tensor]:
    """The gradients of the first five, empty for None."""
    gradients = _empty_gradients(query, key, value, band, ends)
    by_query, by_key, by_value, by_band, by_ends = gradients
    by_band.zero_()  # for the keys that are of another example, or none
    by_context, delta = by_context.contiguous(), torch.empty_like(log_sum_exp)
    inputs = query, key, value, band, ends, examples, seed
    of_query = context, log_sum_exp, by_context, delta, by_query, by_band, by_ends
    _launch(kernels.backward_query, 1, inputs, of_query, dropout, scaling)
    of_key = log_sum_exp, by_context, delta, by_key, by_value, by_ends
    _launch(kernels.backward_key, 2, inputs, of_key, dropout, scaling)
    return gradients


def _empty_gradients(*inputs: Tensor | None) -> list[Tensor]:
    value = inputs[2]
    assert value is not None
    return [value.new_empty(0) if part is None else torch.empty_like(part) for part in inputs]


def _launch(
    kernel: Any,
    which: int,
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
    dropout: float,
    scaling: float,
) -> None:
    """Run the ``which``-th kernel of ``TILES`` over all positions, rows and heads."""
    query, _, value, band, _, examples, _ = inputs
    assert value is not None
    batch, length, heads, head_size = value.shape
    reach = None if band is None else (band.shape[-1] + 1) // 2
    constants = kernel_constants(
        which, value.dtype, head_size, reach, query is not None, examples is not None, dropout > 0
    )
    own = constants["J" if kernel is kernels.backward_key else "I"]
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(length, own), batch * heads)](
            *(value if part is None else part for part in inputs),  # what the kernel then leaves alone
            *outputs,
            batch * heads * length,
            heads,
            length,
            scaling,
            round(dropout * 2**16),
            1 / (1 - dropout),
            **constants,
        )


def kernel_constants(
    which: int, dtype: torch.dtype, head_size: int, reach: int | None, dot_product: bool, segments: bool, dropout: bool
) -> dict[str, Any]:
    """What a kernel is compiled for; ``reach`` is None without a convolution term."""
    tile = choose_tiles(dtype, head_size)[which]
    return {
        "HEAD_SIZE": head_size,
        "REACH": reach or 0,
        "DOT_PRODUCT": dot_product,
        "TERMS": reach is not None,
        "SEGMENTS": segments,
        "DROPOUT": dropout,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",  # which matters to float32 only
        "BLOCK_D": padded_head_size(head_size),
        "I": tile.queries,
        "J": tile.keys,
        "NEAR": tile.near,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@banded_attention.register_fake
def _(query: Any, key: Any, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = value.shape
    return torch.empty_like(value), value.new_empty((batch, heads, length), dtype=torch.float32)


@_backward.register_fake
def _(query: Any, key: Any, value: Any, band: Any, ends: Any, *rest: Any) -> list[Tensor]:
    return _empty_gradients(query, key, value, band, ends)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.dropout, ctx.scaling = inputs[-2:]
    ctx.save_for_backward(*inputs[:-2], *output)


def _gradients(ctx: Any, by_context: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *inputs, context, log_sum_exp = ctx.saved_tensors
    gradients = _backward(*inputs, ctx.dropout, ctx.scaling, context, log_sum_exp, by_context)
    wanted = (None if part is None else gradient for part, gradient in zip(inputs, gradients, strict=False))
    return *wanted, None, None, None, None


banded_attention.register_autograd(_gradients, setup_context=_keep_for_backward)
