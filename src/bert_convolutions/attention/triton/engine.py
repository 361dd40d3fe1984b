"""Composite attention on a GPU, at about the price of plain attention, with nothing of size S x S in memory.

For keys at least n to the right of the query, the terms are constants of the query and of the key, so that the score is
that of shifted queries and keys; and mirrored on the left:

    q.k + q.Cq[n] + k.Ck[-n] + sqrt(d) f[n] = (q + Ck[-n]).(k + Cq[n]) - Ck[-n].Cq[n] + sqrt(d) f[n]  (over sqrt(d))

``kernels`` say how they use it. Only nearer pairs, 2n-1 a query, have weights of their own: the band. What is kept for
backward beside queries, keys, values and context are the band, four vectors and one number a row of the softmax: all
linear in S.

Forward and backward are operators of PyTorch where its compiler takes them, and a function of autograd elsewhere, which
takes a third of the time: short rows wait for Python, not for the GPU.

Legend: B rows, S sequence, H heads, d head size, n reach (a kernel is 2n+1 wide), G that rounded up to a multiple of 8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bert_convolutions.attention.autograd import is_transformed, once_differentiable
from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.triton import band as bands
from bert_convolutions.attention.triton import kernels
from bert_convolutions.attention.triton.band import BandShape
from bert_convolutions.attention.triton.launch import Tile, choose_tiles, launch, padded_head_size

INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether the kernels run on a CPU, for tests: TRITON_INTERPRET=1 was in the environment when they were imported."""

LARGEST_HEAD = 128
LARGEST_REACH = 63
"""Weights by offset of more than 128 columns don't fit into the shared memory of all GPUs."""
MOST_MATRICES = 2**16 - 1
"""Rows times heads: CUDA's limit for the second dimension of a grid."""
# Triton's interpreter multiplies the bits of bfloat16 as whole numbers.
_DTYPES = {torch.float32, torch.float16} | (set() if INTERPRETED else {torch.bfloat16})


def takes(parts: ScoreParts, value: Tensor) -> bool:
    """Whether the kernels do: no masks of pairs or float64, and nothing larger than the numbers above."""
    rows, heads, _, head_size = value.shape
    fits = (
        head_size <= LARGEST_HEAD
        and rows * heads <= MOST_MATRICES
        and (not parts.terms or parts.reach <= LARGEST_REACH)
    )
    return fits and parts.segments.pairs is None and value.dtype in _DTYPES


