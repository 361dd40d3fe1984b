"""Composite attention on a GPU, at about the price of plain attention, with nothing of size S x S in memory.

For keys at least n to the right of the query, each term depends on the query or on the key alone, so the score is the
dot product of a shifted query and a shifted key, plus a constant, and likewise on the left:

    q.k + q.Cq[n] + k.Ck[-n] + sqrt(d) f[n] = (q + Ck[-n]).(k + Cq[n]) - Ck[-n].Cq[n] + sqrt(d) f[n]  (over sqrt(d))

``kernels`` describes how this is used. Only nearer pairs, 2n-1 per query, have weights of their own: the band. Besides
queries, keys, values and context, backward needs the band, four vectors and one number per row of the softmax, all
linear in S.

For PyTorch's compiler, forward and backward are custom operators. Otherwise they are an autograd function, whose calls
take a third of the time: with short rows, Python is the bottleneck, not the GPU.

Legend: B rows, S sequence, H heads, d head size, n reach, G 2n+1 (the width of a kernel) rounded up to a multiple of 8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bert_convolutions.attention.autograd import func_transform_active, once_differentiable
from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.triton import band as bands
from bert_convolutions.attention.triton import kernels
from bert_convolutions.attention.triton.band import BandShape
from bert_convolutions.attention.triton.launch import Tile, choose_tiles, launch, padded_head_size

INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether Triton interprets the kernels on a CPU, for tests: TRITON_INTERPRET=1 was set when they were imported."""

LARGEST_HEAD = 128
LARGEST_REACH = 63
"""Weights by offset of more than 128 columns exceed the shared memory of some GPUs."""
MOST_MATRICES = 2**16 - 1
"""Most rows times heads: CUDA's limit for the second dimension of a grid."""
# Triton's interpreter multiplies bfloat16 numbers as if their bits were integers.
_DTYPES = {torch.float32, torch.float16} | (set() if INTERPRETED else {torch.bfloat16})


def supports(parts: ScoreParts, value: Tensor) -> bool:
    """Whether the kernels support these inputs: no mask of pairs, no float64, and sizes within the limits above."""
    rows, heads, _, head_size = value.shape
    fits = (
        head_size <= LARGEST_HEAD
        and rows * heads <= MOST_MATRICES
        and (not parts.terms or parts.reach <= LARGEST_REACH)
    )
    return fits and parts.segments.pairs is None and value.dtype in _DTYPES


