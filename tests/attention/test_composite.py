"""The score equation against loops, and the properties that hold for every layout of a batch."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from bert_convolutions.attention.composite import CompositeAttention, attend_eager
from bert_convolutions.attention.cpu import dropout as cpu_dropout
from bert_convolutions.attention.cpu import tiles
from bert_convolutions.attention.cpu.dropout import Dropout, draw_keep_mask, random_words
from bert_convolutions.attention.cpu.fused import attend_fused
from bert_convolutions.attention.offsets import expand_offsets
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.spec import AttentionKernel, parse_kernel, parse_projection
from bert_convolutions.attention.terms import TERMS, Term
from bert_convolutions.errors import UsageError
from bert_convolutions.model.backends import attend_interface, attention_backend
from tests.helpers import TERM_SUBSETS, packed_mask, random_attention

CONVOLUTIONS = ["", "_convolution", "_convolution_scaled", "_convspan"]


def make(kernel, *shape, **options):
    return random_attention(kernel, *shape, **options).double()


@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("reach", [0, 1, 4])
def test_weights_by_offset_are_expanded_and_clipped_at_the_reach(length, reach):
    weights = torch.randn(2, 3, length, 2 * reach + 1)
    scores = expand_offsets(weights, length)
    for row, other in itertools.product(range(length), repeat=2):
        offset = min(max(other - row, -reach), reach)
        assert torch.equal(scores[..., row, other], weights[..., row, reach + offset])


@pytest.mark.parametrize("subset", TERM_SUBSETS)
def test_the_score_is_the_sum_of_its_terms(subset):
    length, reach = 9, 3
    module = make(f"{subset} {reach}")
    hidden = torch.randn(1, length, 16, dtype=torch.float64)
    query, key = (module.project(name, hidden, Segments()) for name in ("query", "key"))
    _, probabilities = module(hidden)
    scores, names = torch.zeros(2, length, length, dtype=torch.float64), set(subset.split("_"))
    for head, i, j in itertools.product(range(2), range(length), range(length)):
        ahead, behind = (min(max(r, -reach), reach) + reach for r in (j - i, i - j))
        if "qk" in names:
            scores[head, i, j] += query[0, head, i] @ key[0, head, j] / 8**0.5
        if "convfixed" in names:
            scores[head, i, j] += module.convfixed_param[0, head, 0, ahead]
        if "convq" in names:
            scores[head, i, j] += query[0, head, i] @ module.convq_param[:, ahead] / 8**0.5
        if "convk" in names:
            scores[head, i, j] += key[0, head, j] @ module.convk_param[:, behind] / 8**0.5
        if "convqhead" in names:
            scores[head, i, j] += query[0, head, i] @ module.convqhead_param[head, :, ahead] / 8**0.5
        if "convkhead" in names:
            scores[head, i, j] += key[0, head, j] @ module.convkhead_param[head, :, behind] / 8**0.5
    assert torch.allclose(probabilities[0], scores.softmax(-1))
    assert (query is None) == (not {"qk", "convq", "convqhead"} & names)
    assert (key is None) == (not {"qk", "convk", "convkhead"} & names)


BACKENDS = {"fused": attend_fused, "sdpa": lambda *arguments: attend_interface("sdpa", *arguments)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 7, 128, 129, 512])
@pytest.mark.parametrize("subset", TERM_SUBSETS)
def test_backends_agree_with_the_equation(subset, length, backend):
    module = make(f"{subset} 4")
    hidden = torch.randn(2, length, 16, dtype=torch.float64)
    for mask in (None, torch.arange(length) // 23 + 1, (torch.arange(length) < max(1, length // 2)).long()):
        results = []
        for attend in (attend_eager, BACKENDS[backend]):
            module.zero_grad()
            inputs = hidden.clone().requires_grad_()
            output, _ = module(inputs, None if mask is None else mask.expand(2, -1), attend=attend)
            (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
            results.append([output, inputs.grad, *[parameter.grad for parameter in module.parameters()]])
        for expected, actual in zip(*results, strict=True):
            if expected is not None:
                assert torch.allclose(expected, actual, atol=1e-10)


def test_a_new_term_is_one_declaration(monkeypatch):
    """The example of CONTRIBUTING.md: a fixed convolution that falls off on both sides alike, from the key as well."""
    length, reach = 25, 3
    for side in ("query", "key"):
        mirrored = Term(
            side=side,
            dynamic=False,
            shape=lambda heads, head_size, width: (1, heads, 1, width // 2 + 1),
            initial="zeros",
            kernel=lambda parameter: torch.cat([parameter.flip(-1), parameter[..., 1:]], dim=-1),
        )
        monkeypatch.setitem(TERMS, "mirrored", mirrored)
        module = CompositeAttention(16, 2, AttentionKernel(("qk", "mirrored"), reach=reach)).double()
        nn.init.normal_(module.mirrored_param)
        hidden = torch.randn(2, length, 16, dtype=torch.float64)
        query, key = (module.project(name, hidden, Segments()) for name in ("query", "key"))
        distance = (torch.arange(length) - torch.arange(length).unsqueeze(1)).abs().clamp(max=reach)
        scores = query @ key.mT / 8**0.5 + module.mirrored_param[:, :, 0][..., distance]
        outputs, gradients = [], []
        for attend in (attend_eager, attend_fused):
            output, probabilities = module(hidden, attend=attend)
            gradients.append(torch.autograd.grad(output.sin().sum(), module.mirrored_param)[0])
            outputs.append(output)
            assert probabilities is None or torch.allclose(probabilities, scores.softmax(-1))
        assert torch.allclose(*outputs) and torch.allclose(*gradients)


@pytest.fixture
def nan_in_new_memory():
    """NaN in all memory that isn't initialised, as PyTorch does with deterministic algorithms."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("scores_at_once", [50, 600, 3000])
