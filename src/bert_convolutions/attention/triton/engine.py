"""Composite attention on a GPU, at about the price of plain attention, with nothing of size S x S in memory.

For keys at least n to the right of the query, the terms are constants of the query and of the key, so that the score is
that of shifted queries and keys; and mirrored on the left:

    q.k + q.Cq[n] + k.Ck[-n] + sqrt(d) f[n] = (q + Ck[-n]).(k + Cq[n]) - Ck[-n].Cq[n] + sqrt(d) f[n]  (over sqrt(d))

``kernels`` say how they use it. Only nearer pairs, 2n-1 a query, have weights of their own: the band. What is kept for
backward beside queries, keys, values and context are the band, four vectors and one number a row of the softmax: all
linear in S.

Forward and backward are operators of PyTorch, so that its compiler takes them as they are.

Legend: B rows, S sequence, H heads, d head size, n reach (a kernel is 2n+1 wide), G that rounded up to a multiple of 8.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.triton import band as bands
from bert_convolutions.attention.triton import kernels
from bert_convolutions.attention.triton.band import BandShape
from bert_convolutions.attention.triton.tiling import choose_tiles, padded_head_size

INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether the kernels run on a CPU, for tests: TRITON_INTERPRET=1 was in the environment when they were imported."""

LARGEST_HEAD = 128
# Triton's interpreter multiplies the bits of bfloat16 as whole numbers.
_DTYPES = {torch.float32, torch.float16} | (set() if INTERPRETED else {torch.bfloat16})


def takes(parts: ScoreParts, value: Tensor) -> bool:
    """Whether the kernels do: no masks of pairs, float64, or heads larger than 128."""
    return parts.segments.pairs is None and value.dtype in _DTYPES and value.shape[-1] <= LARGEST_HEAD


