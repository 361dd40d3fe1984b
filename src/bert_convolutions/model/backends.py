"""How attention is computed: looked up by ``attn_implementation``, as everywhere in ``transformers``.

``eager`` is the equation as it stands. Every other name is a function of ``transformers``' attention interface, which
takes the convolution terms as a float mask. ``sdpa`` on a CPU is our own fused function, since PyTorch's has no fused
kernel there for dropout or for the gradient of a mask.
"""

from functools import partial
from types import SimpleNamespace

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bert_convolutions.attention.composite import Attend, ScoreParts, attend_eager
from bert_convolutions.attention.cpu import attend_fused
from bert_convolutions.errors import UsageError

# Kernels without a place for the bias: they would drop the convolution terms or the segments between examples.
_WITHOUT_BIAS = "flash_attention"
# What the interface asks of the module that calls it. Made here: a compiler breaks its graph where one is made.
_IN_TRAINING = SimpleNamespace(is_causal=False, training=True)
_IN_EVALUATION = SimpleNamespace(is_causal=False, training=False)


def attention_backend(name: str | None) -> Attend:
    """The function for an ``attn_implementation``.

    Raises:
        UsageError: for a name that the attention interface doesn't know, or a kernel that takes no float mask.
    """
    if name in (None, "eager"):
        return attend_eager
    if name == "sdpa":
        return _attend_sdpa
    if name.startswith(_WITHOUT_BIAS) or name not in ALL_ATTENTION_FUNCTIONS:
        raise UsageError(f'attn_implementation "{name}" can\'t take the convolution terms; use sdpa or eager')
    return partial(_attend_interface, name)


def _attend_sdpa(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    if value.device.type == "cpu":
        return attend_fused(parts, value, dropout)
    return _attend_interface("sdpa", parts, value, dropout)


def _attend_interface(name: str, parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
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
    module = _IN_TRAINING if dropout > 0 else _IN_EVALUATION
    context, probabilities = ALL_ATTENTION_FUNCTIONS[name](
        module, query, key, value, bias, dropout=dropout, scaling=parts.scaling, is_causal=False
    )
    return context.transpose(1, 2), probabilities
