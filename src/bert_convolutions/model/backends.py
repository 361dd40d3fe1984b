"""How attention is computed: looked up by ``attn_implementation``, as everywhere in ``transformers``.

``eager`` is the equation as it stands. Every other name is a function of ``transformers``' attention interface, which
takes the convolution terms as a float mask. ``sdpa`` on a CPU is our own fused function, since PyTorch's has no fused
kernel there for dropout or for the gradient of a mask. ``triton`` is our own kernel for GPUs, which needs no mask, and
what ``sdpa`` is there, for all that it takes, where Triton is installed.
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
    # The code that is saved beside a model may run without this package, and the kernels are not copied into it.
    try:
        return find_spec("triton") is not None and find_spec("bert_convolutions") is not None
    except ImportError:
        return False


_HAS_KERNELS = _has_kernels()
# Kernels without a place for a bias, or for one of each head: they would drop convolution terms or segments.
_WITHOUT_BIAS = ("flash", "flex")
# What the interface asks of the module that calls it. Made here: a compiler breaks its graph where one is made.
_IN_TRAINING = SimpleNamespace(is_causal=False, training=True)
_IN_EVALUATION = SimpleNamespace(is_causal=False, training=False)


@torch.compiler.assume_constant_result
def _runs_kernels(device: torch.device) -> bool:
    """Whether ``sdpa`` is our kernels there: on NVIDIA's GPUs, but those older than Ampere, which they don't fit."""
    if device.type != "cuda" or not _HAS_KERNELS or torch.version.hip:
        return False
    return torch.cuda.get_device_properties(device).major >= 8


def attention_backend(name: str | None) -> Attend:
    """The function for an ``attn_implementation``.

    Raises:
        UsageError: for a name that the attention interface doesn't know, a kernel that takes no float mask, or
            ``triton`` without Triton.
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


def keep_shared(segments: Segments, name: str | None, dtype: torch.dtype) -> Segments:
    """The segments with what the backend reads of them in all layers: a dense mask, or the spans that do without."""
    examples = segments.examples
    if examples is not None and (name == "triton" or (name == "sdpa" and _runs_kernels(examples.device))):
        return segments.with_spans()
    return segments.with_mask(dtype)


def _attend_sdpa(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    if value.device.type == "cpu":
        return attend_fused(parts, value, dropout)
    if _runs_kernels(value.device):
        from bert_convolutions.attention.triton import engine

        if engine.takes(parts, value):
            return engine.attend_triton(parts, value, dropout)
    return attend_interface("sdpa", parts, value, dropout)


def _attend_triton(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    from bert_convolutions.attention.triton import engine

    if not (value.is_cuda or engine.INTERPRETED):
        raise UsageError('attn_implementation "triton" needs a GPU; on a CPU, sdpa is the fast one')
    return engine.attend_triton(parts, value, dropout)


def attend_interface(name: str, parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Call a function of the attention interface by its name; otherwise an ``Attend``.

    Without a dot product its queries and keys are zeros.
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
            query = query.detach().requires_grad_()  # backward for a mask alone reads wild memory: pytorch#148476
    module = _IN_TRAINING if dropout > 0 else _IN_EVALUATION
    # With a mask, cuDNN's backward gives NaN at some lengths: pytorch#196678.
    with nullcontext() if bias is None else sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        context, probabilities = ALL_ATTENTION_FUNCTIONS[name](
            module, query, key, value, bias, dropout=dropout, scaling=parts.scaling, is_causal=False
        )
    return context.transpose(1, 2), probabilities