def attend_triton(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, on a GPU. Dropout's rate is rounded to 1/65536.

    What the kernels don't take goes to ``attend_eager``.
    """
    if not takes(parts, value):
        return attend_eager(parts, value, dropout)
    (by_query, fixed), (by_key, fixed_of_key) = (parts.kernel(side) for side in ("query", "key"))
    assert fixed_of_key is None, "terms without a projection are seen from the query"
    given = next((part for part in (by_query, by_key, fixed) if part is not None), None)
    query_needed, key_needed = (parts.dot_product or part is not None for part in (by_query, by_key))
    query = _by_position(parts.query.to(value.dtype)) if query_needed and parts.query is not None else None
    key = _by_position(parts.key.to(value.dtype)) if key_needed and parts.key is not None else None
    heads = value.shape[1]
    kernels_of_heads = [_of_all_heads(part, heads, value.dtype) for part in (by_query, by_key)]
    constants = None if fixed is None else _filled(fixed.expand(1, heads, 1, -1).flatten(0, 2)).float()
    seed = torch.randint(2**62, (1,), device=value.device) if dropout > 0 else None
    reach = -1 if given is None else given.shape[-1] // 2
    context, *_ = composite_attention(
        query, key, _by_position(value), *kernels_of_heads, constants, parts.segments.spans(), seed,
        parts.dot_product, reach, dropout, parts.scaling,
    )  # fmt: skip
    return context.transpose(1, 2), None


def _by_position(heads: Tensor) -> Tensor:
    """(B, H, S, d) as (B, S, H, d): how projections lie in memory, so mostly without a copy."""
    return heads.transpose(1, 2).contiguous()


def _filled(kernel: Tensor) -> Tensor:
    """(.., 2n+1) as (.., G): products of matrices want it."""
    return functional.pad(kernel, (0, -kernel.shape[-1] % 8))


def _of_all_heads(kernel: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """(d, 2n+1) or (H, d, 2n+1) as (H, d, G)."""
    return None if kernel is None else _filled(kernel.to(dtype)).expand(heads, -1, -1).contiguous()


def _by_offset(projection: Tensor | None, kernel: Tensor | None, factor: float) -> Tensor | None:
    """Projections (B, S, H, d) times a kernel (H, d, G): weights (H, B S, G)."""
    if projection is None or kernel is None:
        return None
    return projection.flatten(0, 1).transpose(0, 1) @ (kernel * factor)


@torch.library.custom_op("bert_convolutions::composite_attention", mutates_args=())
def composite_attention(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    query_kernel: Tensor | None,
    key_kernel: Tensor | None,
    fixed: Tensor | None,
    examples: Tensor | None,
    seed: Tensor | None,
    dot_product: bool,
    reach: int,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax of the score, dropout, times the values.

    Args:
        query, key: (B, S, H, d), or None where neither the dot product nor a kernel needs them.
        value: (B, S, H, d).
        query_kernel, key_kernel: of the dynamic terms, (H, d, G).
        fixed: of the fixed ones, (H, G) float32.
        examples: (3, B, S) int32, as ``Segments.spans`` gives them, or None.
        seed: (1,) int64, of dropout.
        dot_product: whether it is in the score.
        reach: n, or -1 without any term.
        dropout: its rate.
        scaling: 1/sqrt(d).

    Returns:
        Context (B, S, H, d); and for backward the logarithm to base 2 of the softmax's denominator (B, H, S) float32,
        band and ends as ``band`` describes them, empty without terms.
    """
    rows, length, heads, _ = value.shape
    shape = BandShape(rows, heads, length, reach)
    band, ends = _band_and_ends(value, shape)
    if reach >= 0:
        to_log_2 = scaling / kernels.LN_2.value
        by_query = _by_offset(query, query_kernel, to_log_2)
        by_key = _by_offset(key, key_kernel, to_log_2)
        fixed_weights = None if fixed is None else fixed / kernels.LN_2.value
        _fold(shape, (by_query, by_key, fixed_weights), band, ends)
    context = torch.empty_like(value)
    log_sum_exp = value.new_empty((rows, heads, length), dtype=torch.float32)
    inputs = query, key, value, band, ends, query_kernel, key_kernel, examples, seed
    options = fixed is not None, dot_product, dropout, scaling
    _launch(kernels.forward, 0, shape, inputs, (context, log_sum_exp), *options)
    return context, log_sum_exp, band, ends


def _band_and_ends(value: Tensor, shape: BandShape) -> tuple[Tensor, Tensor]:
    if shape.reach < 0:
        return value.new_empty(0), value.new_empty(0, dtype=torch.float32)
    return shape.new_band(value), shape.new_ends(value)


@torch.library.custom_op("bert_convolutions::composite_attention_backward", mutates_args=())
def _backward(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    query_kernel: Tensor | None,
    key_kernel: Tensor | None,
    fixed: Tensor | None,
    examples: Tensor | None,
    seed: Tensor | None,
    dot_product: bool,
    reach: int,
    dropout: float,
    scaling: float,
    context: Tensor,
    log_sum_exp: Tensor,
    band: Tensor,
    ends: Tensor,
    by_context: Tensor,
) -> list[Tensor]:
    """The gradients of the first six, empty for None."""
    rows, length, heads, _ = value.shape
    shape = BandShape(rows, heads, length, reach)
    gradients = _empty_gradients(query, key, value, query_kernel, key_kernel, fixed)
    to_query, to_key, to_value, to_query_kernel, to_key_kernel, to_fixed = gradients
    by_band = shape.new_band(value, zeros=reach > 0)  # zeros: for keys of other examples, or none
    by_row = shape.new_ends(value)
    by_context = by_context.contiguous()
    given = next((kernel for kernel in (query_kernel, key_kernel, fixed) if kernel is not None), None)
    weights = [  # gradients of the weights by offset, (H, B S, G)
        None if given is None or not there else value.new_empty((heads, rows * length, given.shape[-1]))
        for there in (query_kernel is not None or fixed is not None, key_kernel is not None)
    ]
    inputs = query, key, value, band, ends, query_kernel, key_kernel, examples, seed
    options = fixed is not None, dot_product, dropout, scaling
    of_query = context, log_sum_exp, by_context, by_row, to_query, by_band, weights[0]
    _launch(kernels.backward_query, 1, shape, inputs, of_query, *options)
    of_key = by_context, by_row, by_band, to_key, to_value, weights[1]
    _launch(kernels.backward_key, 2, shape, inputs, of_key, *options)
    if fixed is not None and weights[0] is not None:
        torch.sum(weights[0], 1, dtype=torch.float32, out=to_fixed)
    for of_weights, projection, kernel, to_kernel in (
        (weights[0], query, query_kernel, to_query_kernel),
        (weights[1], key, key_kernel, to_key_kernel),
    ):
        if projection is not None and kernel is not None and of_weights is not None:
            to_kernel.copy_(_kernel_gradient(projection, of_weights) * scaling)
    return gradients


def _empty_gradients(*inputs: Tensor | None) -> list[Tensor]:
    value = inputs[2]
    assert value is not None
    return [value.new_empty(0) if part is None else torch.empty_like(part) for part in inputs]


def _launch(
    kernel: Any,
    which: int,
    shape: BandShape,
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    fixed: bool,
    dot_product: bool,
    dropout: float,
    scaling: float,
) -> None:
    """Run the ``which``-th kernel of ``TILES`` over all positions, rows and heads."""
    value, query_kernel, key_kernel, examples = inputs[2], *inputs[5:8]
    assert value is not None
    terms = Terms(dot_product, fixed, query_kernel is not None, key_kernel is not None)
    constants = kernel_constants(which, value.dtype, value.shape[-1], shape, terms, examples is not None, dropout > 0)
    own = constants["J" if kernel is kernels.backward_key else "I"]
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(shape.length, own), shape.rows * shape.heads)](
            *(value if part is None else part for part in (*inputs, *outputs)),  # what the kernel then leaves alone
            shape.rows,
            shape.heads,
            shape.length,
            shape.size,
            scaling,
            round(dropout * 2**16),
            1 / (1 - dropout),
            **constants,
        )


