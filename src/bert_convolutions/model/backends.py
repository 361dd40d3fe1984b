"""Attention backends, chosen by ``attn_implementation`` as everywhere in ``transformers``.

``eager`` is the reference implementation. ``triton`` are this package's kernels for GPUs, which need no dense mask.
``sdpa`` is this package's fused function on a CPU, where PyTorch has no fused kernel for dropout or for the gradient of
a mask, and on a GPU the ``triton`` kernels, if Triton is installed and they support the inputs. Everything else is a
function of ``transformers``' attention interface, which gets the convolution terms as a float mask.
"""

from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bert_convolutions.attention.composite import Attend, ScoreParts, attend_eager
from bert_convolutions.attention.cpu import attend_fused
from bert_convolutions.attention.segments import Segments
from bert_convolutions.errors import UsageError


def _has_kernels() -> bool:
    # The code that is saved with a model may run without this package; it doesn't contain the kernels.
    try:
        return find_spec("triton") is not None and find_spec("bert_convolutions") is not None
    except ImportError:
        return False


_HAS_KERNELS = _has_kernels()
# Kernels without a bias, or without one per head: they would silently drop convolution terms or segments.
_WITHOUT_BIAS = ("flash", "flex")
# The attributes that the interface reads from the calling module. Creating one inside a compiled graph would break it.
_IN_TRAINING = SimpleNamespace(is_causal=False, training=True)
_IN_EVALUATION = SimpleNamespace(is_causal=False, training=False)


@torch.compiler.assume_constant_result
def _sdpa_uses_kernels(device: torch.device) -> bool:
    """Whether ``sdpa`` uses the Triton kernels: on NVIDIA GPUs from Ampere on; on older ones they don't fit."""
    if device.type != "cuda" or not _HAS_KERNELS or torch.version.hip:
        return False
    return torch.cuda.get_device_properties(device).major >= 8


def attention_backend(name: str | None) -> Attend:
    """The attention function of an ``attn_implementation``.

    Raises:
        UsageError: the attention interface doesn't know the name, the kernel supports no float mask, or Triton is not
            installed for ``triton``.
    """
    if name in (None, "eager"):
        return attend_eager
    if name == "sdpa":
        return _attend_sdpa
    if name == "triton":
        if not _HAS_KERNELS:
            raise UsageError(
                'attn_implementation "triton" needs the package triton: pip install "bert_convolutions[gpu]"'
            )
        return _attend_triton
    if any(word in name for word in _WITHOUT_BIAS) or name not in ALL_ATTENTION_FUNCTIONS:
        raise UsageError(f'attn_implementation "{name}" can\'t take the convolution terms; use sdpa or eager')
    return partial(attend_interface, name)


def cache_for_backend(segments: Segments, name: str | None, dtype: torch.dtype) -> Segments:
    """Compute once, for all layers, what the backend reads from the segments: a dense mask, or the spans instead."""
    examples = segments.examples
    if examples is not None and (name == "triton" or (name == "sdpa" and _sdpa_uses_kernels(examples.device))):
        return segments.with_spans()
    return segments.with_mask(dtype)


def _attend_sdpa(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    if value.device.type == "cpu":
        return attend_fused(parts, value, dropout)
    if _sdpa_uses_kernels(value.device):
        from bert_convolutions.attention.triton import engine

        if engine.supports(parts, value):
            return engine.attend_triton(parts, value, dropout)
    return attend_interface("sdpa", parts, value, dropout)


def _attend_triton(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    from bert_convolutions.attention.triton import engine

    if not (value.is_cuda or engine.INTERPRETED):
        raise UsageError('attn_implementation "triton" needs a GPU; on a CPU, sdpa is the fastest')
    return engine.attend_triton(parts, value, dropout)


def attend_interface(name: str, parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """An ``Attend`` that calls the function ``name`` of the attention interface.

    Without a dot product, its queries and keys are zeros.
    """
    batch, heads, length, _ = value.shape
    if parts.dot_product and parts.query is not None and parts.key is not None:
        query, key = parts.query.to(value.dtype), parts.key.to(value.dtype)
    else:
        query = key = value.new_zeros(value.shape)
    bias = parts.bias(length)
    if bias is not None:
        bias = bias.expand(batch, heads, length, length)
        if bias.requires_grad and not (query.requires_grad or key.requires_grad or value.requires_grad):
            query = query.detach().requires_grad_()  # backward of the mask alone reads invalid memory: pytorch#148476
    module = _IN_TRAINING if dropout > 0 else _IN_EVALUATION
    # With a mask, cuDNN's backward returns NaN for some lengths: pytorch#196678.
    with nullcontext() if bias is None else sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        context, probabilities = ALL_ATTENTION_FUNCTIONS[name](
            module, query, key, value, bias, dropout=dropout, scaling=parts.scaling, is_causal=False
        )
    return context.transpose(1, 2), probabilities