@pytest.mark.parametrize("reach", [0, 1, 2, 8])
@pytest.mark.parametrize("subset", ["qk", "convk", "qk_convfixed", "convq_convk", "qk_convfixed_convq_convk"])
def test_the_size_of_a_tile_changes_no_result(subset, reach, scores_at_once, monkeypatch, nan_in_new_memory):
    """A tile is a few examples, a few heads of one, or some rows of a matrix; no row is shorter than a kernel."""
    monkeypatch.setattr(tiles, "SCORES_AT_ONCE", scores_at_once)
    module = make(f"{subset} {reach}", hidden_size=12, heads=3)
    for length in (2 * reach + 1, 2 * reach + 2, 23):
        hidden = torch.randn(4, length, 12, dtype=torch.float64)
        pairs = torch.rand(4, 3, length, length) > 0.3
        pairs |= torch.eye(length, dtype=torch.bool)  # so that no query is left without a key
        shared = (pairs[:1, :1], pairs[:, :1, :1])  # the same for all examples and heads; the same for all queries
        for mask in (None, (torch.arange(length) // 5 + 1).expand(4, -1), pairs, *shared):
            outputs, gradients = [], []
            for attend in (attend_eager, attend_fused):
                inputs = hidden.clone().requires_grad_()
                output, _ = module(inputs, mask, attend=attend)
                wanted = [inputs, *module.parameters()]
                gradients.append(torch.autograd.grad(output.sin().sum(), wanted, allow_unused=True))
                outputs.append(output)
            assert torch.allclose(*outputs, atol=1e-10)
            for expected, actual in zip(*gradients, strict=True):
                assert (actual is None and expected is None) or torch.allclose(expected, actual, atol=1e-10)


def test_in_half_precision_a_convolution_is_as_exact_as_the_dot_product():
    """The fused function adds a kernel's last weights to queries instead of scores, which costs no precision."""
    torch.manual_seed(1)
    errors = {}
    for kernel in ("dot_product", "qk_convfixed_convq_convk 8"):
        module = CompositeAttention(64, 2, parse_kernel(kernel)).eval()
        hidden = torch.randn(2, 90, 64)
        expected = module(hidden)[0]
        with torch.autocast("cpu", torch.bfloat16):
            actual = module(hidden, attend=attend_fused)[0]
        errors[kernel] = (actual.float() - expected).abs().mean().item()
    assert errors["qk_convfixed_convq_convk 8"] < 1.5 * errors["dot_product"]


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("value", "query_key"),
    [
        ("feedforward", "linear"),
        ("convolution 2 4", "linear"),
        ("convolution_depth 2 1", "convolution_depth_mixed_no_act 3 1"),
        ("convolution_mixed 1 2", "convolution 2 1"),
        ("convolution_depth_mixed_no_act 3 1", "convolution_mixed_no_act 2 1"),
    ],
)
def test_padding_and_packing_change_no_output(convolution, value, query_key):
    module = make(
        f"qk_convfixed_convq_convk{convolution} 3",
        value=parse_projection(value, "value_forward"),
        query_key=parse_projection(query_key, "qk"),
    )
    lengths = (11, 4, 20, 1)
    examples = [torch.randn(1, length, 16, dtype=torch.float64) for length in lengths]
    alone = [module(example)[0] for example in examples]
    for row_length in (36, 50):
        garbage = 100 * torch.randn(1, row_length - 36, 16, dtype=torch.float64)
        for attend in (attend_eager, attend_fused):
            mask = packed_mask(*lengths, padding=(0, row_length - 36))
            packed, _ = module(torch.cat([*examples, garbage], dim=1), mask, attend=attend)
            assert torch.allclose(packed[:, :36], torch.cat(alone, dim=1), atol=1e-10)
    left_padded = torch.cat([torch.randn(1, 5, 16, dtype=torch.float64), examples[0]], dim=1)
    output, _ = module(left_padded, torch.tensor([[0] * 5 + [1] * 11]))
    assert torch.allclose(output[:, 5:], alone[0], atol=1e-10)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("subset", TERM_SUBSETS)
@pytest.mark.parametrize("remove_query_key", [False, True])
def test_every_kernel_trains_all_its_parameters(subset, convolution, remove_query_key):
    module = make(f"{subset}{convolution} 2", remove_query_key=remove_query_key)
    output, _ = module(torch.randn(2, 6, 16, dtype=torch.float64))
    output.square().sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    assert ("convolution_scalar" in module.state_dict()) == convolution.startswith("_convolution")
    assert ("convolution_scalar" in dict(module.named_parameters())) == (convolution == "_convolution_scaled")


@pytest.mark.parametrize("head_size", [1, 3, 8, 16])
@pytest.mark.parametrize(
    "form", ["convolution 1 1", "convolution_depth 1 1", "convolution_depth_mixed 1 1", "feedforward"]
)
def test_every_projection_takes_any_head_size(head_size, form):
    module = make("qk_convq_convolution 2", head_size=head_size, value=parse_projection(form, "value_forward"))
    output, _ = module(torch.randn(2, 5, 16, dtype=torch.float64))
    assert output.shape == (2, 5, 2 * head_size)


def test_incompatible_sizes_and_backends_are_refused():
    with pytest.raises(ValueError, match="head_size"):
        make("dot_product", heads=3)
    with pytest.raises(ValueError, match="remove_query_key"):
        make("dot_product", head_size=4, remove_query_key=True)
    for groups, head_size in ((3, 8), (3, 12), (4, 3)):  # they divide neither, only H*d, only D
        with pytest.raises(ValueError, match=f"{groups} groups, which must divide 16 and {2 * head_size} channels"):
            make("dot_product", head_size=head_size, value=parse_projection(f"convolution 1 {groups}", "value_forward"))
    for name in ("flash_attention_2", "flex_attention"):  # flex_attention takes one bias for all heads only
        with pytest.raises(UsageError, match=name):
            attention_backend(name)


def test_a_span_is_from_the_first_to_the_last_token_of_an_example():
    """Also with padding on both sides, examples in two parts, and numbers greater than the length of the row."""
    rows = [[1, 1, 1, 2, 3, 3, 0, 0], [0, 0, 1, 1, 2, 2, 2, 0], [1, 0, 1, 1, 1, 0, 0, 1], [9, 70, 70, 71, -3, 0, 0, 0]]
    segments = Segments.from_mask(torch.tensor(rows)).with_spans()
    numbers, first, last = segments.spans()
    assert segments.spans() is segments.cached_spans and Segments().with_spans().spans() is None
    for b, row in enumerate(rows):
        for i, number in enumerate(row):
            same = [j for j, other in enumerate(row) if other == number]
            if b < 3:
                assert (first[b, i], last[b, i]) == (same[0], same[-1])
            assert first[b, i] <= same[0] and same[-1] <= last[b, i]
            assert [j for j, other in enumerate(numbers[b]) if other == numbers[b, i]] == same
            if numbers[b, i] >= 0:  # nothing else lies in the span
                assert same == list(range(first[b, i], last[b, i] + 1))
    assert (numbers[0] >= 0).all() and (numbers[1:].min(dim=1).values < 0).all()


def test_masks_of_pairs_equal_a_mask_of_example_numbers():
    module = make("qk_convfixed 2")
    hidden = torch.randn(1, 6, 16, dtype=torch.float64)
    numbers = packed_mask(4, padding=(0, 2))
    pairs = (numbers.unsqueeze(2) == numbers.unsqueeze(1)).unsqueeze(1)
    expected, _ = module(hidden, numbers)
    for mask in (pairs, pairs.long(), torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min)):
        assert torch.allclose(module(hidden, mask)[0], expected)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_its_gradient(rate):
    kept = draw_keep_mask(torch.empty(1000, 1001), rate)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.003)
    assert kept.mean(0).std().item() == pytest.approx((rate * (1 - rate) / 1000) ** 0.5, rel=0.15)
    hidden = torch.ones(999, requires_grad=True)
    output = Dropout(rate)(hidden)
    output.sum().backward()
    assert torch.equal(output, hidden.grad) and output.max().item() == pytest.approx(1 / (1 - rate))
    assert torch.equal(Dropout(rate).eval()(hidden), hidden)