@dataclass(frozen=True)
class Terms:
    """Which terms a score has: the dot product, fixed ones, dynamic ones from the query and from the key."""

    dot_product: bool
    fixed: bool
    query: bool
    key: bool


def kernel_constants(
    which: int, dtype: torch.dtype, head_size: int, shape: BandShape, terms: Terms, segments: bool, dropout: bool
) -> dict[str, Any]:
    """What a kernel is compiled for."""
    tile = choose_tiles(dtype, head_size)[which]
    width = 2 * max(shape.reach, 0) + 1
    return {
        "HEAD_SIZE": head_size,
        "REACH": max(shape.reach, 0),
        "PADDED": shape.padded,
        "G": -(-width // 8) * 8,
        "DOT_PRODUCT": terms.dot_product,
        "TERMS": shape.reach >= 0,
        "QUERY_WEIGHTS": terms.query or terms.fixed,
        "QUERY_TERMS": terms.query,
        "KEY_TERMS": terms.key,
        "SEGMENTS": segments,
        "DROPOUT": dropout,
        "WHOLE": shape.length % max(tile.queries, tile.keys) == 0,
        "PRECISION": _precision(dtype),
        "BLOCK_D": padded_head_size(head_size),
        "BLOCK_G": max(16, triton.next_power_of_2(width)),
        "I": tile.queries,
        "J": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
    }


def _fold(
    shape: BandShape, weights: tuple[Tensor | None, Tensor | None, Tensor | None], band: Tensor, ends: Tensor
) -> None:
    """Run ``band.fold`` over all positions, rows and heads."""
    given = next(part for part in weights if part is not None)
    with torch.cuda.device_of(band):
        bands.fold[(triton.cdiv(shape.length, bands.TILE), shape.rows * shape.heads)](
            *(given if part is None else part for part in weights),
            band,
            ends,
            shape.rows,
            shape.heads,
            shape.length,
            shape.size,
            REACH=shape.reach,
            PADDED=shape.padded,
            G=given.shape[-1],
            W=max(16, triton.next_power_of_2(2 * shape.reach + 1)),
            TILE=bands.TILE,
            **{name: part is not None for name, part in zip(("QUERY", "KEY", "FIXED"), weights, strict=True)},
        )


def _kernel_gradient(projection: Tensor, by_weights: Tensor) -> Tensor:
    """The sum over all positions of projections (B, S, H, d) times the gradients of weights (H, B S, G): (H, d, G)."""
    heads, positions, width = by_weights.shape
    head_size = projection.shape[-1]
    each = -(-positions // (bands.PARTS * bands.TOKENS)) * bands.TOKENS
    count = triton.cdiv(positions, each)
    parts = by_weights.new_empty((count, heads, head_size, width), dtype=torch.float32)
    with torch.cuda.device_of(projection):
        bands.kernel_gradient[(heads, count)](
            projection,
            by_weights,
            parts,
            positions,
            heads,
            each,
            HEAD_SIZE=head_size,
            G=width,
            BLOCK_D=padded_head_size(head_size),
            W=max(16, triton.next_power_of_2(width)),
            TILE=bands.TOKENS,
            PRECISION=_precision(projection.dtype),
        )
    return parts.sum(0)


def _precision(dtype: torch.dtype) -> str:
    """Of products; it matters to float32 only."""
    return "ieee" if dtype == torch.float32 else "tf32"


@composite_attention.register_fake
def _(query: Any, key: Any, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, length, heads, _ = value.shape
    band, ends = _band_and_ends(value, BandShape(rows, heads, length, rest[6]))
    return torch.empty_like(value), value.new_empty((rows, heads, length), dtype=torch.float32), band, ends


@_backward.register_fake
def _(query: Any, key: Any, value: Any, query_kernel: Any, key_kernel: Any, fixed: Any, *rest: Any) -> list[Tensor]:
    return _empty_gradients(query, key, value, query_kernel, key_kernel, fixed)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.numbers = inputs[8:]
    ctx.save_for_backward(*inputs[:8], *output)


def _gradients(ctx: Any, by_context: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    inputs, outputs = saved[:8], saved[8:]
    gradients = _backward(*inputs, *ctx.numbers, *outputs, by_context)
    wanted = (None if part is None else gradient for part, gradient in zip(inputs, gradients, strict=False))
    return *wanted, *[None] * 6


composite_attention.register_autograd(_gradients, setup_context=_keep_for_backward)
