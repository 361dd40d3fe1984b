"""The values of ``attn_implementation``, and the ways to set it."""

import copy
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForMaskedLM

from bert_convolutions.attention.composite import attend_eager
from bert_convolutions.attention.segments import Segments
from bert_convolutions.errors import UsageError
from bert_convolutions.model import backends
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.model.modeling import CompositeBertForMaskedLM
from tests.helpers import NO_DROPOUT, random_attention

triton = pytest.mark.usefixtures("small_tiles")  # which skips where Triton is not installed
PACKED = torch.tensor([[1] * 9 + [2] * 5 + [3] * 3, [1] * 13 + [0] * 4])


def config(**options):
    sizes = {"vocab_size": 40, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "attention_kernel": "qk_convfixed_convq_convk 3"}
    return CompositeBertConfig(**sizes, **heads, **NO_DROPOUT, **options)


def ways_to_set_it(folder):
    """Functions that make a model with the Triton backend, by the way in which it is set."""
    CompositeBertForMaskedLM(config()).save_pretrained(folder)

    def switched():
        model = CompositeBertForMaskedLM(config())
        model.set_attn_implementation("triton")
        return model

    return {
        "configuration": lambda: CompositeBertForMaskedLM(config(attn_implementation="triton")),
        "from_pretrained": lambda: CompositeBertForMaskedLM.from_pretrained(folder, attn_implementation="triton"),
        "Auto class": lambda: AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="triton"),
        "Auto class, configuration": lambda: AutoModelForMaskedLM.from_config(config(), attn_implementation="triton"),
        "set_attn_implementation": switched,
    }


WAYS = ["configuration", "from_pretrained", "Auto class", "Auto class, configuration", "set_attn_implementation"]


@pytest.mark.parametrize("way", WAYS)
def test_without_triton_its_backend_says_what_to_install(way, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "_HAS_KERNELS", False)
    with pytest.raises(UsageError, match=r"pip install .*bert_convolutions\[gpu\]"):
        ways_to_set_it(tmp_path)[way]()


@pytest.mark.parametrize("given", [{}, {"attn_implementation": "sdpa"}])
def test_on_a_cpu_sdpa_which_is_the_default_is_the_fused_function(given, monkeypatch):
    calls = []
    monkeypatch.setattr(backends, "attend_fused", lambda *inputs: calls.append(inputs) or attend_eager(*inputs))
    CompositeBertForMaskedLM(config(**given))(torch.zeros(2, 17, dtype=torch.long), attention_mask=PACKED)
    assert len(calls) == 2, "once a layer"


def test_sdpa_works_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    model = CompositeBertForMaskedLM(config(attn_implementation="sdpa"))
    model(torch.zeros(2, 17, dtype=torch.long), attention_mask=PACKED).logits.sum().backward()


@triton
@pytest.mark.parametrize("way", WAYS)
def test_the_triton_backend_changes_no_result_and_makes_no_dense_mask(way, tmp_path, monkeypatch, no_device_read):
    model = ways_to_set_it(tmp_path)[way]().train()
    ids = torch.randint(5, 40, PACKED.shape)
    reference = CompositeBertForMaskedLM(config(attn_implementation="eager")).train()
    reference.load_state_dict(model.state_dict())
    positions = torch.arange(0, 30, 7)
    inputs = {"attention_mask": PACKED, "labels": ids.flatten()[positions], "masked_positions": positions}
    expected = reference(ids, **inputs)
    expected.loss.backward()
    monkeypatch.setattr(Segments, "score_mask", lambda *arguments: pytest.fail("a dense mask"))
    with no_device_read:
        actual = model(ids, **inputs)
    actual.loss.backward()
    assert torch.allclose(actual.loss, expected.loss, atol=1e-5)
    for (name, first), second in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(first.grad, second.grad, atol=1e-5), name


@triton
def test_on_a_cpu_the_triton_backend_is_refused_in_favour_of_sdpa(monkeypatch):
    monkeypatch.setattr(import_module("bert_convolutions.attention.triton.engine"), "INTERPRETED", False)
    model = CompositeBertForMaskedLM(config(attn_implementation="triton"))
    with pytest.raises(UsageError, match="needs a GPU; on a CPU, sdpa"):
        model(torch.zeros(1, 5, dtype=torch.long))