def attend_triton(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """``attend_eager`` without the probabilities, on a GPU. The dropout rate is rounded to 1/65536.

    Falls back to ``attend_eager`` for inputs that the kernels don't support.
    """
    if not supports(parts, value) or func_transform_active():
        return attend_eager(parts, value, dropout)
    (query_kernel, fixed), (key_kernel, key_fixed) = (parts.kernel(side) for side in ("query", "key"))
    assert key_fixed is None, "fixed terms belong to the query"
    query, key = (
        _token_major(heads.to(value.dtype)) if heads is not None and (parts.dot_product or kernel is not None) else None
        for heads, kernel in ((parts.query, query_kernel), (parts.key, key_kernel))
    )
    if fixed is not None:
        fixed = fixed.expand(1, value.shape[1], 1, -1).flatten(0, 2).float()
    given = (None if part is None else part.contiguous() for part in (query_kernel, key_kernel, fixed))
    spans = parts.segments.spans()
    examples = None if spans is None else spans.expand(-1, value.shape[0], value.shape[2]).contiguous()
    seed = torch.randint(2**62, (1,), device=value.device) if dropout > 0 else None
    inputs = query, key, _token_major(value), *given, examples, seed, parts.dot_product, dropout, parts.scaling
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(value) is not Tensor
    context = _operator(*inputs)[0] if traced else _Function.apply(*inputs)
    return context.transpose(1, 2), None


def _token_major(heads: Tensor) -> Tensor:
    """(B, H, S, d) as (B, S, H, d), the memory layout of projections, so mostly without a copy."""
    return heads.transpose(1, 2).contiguous()


class Inputs(NamedTuple):
    """The inputs of the attention.

    Attributes:
        query, key: (B, S, H, d), or None if neither the dot product nor a kernel needs them.
        value: (B, S, H, d).
        query_kernel, key_kernel: summed dynamic kernels, (d, 2n+1) or (H, d, 2n+1), of any floating dtype; or None.
        fixed: summed fixed kernels, (H, 2n+1) float32, or None.
        examples: (3, B, S) int32, from ``Segments.spans``, or None.
        seed: (1,) int64, for dropout, or None.
        dot_product: whether the score includes the dot product.
        dropout: dropout rate.
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
        """B, H, S and n, which is -1 without convolution terms."""
        rows, length, heads, _ = self.value.shape
        kernel = next((part for part in (self.query_kernel, self.key_kernel, self.fixed) if part is not None), None)
        return BandShape(rows, heads, length, -1 if kernel is None else kernel.shape[-1] // 2)

    def outputs(self) -> "Outputs":
        """Allocate the outputs of ``forward``."""
        value, shape = self.value, self.shape
        log_sum_exp = value.new_empty((shape.rows, shape.heads, shape.length), dtype=torch.float32)
        filled = value.new_empty((2, shape.heads, value.shape[-1], shape.width))
        return Outputs(torch.empty_like(value), log_sum_exp, shape.new_band(value), shape.new_ends(value), filled)

    def gradients(self) -> list[Tensor]:
        """Allocate the gradients of the first six inputs; empty tensors for None."""
        return [self.value.new_empty(0) if part is None else torch.empty_like(part) for part in self[:6]]

    def variant(self) -> tuple:
        """What distinguishes compiled kernels besides the dtypes of tensors, for ``launch``."""
        dimensions = (None if part is None else part.dim() for part in self[:8])
        return self.value.shape[2:], self.shape.reach, self.dot_product, self.dropout > 0, *dimensions

    def constants(self) -> dict[str, Any]:
        """The compile-time constants of all kernels."""
        head_size, reach = self.value.shape[-1], max(self.shape.reach, 0)
        return {
            "HEAD_SIZE": head_size,
            "REACH": reach,
            "G": self.shape.width,
            "BLOCK_D": padded_head_size(head_size),
            "BLOCK_G": max(16, triton.next_power_of_2(2 * reach + 1)),
            "PRECISION": "ieee" if self.value.dtype == torch.float32 else "tf32",  # it affects float32 only
        }


class Outputs(NamedTuple):
    """The outputs of the forward pass; all but ``context`` are for the backward pass only.

    Attributes:
        context: (B, S, H, d).
        log_sum_exp: of each query's scores, in base 2: (B, H, S) float32.
        band, ends: the weights of the convolution terms, see ``band``.
        kernels: the padded kernels of the queries and of the keys, (2, H, d, G); an absent one is not written.
    """

    context: Tensor
    log_sum_exp: Tensor
    band: Tensor
    ends: Tensor
    kernels: Tensor


def forward(inputs: Inputs) -> Outputs:
    """Compute softmax(score), with dropout, times the values."""
    outputs = inputs.outputs()
    with torch.cuda.device_of(inputs.value):
        if inputs.shape.reach >= 0:
            _fill_kernels(inputs, outputs)
            _fill_band(inputs, outputs)
        _attend(kernels.forward, 0, inputs, outputs, outputs[:2])
    return outputs


def backward(inputs: Inputs, outputs: Outputs, grad_context: Tensor) -> list[Tensor]:
    """Compute the gradients of the first six inputs; empty tensors for None."""
    value, shape = inputs.value, inputs.shape
    query_weights = inputs.query_kernel is not None or inputs.fixed is not None
    gradients = inputs.gradients()
    grad_query_weights, grad_key_weights = (
        shape.new_weights(value) if needed else None for needed in (query_weights, inputs.key_kernel is not None)
    )
    grad_band = shape.new_band(value, zeros=True)  # zeros for pairs of different examples or outside of the row
    row_statistics = shape.new_ends(value)
    grad_context = grad_context.contiguous()
    with torch.cuda.device_of(value):
        query_tensors = *outputs[:2], grad_context, row_statistics, gradients[0], grad_band, grad_query_weights
        _attend(kernels.backward_query, 1, inputs, outputs, query_tensors)
        key_tensors = grad_context, row_statistics, grad_band, gradients[1], gradients[2], grad_key_weights
        _attend(kernels.backward_key, 2, inputs, outputs, key_tensors)
        if grad_query_weights is not None:
            gradients[3], gradients[5] = _kernel_gradients(
                inputs, inputs.query, inputs.query_kernel, inputs.fixed, grad_query_weights
            )
        if grad_key_weights is not None:
            gradients[4], _ = _kernel_gradients(inputs, inputs.key, inputs.key_kernel, None, grad_key_weights)
    return gradients


def _attend(kernel: Any, which: int, inputs: Inputs, outputs: Outputs, others: tuple[Tensor | None, ...]) -> None:
    """Launch a kernel, the ``which``-th in ``TILES``, for all positions, rows and heads."""
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
        tuple(value if part is None else part for part in given),  # a placeholder that the kernel doesn't read
        (*sizes, inputs.scaling, round(dropout * 2**16), 1 / (1 - dropout)),
        (inputs.variant(), whole),
        lambda: attention_constants(inputs, tile, whole),
    )


def attention_constants(inputs: Inputs, tile: Tile, whole: bool) -> dict[str, Any]:
    """The compile-time constants of a kernel of ``kernels``; ``whole``: S is a multiple of the tile sizes."""
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
    """Launch ``band.fill_kernels`` for all heads of both sides."""
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
    """Launch ``band.weigh_keys``, if keys have dynamic terms, and ``band.fold``."""
    value, shape = inputs.value, inputs.shape
    tile = bands.TILE[value.dtype.itemsize]
    grid = triton.cdiv(shape.length, tile), shape.rows * shape.heads
    options = lambda: {**inputs.constants(), "TILE": tile}  # noqa: E731
    key_weights = None
    if inputs.key is not None and inputs.key_kernel is not None:
        key_weights = shape.new_weights(value)
        sizes = shape.rows, shape.heads, shape.length, inputs.scaling
        launch(bands.weigh_keys, grid, (inputs.key, outputs.kernels[1], key_weights), sizes, inputs.variant(), options)
    given = inputs.query, inputs.fixed, key_weights
    query, fixed, weights = (value if part is None else part for part in given)
    launch(
        bands.fold,
        grid,
        (query, outputs.kernels, fixed, weights, outputs.band, outputs.ends),
        (shape.rows, shape.heads, shape.length, shape.size, inputs.scaling),
        inputs.variant(),
        lambda: {
            **options(),
            "PADDED": shape.padded,
            "QUERY": inputs.query_kernel is not None,
            "KEY": key_weights is not None,
            "FIXED": inputs.fixed is not None,
        },
    )


def _kernel_gradients(
    inputs: Inputs, projection: Tensor | None, kernel: Tensor | None, fixed: Tensor | None, grad_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of a side's dynamic kernel and of the fixed kernel; empty tensors for None.

    Args:
        projection: queries or keys (B, S, H, d).
        grad_weights: gradients of the side's weights by offset, (H, B S, G).
    """
    heads, positions, _ = grad_weights.shape
    size = 0 if kernel is None else inputs.value.shape[-1]
    each = max(-(-positions // (bands.PARTS * bands.TOKENS)), 1) * bands.TOKENS
    count = triton.cdiv(positions, each)
    shape = count, heads, size + (fixed is not None), 2 * inputs.shape.reach + 1
    parts = grad_weights.new_empty(shape, dtype=torch.float32)
    dynamic, wide = kernel is not None, grad_weights.shape[2] > 64  # which takes more registers and shared memory
    launch(
        bands.kernel_gradient,
        (heads, count),
        (grad_weights if projection is None else projection, grad_weights, parts),
        (positions, heads, each, inputs.scaling),
        (inputs.variant(), dynamic, fixed is not None),
        lambda: {
            **inputs.constants(),
            "DYNAMIC": dynamic,
            "FIXED": fixed is not None,
            "TILE": bands.TOKENS // 2 if wide else bands.TOKENS,
            "num_stages": 2,
        },
    )
    grad_kernel = grad_fixed = parts.new_empty(0)
    if kernel is not None:
        grad_kernel = parts[:, :, :size].sum(0 if kernel.dim() == 3 else (0, 1)).to(kernel.dtype)
    if fixed is not None:
        grad_fixed = parts[:, :, size].sum(0)
    return grad_kernel, grad_fixed


_SCHEMA = (
    "Tensor? query, Tensor? key, Tensor value, Tensor? query_kernel, Tensor? key_kernel, Tensor? fixed, "
    "Tensor? examples, Tensor? seed, bool dot_product, float dropout, float scaling"
)
_NAME, _DEVICES = "bert_convolutions::composite_attention", ("cpu", "cuda")
_OUTPUTS = ", ".join(f"Tensor {name}" for name in Outputs._fields)
torch.library.define(_NAME, f"({_SCHEMA}) -> ({', '.join(['Tensor'] * len(Outputs._fields))})")
torch.library.define(f"{_NAME}_backward", f"({_SCHEMA}, {_OUTPUTS}, Tensor grad_context) -> Tensor[]")
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


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # outputs saved for backward have no gradients
    ctx.numbers = inputs[8:]
    ctx.save_for_backward(*inputs[:8], *output)


def _grads(compute: Callable[..., list[Tensor]], ctx: Any, grad_context: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_context is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # read once: with checkpointing, each access recomputes the layer
    inputs, output = saved[:8], saved[8:]
    gradients = compute(*inputs, *ctx.numbers, *output, grad_context)
    return *(None if part is None else gradient for part, gradient in zip(inputs, gradients, strict=False)), *[None] * 5


torch.library.register_autograd(
    _NAME, lambda ctx, grad_context, *_: _grads(_backward_operator, ctx, grad_context), setup_context=_save
)


class _Function(torch.autograd.Function):
    """The operator without the overhead of PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = forward(Inputs(*inputs))
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_context: Tensor | None) -> tuple[Tensor | None, ...]:
        return _grads(_backward_of, ctx, grad_context)
