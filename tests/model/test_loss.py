import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForPreTraining
from bert_convolutions.model import loss as module
from bert_convolutions.model.loss import linear_cross_entropy
from tests.helpers import NO_DROPOUT, TINY

TOKENS, SIZE, WORDS = 23, 16, 101


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that are called, and keeps the number of elements of the largest result."""

    calls = most_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(result, Tensor):
            self.most_elements = max(self.most_elements, result.numel())
        return result


def random_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(1)
    decoder = nn.Linear(SIZE, WORDS)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(TOKENS, SIZE, generator=generator)
    labels = torch.randint(WORDS, (TOKENS,), generator=generator)
    labels[[0, 7, TOKENS - 1]] = -100
    return hidden.to(dtype).requires_grad_(), decoder.to(dtype), labels


def results(total: Tensor, hidden: Tensor, decoder: nn.Linear) -> list[Tensor]:
    return [total.detach(), *torch.autograd.grad(3 * total, [hidden, decoder.weight, decoder.bias])]


def reference_loss(hidden: Tensor, decoder: nn.Linear, labels: Tensor) -> Tensor:
    return functional.cross_entropy(decoder(hidden).float(), labels, reduction="sum")


@pytest.fixture(params=["cpu", "gpu"])
def device_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for a CPU, and the code for a GPU, here run on a CPU."""
    monkeypatch.setattr(module, "_is_on_gpu", lambda tensor: request.param == "gpu")


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("tile", [1, WORDS, 7 * 128, 2**22])
def test_loss_and_gradients_equal_those_of_pytorch_for_any_tile(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_LOGITS", tile)
    monkeypatch.setattr(module, "TILE_LOGITS_ON_GPU", tile)
    hidden, decoder, labels = random_inputs()
    expected = results(reference_loss(hidden, decoder, labels), hidden, decoder)
    for got, wanted in zip(
        results(linear_cross_entropy(hidden, decoder, labels), hidden, decoder), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.usefixtures("device_path")
def test_gradients_are_exact_in_float64() -> None:
    hidden, decoder, labels = random_inputs(torch.float64)

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return module._LinearCrossEntropy.apply(hidden, weight, bias, labels)

    assert torch.autograd.gradcheck(total, (hidden, decoder.weight, decoder.bias))


@pytest.mark.usefixtures("device_path")
def test_under_autocast_the_loss_is_float32_and_as_exact_as_pytorchs() -> None:
    hidden, decoder, labels = random_inputs()
    exact = results(reference_loss(hidden, decoder, labels), hidden, decoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        usual = results(reference_loss(hidden, decoder, labels), hidden, decoder)
        ours = results(linear_cross_entropy(hidden, decoder, labels), hidden, decoder)
    assert ours[0].dtype == torch.float32
    for got, reference, wanted in zip(ours, usual, exact, strict=True):
        assert (got - wanted).norm() <= 1.5 * (reference - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.usefixtures("device_path")
def test_in_float16_gradients_are_finite_in_a_large_vocabulary() -> None:
    generator = torch.Generator().manual_seed(1)
    words = 100_000  # the sum of so many exponentials, nearly equal as in a new model, is more than float16 can hold
    hidden = torch.randn(3, 2, generator=generator).half().requires_grad_()
    decoder, labels = nn.Linear(2, words).half(), torch.tensor([0, 5, words - 1])
    nn.init.normal_(decoder.weight, std=0.02, generator=generator)
    nn.init.zeros_(decoder.bias)
    exact = [hidden.double(), decoder.weight.double(), decoder.bias.double()]
    loss = functional.cross_entropy(functional.linear(*exact), labels, reduction="sum")
    wanted = torch.autograd.grad(loss, [hidden, decoder.weight, decoder.bias])
    got = torch.autograd.grad(linear_cross_entropy(hidden, decoder, labels), [hidden, decoder.weight, decoder.bias])
    for ours, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_on_a_gpu_the_loss_takes_few_operators_for_any_batch_and_reads_no_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_is_on_gpu", lambda tensor: True)
    counts = []
    for tokens in (10, 4_000):
        shapes = (tokens, 768), (30_522, 768), (30_522,)  # reading a value of a tensor without data raises
        inputs = [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]
        labels = torch.empty(tokens, dtype=torch.long, device="meta")
        with OperatorCounter() as counter:
            module._LinearCrossEntropy.apply(inputs[0].bfloat16(), *inputs[1:], labels).backward()
        counts.append(counter.calls)
    assert counts[0] == counts[1] < 80


@pytest.mark.usefixtures("device_path")
def test_ignored_labels_give_a_loss_and_gradients_of_zero() -> None:
    hidden, decoder, labels = random_inputs()
    total, *grads = results(linear_cross_entropy(hidden, decoder, torch.full_like(labels, -100)), hidden, decoder)
    assert total == 0 and all(not grad.any() for grad in grads)


def test_no_tensor_has_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_LOGITS", 4 * WORDS)
    hidden, decoder, labels = random_inputs()
    with OperatorCounter() as counter:
        linear_cross_entropy(hidden, decoder, labels).backward()
    assert counter.most_elements == max(4, SIZE) * WORDS < TOKENS * WORDS


def test_a_frozen_decoder_gets_no_gradient() -> None:
    hidden, decoder, labels = random_inputs()
    decoder.requires_grad_(False)
    linear_cross_entropy(hidden, decoder, labels).backward()
    assert hidden.grad is not None and decoder.weight.grad is None


@pytest.mark.parametrize("sentence_order", [False, True])
def test_training_by_masked_positions_gives_the_gradients_of_training_by_logits(sentence_order: bool) -> None:
    config = CompositeBertConfig(vocab_size=60, embedding_size=8, **TINY, **NO_DROPOUT)
    model = (CompositeBertForPreTraining if sentence_order else CompositeBertForMaskedLM)(config)
    ids = torch.arange(3, 43).view(2, 20)
    positions = torch.tensor([1, 5, 22, 39])
    labels = torch.full((2, 20), -100)
    labels.view(-1)[positions] = ids.flatten()[positions]
    order = {"next_sentence_label": torch.tensor([0, 1])} if sentence_order else {}
    given = {"labels": labels.flatten()[positions], "masked_positions": positions}
    grads = []
    for inputs in ({"labels": labels}, given):
        model.zero_grad()
        outputs = model.train()(ids, **inputs, **order)
        outputs.loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        logits = outputs.get("prediction_logits", outputs.get("logits"))
        assert (logits is None) == (inputs is given)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-7)