@triton
def test_output_attentions_and_masks_of_pairs_are_left_to_the_equation(monkeypatch):
    ids = torch.randint(5, 40, (2, 17))
    model = CompositeBertForMaskedLM(config(attn_implementation="triton")).eval()
    reference = CompositeBertForMaskedLM(config(attn_implementation="eager")).eval()
    reference.load_state_dict(model.state_dict())
    asked = {"output_attentions": True, "attention_mask": PACKED}
    for first, second in zip(model(ids, **asked).attentions, reference(ids, **asked).attentions, strict=True):
        assert torch.equal(first, second)
    additive = torch.randn(2, 1, 17, 17)
    assert torch.equal(model(ids, attention_mask=additive).logits, reference(ids, attention_mask=additive).logits)


@triton
def test_gradient_checkpointing_repeats_the_dropout_of_the_triton_backend():
    model = CompositeBertForMaskedLM(config(attn_implementation="triton")).train()
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.3
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable()
    ids = torch.randint(5, 40, (1, 17))
    for each in (model, again):
        torch.manual_seed(1)
        each(ids, labels=ids, attention_mask=PACKED[:1]).loss.backward()
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name


@pytest.mark.parametrize(("major", "hip", "runs"), [(8, None, True), (7, None, False), (9, "7.0", False)])
def test_sdpa_uses_the_kernels_on_gpus_that_support_them(major, hip, runs, monkeypatch):
    """A Tesla T4 (7.5) has too little shared memory; Triton for AMD's GPUs lacks some of the options they use."""
    monkeypatch.setattr(backends, "_HAS_KERNELS", True)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    assert backends._sdpa_uses_kernels(torch.device("cuda")) is runs
    assert not backends._sdpa_uses_kernels(torch.device("cpu"))


class RecordedSdpa:
    """Records how ``sdpa`` of ``transformers``' attention recorded is called, and calls it."""

    def __init__(self, monkeypatch):
        self.calls, self._real = [], backends.ALL_ATTENTION_FUNCTIONS["sdpa"]
        monkeypatch.setitem(backends.ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", self)

    def __call__(self, module, query, key, value, mask, **options):
        cuda = torch.backends.cuda
        allowed = {"cudnn": cuda.cudnn_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled()}
        wanted = [part.requires_grad for part in (query, key, value)]
        self.calls.append({"dtypes": {part.dtype for part in (query, key, value, mask)}, "wanted": wanted, **allowed})
        return self._real(module, query, key, value, mask, **options)


def attend_sdpa(*arguments):
    """``sdpa`` as it is on a GPU."""
    return backends.attend_interface("sdpa", *arguments)


def test_with_a_mask_sdpa_does_not_use_cudnn(monkeypatch):
    """pytorch#196678: its backward gives NaN with a mask at lengths of 64 beyond a multiple of 128."""
    recorded = RecordedSdpa(monkeypatch)
    random_attention("qk_convq 2")(torch.randn(1, 64, 16), attend=attend_sdpa)
    assert not recorded.calls[0]["cudnn"] and recorded.calls[0]["efficient"]


def test_the_mask_has_the_dtype_of_the_queries(monkeypatch):
    """pytorch#191612: a float32 mask beside bfloat16 queries is read wrongly."""
    recorded = RecordedSdpa(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        random_attention("qk_convfixed_convk 2")(torch.randn(1, 9, 16), PACKED[:1, :9], attend=attend_sdpa)
    assert recorded.calls[0]["dtypes"] == {torch.bfloat16}


@pytest.mark.parametrize("kernel", ["convfixed 2", "qk_convfixed 2"])
def test_where_the_mask_requires_a_gradient_another_input_does_too(kernel, monkeypatch):
    """pytorch#148476 (188302): the memory-efficient backward then reads what forward has not written."""
    recorded = RecordedSdpa(monkeypatch)
    module = random_attention(kernel)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == "convfixed_param")
    hidden = torch.randn(1, 9, 16)
    output, _ = module(hidden, attend=attend_sdpa)
    (actual,) = torch.autograd.grad(output.sin().sum(), module.convfixed_param)
    (expected,) = torch.autograd.grad(module(hidden)[0].sin().sum(), module.convfixed_param)
    assert any(recorded.calls[0]["wanted"])
    assert torch.allclose(actual, expected, atol=1e-6)
