"""Earlier work as special cases of composite attention, each against an independent implementation.

Legend: B batch, S sequence, H heads, d head size, D hidden, n reach.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ConvBertConfig, DebertaConfig, T5Config, Wav2Vec2BertConfig
from transformers.models.convbert.modeling_convbert import ConvBertSelfAttention
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention, build_relative_position
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.spec import parse_kernel

BATCH, LENGTH, HIDDEN, HEADS, REACH = 2, 19, 24, 3, 4
SIZE = HIDDEN // HEADS
CLOSED = -1e4
"""A weight whose softmax is zero: it closes the offsets from the reach on."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def attention(kernel: str) -> CompositeAttention:
    module = CompositeAttention(HIDDEN, HEADS, parse_kernel(kernel))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def parameter(module: CompositeAttention, name: str) -> Tensor:
    return dict(module.named_parameters())[name]


def heads(hidden: Tensor) -> Tensor:
    return hidden.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)


def copy_linear(target: nn.Module, source: nn.Module) -> None:
    assert isinstance(target, nn.Linear) and isinstance(source, nn.Linear)
    with torch.no_grad():
        target.weight.copy_(source.weight)
        if target.bias is not None:
            target.bias.copy_(source.bias if source.bias is not None else torch.zeros_like(target.bias))


def inner(tensor: Tensor) -> Tensor:
    """Positions whose kernel lies within the sequence; beyond it, a convolution has zeros and attention no keys."""
    return tensor[:, REACH:-REACH]