def test_dropout_on_a_cpu_draws_fast_random_numbers():
    torch.manual_seed(5)
    output = Dropout(0.3)(torch.ones(100))
    torch.manual_seed(5)
    assert torch.allclose(output, draw_keep_mask(torch.empty(100), 0.3) / 0.7)
    assert not Dropout(1.0)(torch.ones(9)).any()
    assert draw_keep_mask(torch.empty(9999), 0.999999).mean() < 0.01


def test_random_words_are_the_hash_of_a_counter():
    """Against the same in Python's integers, with the constants of SplitMix64 and degski64."""
    torch.manual_seed(3)
    words = random_words(1000).tolist()
    torch.manual_seed(3)
    start = int(torch.randint(2**63 - 1, ()))
    for number, word in enumerate(words):
        value = (start + number * 0x9E3779B97F4A7C15) % 2**64
        for _ in range(2):
            value = (value ^ value >> 32) * 0xD6E8FEB86659FD93 % 2**64
        assert word % 2**64 == value ^ value >> 32


@pytest.mark.parametrize("elements", [0, 1, 6, 8, 9, 21])
def test_a_mask_is_drawn_in_parts_of_any_size(elements, monkeypatch):
    monkeypatch.setattr(cpu_dropout, "_WORDS_AT_ONCE", 2)
    torch.manual_seed(1)
    whole = draw_keep_mask(torch.full((elements,), -1.0), 0.5)
    torch.manual_seed(1)
    parts = [draw_keep_mask(torch.full((min(8, elements - start),), -1.0), 0.5) for start in range(0, elements, 8)]
    assert torch.equal(whole, torch.cat(parts)) if parts else not elements
    assert ((whole == 0) | (whole == 1)).all()