def attend_triton(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, on a GPU. Dropout's rate is rounded to 1/65536.

    What the kernels don't take goes to ``attend_eager``.
    """
    if not takes(parts, value) or is_transformed():
        return attend_eager(parts, value, dropout)
    (query_kernel, fixed), (key_kernel, fixed_of_key) = (parts.kernel(side) for side in ("query", "key"))
    assert fixed_of_key is None, "terms without a projection are seen from the query"
    query, key = (
        _by_position(heads.to(value.dtype)) if heads is not None and (parts.dot_product or kernel is not None) else None
        for heads, kernel in ((parts.query, query_kernel), (parts.key, key_kernel))
    )
    if fixed is not None:
        fixed = fixed.expand(1, value.shape[1], 1, -1).flatten(0, 2).float()
    given = (None if part is None else part.contiguous() for part in (query_kernel, key_kernel, fixed))
    spans = parts.segments.spans()
    examples = None if spans is None else spans.expand(-1, value.shape[0], value.shape[2]).contiguous()
    seed = torch.randint(2**62, (1,), device=value.device) if dropout > 0 else None
    inputs = query, key, _by_position(value), *given, examples, seed, parts.dot_product, dropout, parts.scaling
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(value) is not Tensor
    context = _operator(*inputs)[0] if traced else _Function.apply(*inputs)
    return context.transpose(1, 2), None


def _by_position(heads: Tensor) -> Tensor:
    """(B, H, S, d) as (B, S, H, d): how projections lie in memory, so mostly without a copy."""
    return heads.transpose(1, 2).contiguous()


class Inputs(NamedTuple):
    """What attention is computed from.

    Attributes:
        query, key: (B, S, H, d), or None where neither the dot product nor a kernel needs them.
        value: (B, S, H, d).
        query_kernel, key_kernel: of the dynamic terms, (d, 2n+1) or (H, d, 2n+1), of any floating-point type.
        fixed: of the fixed ones, (H, 2n+1) float32.
        examples: (3, B, S) int32, as ``Segments.spans`` gives them, or None.
        seed: (1,) int64, of dropout.
        dot_product: whether it is in the score.
        dropout: its rate.
        scaling: 1/sqrt(d).
    """

    query: Tensor | None
    key: Tensor | None
    value: Tensor
    query_kernel: Tensor | None
    key_kernel: Tensor | None
    fixed: Tensor | None
    examples: Tensor | None
    seed: Tensor | None
    dot_product: bool
    dropout: float
    scaling: float

    @property
    def shape(self) -> BandShape:
        """B, H, S, and n, which is -1 without any term."""
        rows, length, heads, _ = self.value.shape
        kernel = next((part for part in (self.query_kernel, self.key_kernel, self.fixed) if part is not None), None)
        return BandShape(rows, heads, length, -1 if kernel is None else kernel.shape[-1] // 2)

    def outputs(self) -> "Outputs":
        """Room for what ``forward`` returns."""
        value, shape = self.value, self.shape
        log_sum_exp = value.new_empty((shape.rows, shape.heads, shape.length), dtype=torch.float32)
        filled = value.new_empty((2, shape.heads, value.shape[-1], shape.width))
        return Outputs(torch.empty_like(value), log_sum_exp, shape.new_band(value), shape.new_ends(value), filled)

    def gradients(self) -> list[Tensor]:
        """Room for the gradients of the first six, empty for None."""
        return [self.value.new_empty(0) if part is None else torch.empty_like(part) for part in self[:6]]

    def variant(self) -> tuple:
        """What kernels differ by, beside the types of tensors: for ``launch``."""
        there = (None if part is None else part.dim() for part in self[:8])
        return self.value.shape[2:], self.shape.reach, self.dot_product, self.dropout > 0, *there

    def constants(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        head_size, reach = self.value.shape[-1], max(self.shape.reach, 0)
        return {
            "HEAD_SIZE": head_size,
            "REACH": reach,
            "G": self.shape.width,
            "BLOCK_D": padded_head_size(head_size),
            "BLOCK_G": max(16, triton.next_power_of_2(2 * reach + 1)),
            "PRECISION": "ieee" if self.value.dtype == torch.float32 else "tf32",  # it matters to float32 only
        }


class Outputs(NamedTuple):
    """Of the forward pass; all but the first are for the backward pass alone.

    Attributes:
        context: (B, S, H, d).
        log_sum_exp: of a query's scores, to base 2: (B, H, S) float32.
        band, ends: as ``band`` describes them.
        kernels: of the queries and of the keys, as (2, H, d, G); what isn't there is not written.
    """

    context: Tensor
    log_sum_exp: Tensor
    band: Tensor
    ends: Tensor
    kernels: Tensor


def forward(inputs: Inputs) -> Outputs:
    """Softmax of the score, dropout, times the values."""
    outputs = inputs.outputs()
    with torch.cuda.device_of(inputs.value):
        if inputs.shape.reach >= 0:
            _fill_kernels(inputs, outputs)
            _fill_band(inputs, outputs)
        _attend(kernels.forward, 0, inputs, outputs, outputs[:2])
    return outputs


def backward(inputs: Inputs, outputs: Outputs, by_context: Tensor) -> list[Tensor]:
    """The gradients of the first six inputs, empty for None."""
    value, shape = inputs.value, inputs.shape
    query_weights = inputs.query_kernel is not None or inputs.fixed is not None
    gradients = inputs.gradients()
    by_query_weights, by_key_weights = (
        shape.new_weights(value) if there else None for there in (query_weights, inputs.key_kernel is not None)
    )
    by_band = shape.new_band(value, zeros=True)  # zeros: for keys of other examples, or none
    by_row = shape.new_ends(value)
    by_context = by_context.contiguous()
    with torch.cuda.device_of(value):
        of_query = *outputs[:2], by_context, by_row, gradients[0], by_band, by_query_weights
        _attend(kernels.backward_query, 1, inputs, outputs, of_query)
        of_key = by_context, by_row, by_band, gradients[1], gradients[2], by_key_weights
        _attend(kernels.backward_key, 2, inputs, outputs, of_key)
        if by_query_weights is not None:
            gradients[3], gradients[5] = _kernel_gradients(
                inputs, inputs.query, inputs.query_kernel, inputs.fixed, by_query_weights
            )
        if by_key_weights is not None:
            gradients[4], _ = _kernel_gradients(inputs, inputs.key, inputs.key_kernel, None, by_key_weights)
    return gradients


def _attend(kernel: Any, which: int, inputs: Inputs, outputs: Outputs, others: tuple[Tensor | None, ...]) -> None:
    """Run the ``which``-th kernel of ``TILES`` over all positions, rows and heads."""
    value, shape = inputs.value, inputs.shape
    tile = choose_tiles(value.dtype, value.shape[-1])[which]
    whole = shape.length % max(tile.queries, tile.keys) == 0
    own = tile.keys if kernel is kernels.backward_key else tile.queries
    kernels_of_sides = outputs.kernels[0], outputs.kernels[1]
    given = inputs.query, inputs.key, value, outputs.band, outputs.ends, *kernels_of_sides, *inputs[6:8], *others
    sizes, dropout = (shape.rows, shape.heads, shape.length, shape.size), inputs.dropout
    launch(
        kernel,
        (triton.cdiv(shape.length, own), shape.rows * shape.heads),
        tuple(value if part is None else part for part in given),  # what the kernel then leaves alone
        (*sizes, inputs.scaling, round(dropout * 2**16), 1 / (1 - dropout)),
        (inputs.variant(), whole),
        lambda: attention_constants(inputs, tile, whole),
    )


def attention_constants(inputs: Inputs, tile: Tile, whole: bool) -> dict[str, Any]:
    """What a kernel of ``kernels`` is compiled for; ``whole``: the rows are whole tiles."""
    return {
        **inputs.constants(),
        "PADDED": inputs.shape.padded,
        "DOT_PRODUCT": inputs.dot_product,
        "TERMS": inputs.shape.reach >= 0,
        "QUERY_WEIGHTS": inputs.query_kernel is not None or inputs.fixed is not None,
        "QUERY_TERMS": inputs.query_kernel is not None,
        "KEY_TERMS": inputs.key_kernel is not None,
        "SEGMENTS": inputs.examples is not None,
        "DROPOUT": inputs.dropout > 0,
        "WHOLE": whole,
        "I": tile.queries,
        "J": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
    }


def _fill_kernels(inputs: Inputs, outputs: Outputs) -> None:
    """Run ``band.fill_kernels`` for all heads of both sides."""
    given = inputs.query_kernel, inputs.key_kernel
    if given == (None, None):
        return
    query_stride, key_stride = (-1 if part is None else part.stride(0) if part.dim() == 3 else 0 for part in given)
    launch(
        bands.fill_kernels,
        (inputs.shape.heads, 2),
        (*(outputs.kernels if part is None else part for part in given), outputs.kernels),
        (inputs.shape.heads,),
        inputs.variant(),
        lambda: {
            **{name: inputs.constants()[name] for name in ("HEAD_SIZE", "REACH", "G", "BLOCK_D", "BLOCK_G")},
            "QUERY_STRIDE": query_stride,
            "KEY_STRIDE": key_stride,
        },
    )


def _fill_band(inputs: Inputs, outputs: Outputs) -> None:
    """Run ``band.weigh_keys``, where there are terms of keys, and ``band.fold``."""
    value, shape = inputs.value, inputs.shape
    grid = triton.cdiv(shape.length, bands.TILE), shape.rows * shape.heads
    constants = lambda: {**inputs.constants(), "TILE": bands.TILE}  # noqa: E731
    by_key = None
    if inputs.key is not None and inputs.key_kernel is not None:
        by_key = shape.new_weights(value)
        numbers = shape.rows, shape.heads, shape.length, inputs.scaling
        launch(bands.weigh_keys, grid, (inputs.key, outputs.kernels[1], by_key), numbers, inputs.variant(), constants)
    given = inputs.query, inputs.fixed, by_key
    query, fixed, weights = (value if part is None else part for part in given)
    launch(
        bands.fold,
        grid,
        (query, outputs.kernels, fixed, weights, outputs.band, outputs.ends),
        (shape.rows, shape.heads, shape.length, shape.size, inputs.scaling),
        inputs.variant(),
        lambda: {
            **constants(),
            "PADDED": shape.padded,
            "QUERY": inputs.query_kernel is not None,
            "KEY": by_key is not None,
            "FIXED": inputs.fixed is not None,
        },
    )


def _kernel_gradients(
    inputs: Inputs, projection: Tensor | None, kernel: Tensor | None, fixed: Tensor | None, by_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a side's dynamic kernel and of the fixed one, empty for None.

    Args:
        projection: (B, S, H, d).
        by_weights: gradients of the side's weights by offset, (H, B S, G).
    """
    heads, positions, _ = by_weights.shape
    size = 0 if kernel is None else inputs.value.shape[-1]
    each = -(-positions // (bands.PARTS * bands.TOKENS)) * bands.TOKENS
    count = triton.cdiv(positions, each)
    shape = count, heads, size + (fixed is not None), 2 * inputs.shape.reach + 1
    parts = by_weights.new_empty(shape, dtype=torch.float32)
    dynamic = kernel is not None
    launch(
        bands.kernel_gradient,
        (heads, count),
        (by_weights if projection is None else projection, by_weights, parts),
        (positions, heads, each, inputs.scaling),
        (inputs.variant(), dynamic, fixed is not None),
        lambda: {
            **inputs.constants(),
            "DYNAMIC": dynamic,
            "FIXED": fixed is not None,
            "TILE": bands.TOKENS,
            "num_stages": 3 if by_weights.shape[2] <= 64 else 1,  # wider ones would not fit into shared memory
        },
    )
    by_kernel = by_fixed = parts.new_empty(0)
    if kernel is not None:
        by_kernel = parts[:, :, :size].sum(0 if kernel.dim() == 3 else (0, 1)).to(kernel.dtype)
    if fixed is not None:
        by_fixed = parts[:, :, size].sum(0)
    return by_kernel, by_fixed


_SCHEMA = (
    "Tensor? query, Tensor? key, Tensor value, Tensor? query_kernel, Tensor? key_kernel, Tensor? fixed, "
    "Tensor? examples, Tensor? seed, bool dot_product, float dropout, float scaling"
)
_NAME, _DEVICES = "bert_convolutions::composite_attention", ("cpu", "cuda")
_OUTPUTS = ", ".join(f"Tensor {name}" for name in Outputs._fields)
torch.library.define(_NAME, f"({_SCHEMA}) -> ({', '.join(['Tensor'] * len(Outputs._fields))})")
torch.library.define(f"{_NAME}_backward", f"({_SCHEMA}, {_OUTPUTS}, Tensor by_context) -> Tensor[]")
_operator = torch.ops.bert_convolutions.composite_attention.default
_backward_operator = torch.ops.bert_convolutions.composite_attention_backward.default


def _forward_of(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(forward(Inputs(*inputs)))


def _backward_of(*inputs: Any) -> list[Tensor]:
    return backward(Inputs(*inputs[:11]), Outputs(*inputs[11:-1]), inputs[-1])


torch.library.impl(_NAME, _DEVICES, _forward_of)
torch.library.impl(f"{_NAME}_backward", _DEVICES, _backward_of)


@torch.library.register_fake(_NAME)
def _(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(Inputs(*inputs).outputs())


@torch.library.register_fake(f"{_NAME}_backward")
def _(*inputs: Any) -> list[Tensor]:
    return Inputs(*inputs[:11]).gradients()


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # of what is kept for backward there are none
    ctx.numbers = inputs[8:]
    ctx.save_for_backward(*inputs[:8], *output)


def _gradients(compute: Callable[..., list[Tensor]], ctx: Any, by_context: Tensor | None) -> tuple[Tensor | None, ...]:
    if by_context is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # once: a layer that is computed again is so for each reading
    inputs, output = saved[:8], saved[8:]
    gradients = compute(*inputs, *ctx.numbers, *output, by_context)
    return *(None if part is None else by for part, by in zip(inputs, gradients, strict=False)), *[None] * 5


torch.library.register_autograd(
    _NAME, lambda ctx, by_context, *_: _gradients(_backward_operator, ctx, by_context), setup_context=_keep
)


class _Function(torch.autograd.Function):
    """The same without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = forward(Inputs(*inputs))
        _keep(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_context: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(_backward_of, ctx, by_context)