@torch.no_grad()
def test_lightweight_convolution_of_wu_et_al_2019_section_3_is_convfixed_with_closed_ends() -> None:
    """LightConv: a depthwise convolution whose weights are softmax-normalised and shared within a head."""
    module, hidden = attention(f"convfixed {REACH}"), torch.randn(BATCH, LENGTH, HIDDEN)
    kernel = parameter(module, "convfixed_param")  # (1, H, 1, 2n+1)
    kernel[..., 0] = kernel[..., -1] = CLOSED
    weights = kernel[0, :, 0].softmax(-1)  # (H, 2n+1)
    value = module.value(hidden).transpose(1, 2)  # (B, D, S)
    expected = functional.conv1d(
        value, weights.repeat_interleave(SIZE, dim=0).unsqueeze(1), padding=REACH, groups=HIDDEN
    ).transpose(1, 2)
    torch.testing.assert_close(inner(module(hidden)[0]), inner(expected), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dynamic_convolution_of_wu_et_al_2019_section_4_is_convq_with_closed_ends() -> None:
    """DynamicConv: the weights of LightConv are a linear function of the current position."""
    module, hidden = attention(f"convfixed_convq {REACH}"), torch.randn(BATCH, LENGTH, HIDDEN)
    fixed = parameter(module, "convfixed_param").zero_()
    fixed[..., 0] = fixed[..., -1] = CLOSED
    kernel = parameter(module, "convq_param")  # (d, 2n+1)
    scores = heads(module.query(hidden)) @ kernel[:, 1:-1] / math.sqrt(SIZE)  # (B, H, S, 2n-1)
    value = functional.pad(heads(module.value(hidden)), (0, 0, REACH - 1, REACH - 1))
    neighbours = value.unfold(2, 2 * REACH - 1, 1)  # (B, H, S, d, 2n-1)
    expected = torch.einsum("bhsr,bhsdr->bshd", scores.softmax(-1), neighbours).flatten(2)
    torch.testing.assert_close(inner(module(hidden)[0]), inner(expected), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_relative_positions_of_shaw_et_al_2018_equation_4_are_convq() -> None:
    """Against Wav2Vec2-BERT's ``relative_key``, which adds q_i . a[clip(j - i)] to the dot product."""
    config = Wav2Vec2BertConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=REACH,
        right_max_position_embeddings=REACH,
    )
    config._attn_implementation = "eager"
    shaw = Wav2Vec2BertSelfAttention(config).eval()
    nn.init.normal_(shaw.distance_embedding.weight)
    module, hidden = attention(f"qk_convq {REACH}"), torch.randn(BATCH, LENGTH, HIDDEN)
    for name in ("query", "key", "value"):
        copy_linear(module.get_submodule(name), shaw.get_submodule(f"linear_{name[0]}"))
    parameter(module, "convq_param").copy_(shaw.distance_embedding.weight.T)
    expected = shaw(hidden)[0]
    torch.testing.assert_close(shaw.linear_out(module(hidden)[0]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_relative_biases_of_raffel_et_al_2020_section_2_1_are_convfixed() -> None:
    """T5's logarithmic buckets stop changing at the greatest distance, which is the reach."""
    distance = 12
    config = T5Config(
        d_model=HIDDEN,
        d_kv=SIZE,
        num_heads=HEADS,
        relative_attention_num_buckets=10,
        relative_attention_max_distance=distance,
        is_decoder=False,
        dropout_rate=0.0,
    )
    config._attn_implementation = "eager"
    t5 = T5Attention(config, has_relative_attention_bias=True).eval()
    nn.init.normal_(t5.relative_attention_bias.weight)
    module, hidden = attention(f"qk_convfixed {distance}"), torch.randn(BATCH, 2 * LENGTH, HIDDEN)
    for name in ("query", "key", "value"):
        copy_linear(module.get_submodule(name), t5.get_submodule(name[0]))
    module.query.weight.mul_(math.sqrt(SIZE))  # T5 doesn't divide the dot product
    buckets = t5._relative_position_bucket(torch.arange(-distance, distance + 1), True, 10, distance)
    parameter(module, "convfixed_param").copy_(t5.relative_attention_bias(buckets).T[None, :, None])
    torch.testing.assert_close(t5.o(module(hidden)[0]), t5(hidden)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mixed_attention_of_jiang_et_al_2020_equation_4_is_qk_beside_convspan() -> None:
    """Against ConvBERT's own; its heads are half as many, and half as wide, as its configuration says."""
    config = ConvBertConfig(
        hidden_size=HIDDEN, num_attention_heads=2 * HEADS, embedding_size=HIDDEN, conv_kernel_size=2 * REACH + 1
    )
    mixed = ConvBertSelfAttention(config).eval()
    for weight in mixed.parameters():
        nn.init.normal_(weight, std=0.3)
    module = CompositeAttention(HIDDEN, HEADS, parse_kernel(f"qk_convspan {REACH}"), head_size=SIZE // 2)
    for name in ("query", "key", "value"):
        copy_linear(module.get_submodule(name), mixed.get_submodule(name))
    copy_linear(module.span.kernel, mixed.conv_kernel_layer)
    copy_linear(module.span.value, mixed.conv_out_layer)
    module.span.key_conv.weight.copy_(mixed.key_conv_attn_layer.depthwise.weight)
    module.span.key_pointwise.weight.copy_(mixed.key_conv_attn_layer.pointwise.weight.squeeze(-1))
    module.span.key_pointwise.bias.copy_(mixed.key_conv_attn_layer.bias.squeeze(-1))
    hidden = torch.randn(BATCH, LENGTH, HIDDEN)
    torch.testing.assert_close(module(hidden)[0], mixed(hidden)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_disentangled_attention_of_he_et_al_2021_equation_4_is_qk_convqhead_convkhead() -> None:
    """Against DeBERTa's own; its table has a row for each distance i - j from -n to n-1, and scores are over 3d."""
    config = DebertaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        relative_attention=True,
        max_relative_positions=REACH,
        pos_att_type=["c2p", "p2c"],
    )
    deberta, table = DisentangledSelfAttention(config).eval(), torch.randn(2 * REACH, HIDDEN)
    module, hidden = attention(f"qk_convqhead_convkhead {REACH}"), torch.randn(BATCH, LENGTH, HIDDEN)
    parts = deberta.in_proj.weight.unflatten(0, (HEADS, 3, SIZE)).unbind(1)
    biases = (nn.init.normal_(deberta.q_bias), torch.zeros(HIDDEN), nn.init.normal_(deberta.v_bias))
    for name, weight, bias in zip(("query", "key", "value"), parts, biases, strict=True):
        module.get_submodule(name).weight.copy_(weight.flatten(0, 1))
        module.get_submodule(name).bias.copy_(bias)
    for weight in (module.query.weight, module.query.bias):
        weight.div_(math.sqrt(3))
    rows = torch.cat([table, table[-1:]])  # by i - j from -n to n
    keys, queries = (project(rows).unflatten(-1, (HEADS, SIZE)) for project in (deberta.pos_proj, deberta.pos_q_proj))
    parameter(module, "convqhead_param").copy_(keys.flip(0).permute(1, 2, 0))
    parameter(module, "convkhead_param").copy_(queries.permute(1, 2, 0) / math.sqrt(3))
    everywhere = torch.ones(BATCH, 1, LENGTH, LENGTH)
    expected = deberta(hidden, everywhere, relative_pos=build_relative_position(hidden, hidden), rel_embeddings=table)
    torch.testing.assert_close(module(hidden)[0], expected[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_of_vaswani_et_al_2017_equation_1_is_qk_alone() -> None:
    """Against PyTorch's own multi-head attention."""
    torch_attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
    nn.init.normal_(torch_attention.in_proj_bias)
    module, hidden = attention("dot_product"), torch.randn(BATCH, LENGTH, HIDDEN)
    parts = zip(torch_attention.in_proj_weight.chunk(3), torch_attention.in_proj_bias.chunk(3), strict=True)
    for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
        module.get_submodule(name).weight.copy_(weight)
        module.get_submodule(name).bias.copy_(bias)
    expected = torch_attention(hidden, hidden, hidden, need_weights=False)[0]
    torch.testing.assert_close(torch_attention.out_proj(module(hidden)[0]), expected, rtol=1e-5, atol=1e-5)