def test_masks_of_successive_draws_are_independent():
    """The largest of all correlations between masks, and within one at any distance, is that of independent draws."""
    torch.manual_seed(0)
    masks = torch.stack([draw_keep_mask(torch.empty(2**14), 0.1) for _ in range(100)])
    standard = (masks - masks.mean()) / masks.std()
    between = (standard @ standard.T / 2**7).triu(1)
    within = torch.fft.irfft(torch.fft.rfft(standard).abs() ** 2)[:, 1 : 2**13].sum(0) / (100 * 2**14) ** 0.5
    assert between.abs().max() < 5 and between[between != 0].std() == pytest.approx(1, abs=0.05)
    assert within.abs().max() < 5 and within.std() == pytest.approx(1, abs=0.05)


def test_the_fused_backend_applies_dropout_to_probabilities():
    module = make("qk_convfixed_convq_convk 2", dropout=0.3).train()
    hidden = torch.randn(4, 30, 16, dtype=torch.float64, requires_grad=True)
    draws = torch.stack([module(hidden, attend=attend_fused)[0].detach() for _ in range(400)])
    expected, _ = module.eval()(hidden)
    deviation = (draws.mean(0) - expected).abs() / (draws.std(0) / 20 + 1e-9)
    assert deviation.median() < 1.0 and deviation.max() < 7


