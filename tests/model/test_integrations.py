"""How other libraries use a model: device maps, adapters, pruning, transforms of ``torch.func``."""

from typing import Any

import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertModel
from tests.helpers import NO_DROPOUT, TINY

TERMS: dict[str, Any] = {"attention_kernel": "qk_convfixed_convq_convk 3"}
OVER_TOKENS = {"attention_kernel": "qk_convfixed_convspan 3", "value_forward": "convolution 2 4"}
IDS = torch.arange(60).view(3, 20)
MASK = (torch.arange(20) < torch.tensor([[20], [9], [20]])).long()
POSITIONS = torch.arange(0, 60, 5)


def config(**options: Any) -> CompositeBertConfig:
    return CompositeBertConfig(**{**TINY, "vocab_size": 60, "embedding_size": 8, **options})


@pytest.mark.parametrize("options", [TERMS, OVER_TOKENS])
def test_layers_can_be_on_several_devices(options: dict[str, Any]) -> None:
    """As ``device_map="auto"`` spreads them over GPUs; tensors that all layers share are moved to each device."""
    model = CompositeBertModel(config(**options), add_pooling_layer=False)
    add_hook_to_module(model.encoder.layer[1].to("meta"), AlignDevicesHook(execution_device=torch.device("meta")))
    assert model(IDS, MASK).last_hidden_state.is_meta


@pytest.mark.parametrize("others", ["disk", "cpu"])
def test_weights_can_stay_on_disk(tmp_path: Any, others: str) -> None:
    if others == "disk":
        pytest.importorskip("accelerate", minversion="1.15")  # older ones refuse a whole model on disk
    model = CompositeBertForMaskedLM(config(**TERMS)).eval()
    model.save_pretrained(tmp_path)
    places = {"bert.embeddings": others, "bert.embeddings_project": "disk", "bert.encoder": "disk", "cls": others}
    again = CompositeBertForMaskedLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    torch.testing.assert_close(again(IDS, MASK).logits, model(IDS, MASK).logits)


@pytest.mark.parametrize("options", [TERMS, OVER_TOKENS])
def test_a_model_on_the_meta_device_gives_shapes(options: dict[str, Any]) -> None:
    model = CompositeBertForMaskedLM(config(**options)).to("meta")
    assert model(IDS.to("meta"), MASK.to("meta")).logits.shape == (3, 20, 60)


@pytest.mark.parametrize("kernel", ["qk_convq_convk 5", "qk_convspan 5"])  # a reach that no other test uses
def test_a_step_runs_in_fake_mode(kernel: str) -> None:
    """Which tools use to estimate memory; no fake tensor is cached for later steps."""
    with FakeTensorMode():
        model = CompositeBertForMaskedLM(config(attention_kernel=kernel)).train()
        model(torch.zeros(3, 20).long(), torch.ones(3, 20)).logits.sum().backward()
    CompositeBertForMaskedLM(config(attention_kernel=kernel)).train()(IDS, MASK).logits.sum().backward()


def test_the_default_device_does_not_matter() -> None:
    model = CompositeBertForMaskedLM(config(attention_kernel="qk_convq 6"))  # a reach that no other test uses
    with torch.device("meta"):
        model(IDS, MASK).logits.sum().backward()


@pytest.mark.parametrize("options", [TERMS, OVER_TOKENS])
def test_a_batch_can_be_empty(options: dict[str, Any]) -> None:
    model = CompositeBertForMaskedLM(config(**options))
    assert model(IDS[:0], MASK[:0]).logits.shape == (0, 20, 60)


@pytest.mark.parametrize("module", ["query", "position_embeddings", "token_type_embeddings", "decoder"])
def test_lora_changes_the_loss_by_masked_positions_as_it_changes_the_logits(module: str) -> None:
    """Training by masked positions has code of its own for the embeddings and the head."""
    model = CompositeBertForMaskedLM(config(**TERMS, **NO_DROPOUT))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=rf".*\.{module}", init_lora_weights=False))
    labels = IDS.flatten()[POSITIONS]
    loss = adapted(input_ids=IDS, labels=labels, masked_positions=POSITIONS).loss
    expected = nn.functional.cross_entropy(adapted(input_ids=IDS).logits.flatten(0, 1)[POSITIONS], labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    adapters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert adapters and all(parameter.grad is not None and parameter.grad.any() for parameter in adapters)


def test_a_pruned_decoder_can_be_trained() -> None:
    model = CompositeBertForMaskedLM(config(**TERMS, tie_word_embeddings=False))
    prune.random_unstructured(model.cls.predictions.decoder, "weight", amount=0.5)
    for _ in range(2):
        model(IDS, labels=IDS.flatten()[POSITIONS], masked_positions=POSITIONS).loss.backward()


def test_untied_embeddings_are_resized_and_saved(tmp_path: Any) -> None:
    model = CompositeBertForMaskedLM(config(**TERMS, tie_word_embeddings=False)).eval()
    nn.init.normal_(model.cls.predictions.decoder.bias)
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(CompositeBertForMaskedLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


def test_the_last_layers_can_be_removed() -> None:
    model = CompositeBertModel(config(**TERMS)).eval()
    model.encoder.layer = model.encoder.layer[:1]
    expected = model(IDS).last_hidden_state.flatten(0, 1)[POSITIONS]
    torch.testing.assert_close(model(IDS, output_positions=POSITIONS).last_hidden_state, expected)


def test_setting_every_dropout_module_to_zero_switches_dropout_off() -> None:
    model = CompositeBertModel(config(**TERMS, attention_probs_dropout_prob=0.9)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(model(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_torch_func_gives_the_gradients_of_each_example_in_training() -> None:
    """With dropout and the loss by masked positions."""
    model = CompositeBertForMaskedLM(config(**TERMS)).train()
    masked = torch.arange(0, 20, 5)

    def loss(parameters: Any, ids: Any) -> Any:
        given = {"labels": ids[masked], "masked_positions": masked}
        return torch.func.functional_call(model, parameters, (ids[None],), given).loss

    each = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")(
        dict(model.named_parameters()), IDS
    )
    assert all(gradient.shape[0] == 3 and gradient.isfinite().all() for gradient in each.values())


@pytest.mark.parametrize("name", ["head_mask", "encoder_hidden_states", "past_key_values"])
def test_arguments_of_other_models_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        CompositeBertForMaskedLM(config())(IDS, **{name: torch.zeros(2, 2)})
