"""Thirteen small checkpoints in the paper's format, and what the paper's code computes from them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSequenceClassification

from bert_convolutions.convert.original import convert_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
AUTO = {"sentence_order": AutoModelForPreTraining, "classification": AutoModelForSequenceClassification}
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label")


GPU = torch.cuda.is_available()


def load(name, tmp_path, implementation, device="cpu"):
    convert_checkpoint(FIXTURES / name, tmp_path / name)
    auto = AUTO.get(name, AutoModelForMaskedLM)
    model = auto.from_pretrained(tmp_path / name, attn_implementation=implementation).eval().to(device)
    golden = load_file(FIXTURES / name / "io.safetensors", device=device)
    return model, golden, {key: golden[key] for key in INPUTS if key in golden}


def relative(actual, expected):
    """The error relative to the norm; biases whose true gradient is zero have only rounding errors."""
    return (actual - expected).norm() / expected.norm().clamp(min=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_original(name, implementation, tmp_path, device="cpu"):
    model, golden, inputs = load(name, tmp_path, implementation, device)
    outputs = model(**inputs)
    assert outputs.loss.item() == pytest.approx(golden["loss"].item(), abs=1e-5)
    real = golden["attention_mask"].bool()
    for key in ("logits", "prediction_logits", "seq_relationship_logits"):
        if key in golden:
            error = (outputs[key] - golden[key]).abs()
            assert (error[real] if error.dim() == 3 else error).max() < 1e-5
    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {key.removeprefix("grad."): value for key, value in golden.items() if key.startswith("grad.")}
    assert set(gradients) == {key for key, value in parameters.items() if value.requires_grad}
    for key, expected in gradients.items():
        if expected.norm() > 1e-7:
            assert relative(parameters[key].grad, expected) < 1e-4, key


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", NAMES if GPU else ["composite", "remove_qk"])
def test_outputs_and_gradients_with_triton_are_those_of_the_original(name, tmp_path):
    test_outputs_and_gradients_are_those_of_the_original(name, "triton", tmp_path, "cuda" if GPU else "cpu")


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_with_sdpa_on_a_gpu_are_those_of_the_original(name, tmp_path):
    test_outputs_and_gradients_are_those_of_the_original(name, "sdpa", tmp_path, "cuda")


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_attentions_of_real_tokens_are_those_of_the_original(name, tmp_path):
    model, golden, inputs = load(name, tmp_path, "sdpa")
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    real = golden["attention_mask"].bool()
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    for layer, state in enumerate(outputs.hidden_states):
        assert (state - golden[f"hidden_states.{layer}"]).abs()[real].max() < 1e-5
    for layer, attention in enumerate(outputs.attentions):
        error = (attention - golden[f"attentions.{layer}"]).abs()
        assert error.transpose(1, 2)[real].max() < 1e-5