def test_a_training_step_works_after_inference_mode():
    """What the backend caches in inference mode must be usable in a later pass with gradients."""
    module = make("qk_convfixed_convq_convk 7")  # a reach that no other test uses, so nothing is cached yet
    hidden = torch.randn(2, 19, 16, dtype=torch.float64)
    with torch.inference_mode():
        module(hidden, attend=attend_fused)
    module(hidden, attend=attend_fused)[0].sum().backward()


def _pruned(module):
    prune.random_unstructured(module, "convq_param", amount=0.5)
    prune.identity(module, "convfixed_param")


def _parametrized(module):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(module, "convq_param", Twice())
    parametrize.register_parametrization(module, "convolution_scalar", Twice(), unsafe=True)


@pytest.mark.parametrize("change", [_pruned, _parametrized])
def test_a_term_uses_the_tensor_that_replaces_its_parameter(change):
    """Pruning, parametrizations (so also LoRA of parameters) and ``functional_call`` replace parameters."""
    module = make("qk_convfixed_convq_convk_convolution_scaled 2")
    hidden = torch.randn(2, 7, 16, dtype=torch.float64)
    plain = {name: value.detach().clone() for name, value in module.state_dict().items()}
    change(module)
    output, _ = module(hidden)
    output.sum().backward()
    changed = {name: getattr(module, name).detach() for name in plain if "." not in name}
    assert any(not torch.equal(plain[name], changed[name]) for name in changed)
    unchanged = make("qk_convfixed_convq_convk_convolution_scaled 2")
    for attend in (attend_eager, attend_fused):
        called, _ = torch.func.functional_call(unchanged, {**plain, **changed}, (hidden,), {"attend": attend})
        assert torch.allclose(called, output)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attend", [attend_eager, attend_fused])
def test_torch_func_gives_the_gradients_of_each_example(attend, padded):
    module = make("qk_convfixed_convq_convk_convolution 2")
    parameters = dict(module.named_parameters())
    hidden = torch.randn(3, 7, 16, dtype=torch.float64)
    mask = (torch.arange(7) < torch.tensor([[7], [3], [5]])).long() if padded else torch.ones(3, 0)

    def loss(parameters, example, mask):
        inputs = (example[None], mask[None] if padded else None)
        return torch.func.functional_call(module, parameters, inputs, {"attend": attend})[0].sin().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, hidden, mask)
    module(hidden, mask if padded else None)[0].sin().sum().backward()
    for name, parameter in parameters.items():
        assert torch.allclose(each[name].sum(0), parameter.grad), name


def test_under_autocast_the_bias_has_the_dtype_of_the_dot_product():
    """In float32 it would take twice the memory and then be cast."""
    parts = []

    def attend(given, value, dropout):
        parts.append(given.bias(value.shape[2]))
        return attend_eager(given, value, dropout)

    for kernel in ("convfixed 3", "qk_convfixed 3", "qk_convfixed_convq_convk 3"):
        module = CompositeAttention(16, 2, parse_kernel(kernel))
        with torch.autocast("cpu", torch.bfloat16):
            module(torch.randn(2, 9, 16), torch.ones(2, 9), attend=attend)
    assert {bias.dtype for bias in parts} == {torch.bfloat16}


@pytest.mark.parametrize("attend", [attend_eager, attend_fused])
@pytest.mark.parametrize("kernel", ["qk_convfixed_convq_convk 2", "convqhead_convkhead 3"])
def test_with_a_causal_mask_nothing_of_the_future_is_seen(kernel, attend):
    module = make(kernel)
    hidden = torch.randn(2, 7, 16, dtype=torch.float64)
    causal = torch.ones(1, 7, 7).tril()
    short, _ = module(hidden[:, :4], causal[:, :4, :4].bool(), attend=attend)
    assert torch.allclose(module(hidden, causal.bool(), attend=attend)[0][:, :4], short)


@pytest.mark.parametrize("kernel", ["qk_convq 2", "qk_convolution 2", "qk_convspan 2"])
def test_a_mask_of_one_row_is_that_of_all_rows(kernel):
    module, hidden = make(kernel), torch.randn(3, 7, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 2, 2, 3, 0]])
    assert torch.allclose(module(hidden, mask)[0], module(hidden, mask.expand(3, -1))[0])


@pytest.mark.parametrize("kernel", ["qk_convolution 2", "qk_convspan 2", "qk_convq 2"])
def test_convolutions_over_tokens_refuse_a_mask_of_pairs(kernel):
    value = parse_projection("convolution 2 1" if "convq" in kernel else "feedforward", "value_forward")
    with pytest.raises(ValueError, match="a convolution over tokens can't follow a mask of pairs, such as a causal"):
        make(kernel, value=value)(torch.randn(2, 7, 16, dtype=torch.float64), torch.ones(1, 7, 7).tril())


def test_a_mask_of_pairs_of_two_dimensions_is_refused():
    with pytest.raises(
        ValueError, match=r"has shape \(7, 7\), not \(B, S\) = \(2, 7\); a mask of pairs is \(1, S, S\)"
    ):
        make("qk_convq 2")(torch.randn(2, 7, 16, dtype=torch.float64), torch.ones(7, 7).tril())


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_dropout_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"dropout {rate} is not from 0 to below 1"):
        make("qk_convq 2", dropout=rate)


def test_the_kernel_may_be_its_option_string():
    assert CompositeAttention(16, 2, "qk_convq 3").kernel == parse_kernel("qk_convq 3")
    with pytest.raises(ValueError, match='unknown term "convx"'):
        CompositeAttention(16, 2, "qk_convx 3")


@pytest.mark.parametrize("attend", [attend_eager, attend_fused])
def test_a_floating_point_mask_of_pairs_is_added_whatever_its_values(attend):
    module = make("qk_convfixed 2")
    hidden = torch.randn(1, 6, 16, dtype=torch.float64)
    for mask in (torch.zeros(6, 6), torch.ones(6, 6), torch.ones(6, 6).index_fill(1, torch.tensor([2]), 0.0)):
        bias = mask.double().expand(1, 2, 6, 6)
        scores = module(hidden)[1].log() + bias
        expected = scores.softmax(-1) @ module.project("value", hidden, Segments())
        output, _ = module(hidden, bias, attend=attend)
        assert torch.allclose(output, expected.transpose(1, 2).flatten(2))
    learned = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(module(hidden, learned, attend=attend)[0].sin().sum(), learned)
    assert grad.abs().sum() > 0


COUNTED = [(packed_mask(4, 3, 1, padding=(0, 2)), 3), (packed_mask(7, padding=(0, 3)) > 0, None)]


@pytest.mark.parametrize("kernel", ["qk_convolution 3", "qk_convspan 3"])
@pytest.mark.parametrize(("mask", "count"), COUNTED)
def test_convolutions_over_tokens_read_no_value_from_the_device(mask, count, kernel, no_device_read):
    module = make(kernel, value=parse_projection("convolution 2 4", "value_forward"))
    hidden = torch.randn(1, 10, 16, dtype=torch.float64)
    expected, _ = module(hidden, mask)
    with no_device_read:
        output, _ = module(hidden, Segments.from_mask(mask, count))
        assert torch.allclose(output, expected)
        larger, _ = module(hidden, Segments.from_mask(mask, 5))
        assert torch.allclose(larger, expected)
    if count:
        with pytest.raises(AssertionError), no_device_read:
            module(hidden, Segments.from_mask(mask))
        with pytest.raises(RuntimeError):
            module(hidden, Segments.from_mask(mask, count - 1))
