import copy
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import bert_convolutions
from bert_convolutions import (
    CompositeBertConfig,
    CompositeBertForMaskedLM,
    CompositeBertForPreTraining,
    CompositeBertForSequenceClassification,
    CompositeBertModel,
)
from bert_convolutions import model as model_package
from bert_convolutions.errors import UsageError
from bert_convolutions.model import backends
from bert_convolutions.model.presets import PRESETS, load_config
from tests.helpers import NO_DROPOUT

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
COMPOSITE = {"attention_kernel": "qk_convfixed_convq_convk 3", "remove_position_embeddings": True}


def config(**options):
    return CompositeBertConfig(**{**SIZES, "embedding_size": 16, **options})


def tokens(batch=3, length=20):
    return torch.randint(5, 61, (batch, length))


def test_auto_classes_save_and_load_our_models(tmp_path):
    for auto, model_class in (
        (AutoModel, CompositeBertModel),
        (AutoModelForMaskedLM, CompositeBertForMaskedLM),
        (AutoModelForPreTraining, CompositeBertForPreTraining),
        (AutoModelForSequenceClassification, CompositeBertForSequenceClassification),
    ):
        model = auto.from_config(config(**COMPOSITE))
        assert type(model) is model_class and getattr(bert_convolutions, model_class.__name__) is model_class
        model.save_pretrained(tmp_path / auto.__name__)
        again = auto.from_pretrained(tmp_path / auto.__name__)
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
        assert not list((tmp_path / auto.__name__).glob("*.bin"))
    assert AutoConfig.from_pretrained(tmp_path / "AutoModel").attention_kernel == COMPOSITE["attention_kernel"]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dot_product_with_positions_is_bert(implementation):
    """With embeddings as wide as the model and no convolution, the outputs are those of transformers' BERT."""
    sizes = {**SIZES, "hidden_act": "gelu"}
    peer = BertForMaskedLM(BertConfig(**sizes)).eval()
    ours = CompositeBertForMaskedLM(config(embedding_size=32, attn_implementation=implementation)).eval()
    ours.load_state_dict(peer.state_dict())
    ids, labels = tokens(), tokens()
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    types = torch.randint(0, 2, ids.shape)
    for inputs in ({"labels": labels}, {"labels": labels, "return_dict": False}, {"output_hidden_states": True}):
        expected = peer(ids, mask, types, **inputs)
        actual = ours(ids, mask, types, **inputs)
        assert len(expected) == len(actual)
    expected, actual = peer(ids, mask, types, labels=labels), ours(ids, mask, types, labels=labels)
    assert torch.allclose(expected.loss, actual.loss, atol=1e-5)
    assert torch.allclose(expected.logits[mask.bool()], actual.logits[mask.bool()], atol=1e-5)


@pytest.mark.parametrize(("labels", "count"), [([0, 2, 1], 3), ([0.5, 3.0, 1.0], 1)])
def test_classification_and_regression_equal_berts(labels, count):
    peer = BertForSequenceClassification(BertConfig(**SIZES, num_labels=count)).eval()
    ours = CompositeBertForSequenceClassification(config(embedding_size=32, num_labels=count)).eval()
    ours.load_state_dict(peer.state_dict())
    ids = tokens()
    expected, actual = (model(ids, labels=torch.tensor(labels)) for model in (peer, ours))
    assert torch.allclose(expected.loss, actual.loss, atol=1e-5)
    assert torch.allclose(expected.logits, actual.logits, atol=1e-5)


@pytest.mark.parametrize("model_class", [CompositeBertForMaskedLM, CompositeBertForPreTraining])
def test_the_head_runs_on_masked_tokens_only(model_class):
    model = model_class(config(**COMPOSITE, **NO_DROPOUT))
    ids = tokens()
    labels = torch.where(torch.rand(ids.shape) < 0.2, ids, -100)
    order = {"next_sentence_label": torch.tensor([0, 1, 1])} if model_class is CompositeBertForPreTraining else {}
    rows = []
    model.cls.predictions.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    model.eval()
    full = model(ids, labels=labels, **order)
    positions = (labels.flatten() != -100).nonzero().squeeze(1)
    sparse = model(ids, labels=labels.flatten()[positions], masked_positions=positions, **order)
    model.train()
    training = model(ids, labels=labels, **order)
    model.config.sparse_prediction = True
    training_sparsely = model(ids, labels=labels, **order)
    model(ids)
    assert rows == [60, len(positions), 60, len(positions), 60]
    for other in (sparse, training, training_sparsely):
        assert torch.allclose(full.loss, other.loss, atol=1e-6)


def test_the_last_layer_computes_the_output_positions_only_with_equal_results():
    model = CompositeBertModel(config(**COMPOSITE)).eval()
    ids, mask = tokens(2, 9), torch.tensor([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])
    positions, starts = torch.tensor([1, 2, 5, 9, 9]), torch.tensor([0, 4, 9])
    whole = model(ids, mask, example_starts=starts)
    rows = []
    model.encoder.layer[-1].output.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1]))
    for states in (False, True):
        some = model(ids, mask, example_starts=starts, output_positions=positions, output_hidden_states=states)
        expected = whole.last_hidden_state.flatten(0, 1)[positions]
        torch.testing.assert_close(some.last_hidden_state, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(some.pooler_output, whole.pooler_output, rtol=1e-5, atol=1e-6)
    assert rows == [(8,), (2, 9)]
    torch.testing.assert_close(some.hidden_states[-1], whole.last_hidden_state, rtol=1e-5, atol=1e-6)
    first = model(ids, mask.clamp(max=1), output_positions=positions[:0]).pooler_output  # of each row
    torch.testing.assert_close(first, model(ids, mask.clamp(max=1)).pooler_output, rtol=1e-5, atol=1e-6)


def test_a_batch_without_labels_has_loss_zero():
    model = CompositeBertForMaskedLM(config()).train()
    loss = model(tokens(), labels=torch.full((3, 20), -100)).loss
    assert loss.item() == 0.0
    loss.backward()


def test_without_position_embeddings_rows_may_have_any_length():
    model = CompositeBertModel(config(**COMPOSITE)).eval()
    for length in (1, 2, 100):
        assert model(tokens(1, length)).last_hidden_state.shape == (1, length, 32)
    with_positions = CompositeBertModel(config()).eval()
    assert with_positions(tokens(1, 24)).last_hidden_state.shape == (1, 24, 32)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        with_positions(tokens(1, 25))


@pytest.mark.parametrize("options", [COMPOSITE, {"value_forward": "convolution_depth 2 1"}, {"remove_qk": True}])
def test_the_amount_of_padding_changes_no_output(options):
    model = CompositeBertModel(config(**options)).eval()
    ids = tokens(1, 9)
    alone = model(ids)
    padded = model(torch.cat([ids, tokens(1, 8)], dim=1), attention_mask=(torch.arange(17) < 9).long().unsqueeze(0))
    assert torch.allclose(alone.last_hidden_state, padded.last_hidden_state[:, :9], atol=1e-5)
    assert torch.allclose(alone.pooler_output, padded.pooler_output, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradient_checkpointing_gives_the_same_gradients(implementation):
    model = CompositeBertForMaskedLM(config(**COMPOSITE, attn_implementation=implementation)).train()
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable()
    ids = tokens()
    for each in (model, again):
        torch.manual_seed(1)
        each(ids, labels=ids).loss.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(first.grad, second.grad, atol=1e-6), name


def test_inputs_embeds_and_resize_token_embeddings_work():
    model = CompositeBertForMaskedLM(config()).eval()
    ids = tokens()
    embedded = model.get_input_embeddings()(ids)
    assert torch.allclose(model(ids).logits, model(inputs_embeds=embedded).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=embedded)
    model.resize_token_embeddings(70)
    assert model(ids).logits.shape[-1] == 70
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kernel", ["qk_convq 2", "qk_convolution 2"])
def test_a_mask_of_another_length_is_refused(kernel):
    model, ids = CompositeBertForMaskedLM(config(attention_kernel=kernel)), tokens()
    with pytest.raises(ValueError, match=r"attention mask has shape \(1, 5\), not \(B, S\) = "):
        model(ids, attention_mask=torch.ones(1, 5))


def test_initial_weights_are_distributed_as_in_the_original():
    model = CompositeBertForMaskedLM(
        config(
            hidden_size=256,
            attention_kernel="qk_convfixed_convq_convk_convqhead_convolution 8",
            value_forward="convolution 8 4",
        )
    )
    layer = model.bert.encoder.layer[0].attention.self
    assert layer.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.query.bias.abs().max() == 0 and layer.convfixed_param.abs().max() == 0
    assert (layer.convolution_scalar == 1).all() and not layer.convolution_scalar.requires_grad
    bound = 17**-0.5
    for kernel in (layer.convq_param, layer.convqhead_param):
        assert 0.9 * bound < kernel.abs().max() <= bound
    reference = nn.Conv1d(256, 256, 17, groups=4).weight
    assert layer.value_conv.weight.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    assert layer.value_conv.bias.abs().max() > 0


def test_presets_have_the_sizes_of_the_paper_and_other_names_are_refused(tmp_path):
    small = load_config("bert_small")
    assert sum(parameter.numel() for parameter in CompositeBertForMaskedLM(small).parameters()) == 13_430_708
    assert (small.num_hidden_layers, small.hidden_size, small.num_attention_heads, small.intermediate_size) == (
        (12, 256, 4, 1024)
    )
    base = load_config("bert_base")
    assert (base.num_hidden_layers, base.hidden_size, base.num_attention_heads, base.intermediate_size) == (
        (12, 768, 12, 3072)
    )
    with pytest.raises(UsageError, match="bert_small"):
        load_config("bert_tiny")
    (tmp_path / "config.json").write_text('{"hidden_size": "many"}')
    with pytest.raises(UsageError, match="hidden_size"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="JSON"):
        load_config(str(tmp_path / "config.json"))
    assert set(PRESETS) == {"bert_small", "bert_base"}


def test_a_bad_option_is_refused_by_the_configuration():
    with pytest.raises(ValueError, match=r"^attention_kernel.*konvq"):
        config(attention_kernel="qk_konvq 3")
    with pytest.raises(ValueError, match=r"^num_attention_heads"):
        config(num_attention_heads=5)
    with pytest.raises(ValueError, match=r"^position_embedding_type.*absolute"):  # BERT's; here they are terms
        config(position_embedding_type="relative_key")
    assert config(attention_kernel="convk_qk 3").attention_kernel == "qk_convk 3"


CONVOLVED = {"attention_kernel": "qk_convfixed_convolution 2"}


@pytest.mark.parametrize(
    "field",
    [
        {"attention_probs_dropout_prob": 2.0},
        {"num_hidden_layers": 0},
        {"hidden_act": "geluu"},
        {"num_attention_heads": 5},
        {"attention_kernel": "qk_convfixd 8"},
        {"is_decoder": True},
    ],
)
def test_a_field_set_after_the_configuration_was_made_is_checked_too(field, tmp_path):
    model = CompositeBertForMaskedLM(config())
    model.save_pretrained(tmp_path)
    (name,) = field
    for make_one in (
        lambda: CompositeBertConfig(**{**model.config.to_dict(), **field}),
        lambda: AutoModelForMaskedLM.from_pretrained(tmp_path, **field),
        lambda: AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tmp_path, **field)),
    ):
        with pytest.raises(ValueError, match=name):
            make_one()


def test_a_second_derivative_is_computed_by_eager_and_refused_by_sdpa():
    def second(model):
        embeddings = torch.randn(1, 24, model.config.embedding_size, generator=torch.manual_seed(0), requires_grad=True)
        penalty = torch.autograd.grad(
            model(inputs_embeds=embeddings).logits.pow(2).sum(), embeddings, create_graph=True
        )
        return torch.autograd.grad(penalty[0].pow(2).sum(), embeddings)[0]

    model = CompositeBertForMaskedLM(config(**COMPOSITE)).eval()
    model.set_attn_implementation("eager")
    assert second(model).isfinite().all()
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="no second derivative"):
        second(model)


def test_the_scale_of_a_convolution_is_trained_only_if_it_is_called_scaled(tmp_path):
    """In a model from a constructor, a folder, an Auto class, an old checkpoint, and in a Trainer that resumes."""
    made = CompositeBertForMaskedLM(config(**CONVOLVED))
    made.save_pretrained(tmp_path / "saved")
    names = [name for name in made.state_dict() if name.endswith("convolution_scalar")]
    assert names == [f"bert.encoder.layer.{layer}.attention.self.convolution_scalar" for layer in range(2)]
    loaded = CompositeBertForMaskedLM.from_pretrained(tmp_path / "saved")
    by_auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    old = {**made.state_dict(), **{name: torch.full((1, 4, 1, 1), 1.5) for name in names}}
    made.load_state_dict(old)
    made.save_pretrained(tmp_path / "old")
    of_old = AutoModelForMaskedLM.from_pretrained(tmp_path / "old")
    assert all((of_old.state_dict()[name] == 1.5).all() for name in names)
    del old[names[0]]
    save_file(
        {name: value.contiguous() for name, value in old.items() if "decoder" not in name},
        tmp_path / "old/model.safetensors",
    )
    without = AutoModelForMaskedLM.from_pretrained(tmp_path / "old").state_dict()
    assert (without[names[0]] == 1).all() and (without[names[1]] == 1.5).all()
    for model in (made, loaded, by_auto, of_old):
        assert not [name for name, _ in model.named_parameters() if name.endswith("convolution_scalar")]
        assert {name for name in model.state_dict() if name.endswith("convolution_scalar")} == set(names)
    scaled = AutoModelForMaskedLM.from_config(config(attention_kernel="qk_convolution_scaled 2"))
    assert len([name for name, _ in scaled.named_parameters() if name.endswith("convolution_scalar")]) == 2

    examples = [{"input_ids": torch.arange(6), "labels": torch.arange(6)}] * 4
    for steps in (1, 2):
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=steps, save_steps=1, learning_rate=0.1, report_to="none", disable_tqdm=True
        )
        trainer = Trainer(CompositeBertForMaskedLM(config(**CONVOLVED)), arguments, train_dataset=examples)
        trainer.train(resume_from_checkpoint=steps > 1)
        trained = trainer.model.state_dict()
        assert all((trained[name] == 1).all() for name in names)
        assert not torch.equal(trained["cls.predictions.bias"], made.state_dict()["cls.predictions.bias"])


@pytest.mark.parametrize("labels", [{}, {"labels": torch.tensor([0, 1])}])
def test_return_dict_is_read_from_the_configuration(labels, tmp_path):
    others = (
        getattr(model_package, name) for name in model_package.__all__ if "For" in name and "Multiple" not in name
    )
    for model_class in (CompositeBertModel, *others):
        model_class(config()).save_pretrained(tmp_path)
        model = model_class.from_pretrained(tmp_path, return_dict=False).eval()
        given = labels if model_class is CompositeBertForSequenceClassification else {}
        expected = model(tokens(2, 9), return_dict=True, **given)
        actual = model(tokens(2, 9), **given)
        assert isinstance(actual, tuple) and [part.shape for part in actual] == [
            part.shape for part in expected.values()
        ]


class _GradientRecorder(TrainerCallback):
    def __init__(self):
        self.grads = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model_class", [CompositeBertForSequenceClassification, CompositeBertForPreTraining])
def test_accumulation_in_transformers_trainer_changes_no_gradient(model_class, tmp_path):
    start = model_class(config(**COMPOSITE, **NO_DROPOUT))
    examples = [{"input_ids": tokens(1, 8)[0], "labels": torch.tensor(number % 2)} for number in range(8)]
    if model_class is CompositeBertForPreTraining:
        for example in examples:
            example["next_sentence_label"] = example["labels"]
            example["labels"] = torch.where(torch.arange(8) < 2, example["input_ids"], -100)
    grads = []
    for accumulated in (1, 4):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        seen = _GradientRecorder()
        Trainer(copy.deepcopy(start), arguments, train_dataset=examples, callbacks=[seen]).train()
        grads.append(seen.grads)
    assert max(grad.abs().max() for grad in grads[0].values()) > 1e-3
    for name, expected in grads[0].items():
        assert torch.allclose(expected, grads[1][name], atol=1e-6), name


PACKED = {
    "attention_mask": torch.arange(20).expand(3, -1) // 8 + 1,
    "position_ids": torch.arange(20).expand(3, -1) % 8,
    "masked_positions": torch.arange(0, 60, 5),
    "examples_per_row": 3,
}
OVER_TOKENS = {
    **COMPOSITE,
    "attention_kernel": "qk_convfixed_convq_convk_convolution 3",
    "value_forward": "convolution 2 4",
}

SPANS = {**COMPOSITE, "attention_kernel": "qk_convqhead_convkhead_convspan 3"}


class _CastCounter(TorchDispatchMode):
    """Counts the casts whose result has the given shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += function is torch.ops.aten._to_copy.default and result.shape == self.shape
        return result


def test_under_autocast_a_layer_casts_its_input_once_for_all_projections():
    counts = []
    for layers in (1, 3):
        model = CompositeBertModel(config(**COMPOSITE, embedding_size=32, num_hidden_layers=layers))
        ids = tokens(3, 40)
        with torch.autocast("cpu", torch.bfloat16), _CastCounter((3, 40, 32)) as casts:
            model(ids).last_hidden_state.sum().backward()
        counts.append(casts.count)
    # Of two layers: into attention and feed-forward, both gradients of these, and those into their last projections.
    assert counts[1] - counts[0] == 2 * (2 + 2 + 2)


@pytest.mark.parametrize("backend", ["sdpa", "interface"])
@pytest.mark.parametrize("options", [COMPOSITE, OVER_TOKENS, SPANS])
def test_the_model_compiles_to_one_graph(options, backend, monkeypatch):
    """Without a change of the result, also with the attention function that is used on a GPU."""
    if backend == "interface":
        monkeypatch.setattr(backends, "_attend_sdpa", partial(backends.attend_interface, "sdpa"))
    model = CompositeBertForMaskedLM(config(**options)).eval()
    ids = tokens()
    batch = {"input_ids": ids, "labels": ids.flatten()[::5], **PACKED}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(**batch).loss, model(**batch).loss, atol=1e-6)


@pytest.mark.parametrize("options", [COMPOSITE, OVER_TOKENS, SPANS])
def test_an_exported_or_traced_model_takes_any_length(options):
    model = CompositeBertForMaskedLM(config(**options)).eval()
    given = {"input_ids": tokens(2, 35), "attention_mask": (torch.arange(35) < 30).long().expand(2, -1)}
    exported = torch.export.export(
        model,
        (),
        given,
        dynamic_shapes={name: {1: torch.export.Dim("length", max=500)} for name in given},
        strict=False,
    ).module()
    model.config.return_dict = False
    traced = torch.jit.trace(model, example_kwarg_inputs=given)
    for length in (2, 5, 60):
        batch = {
            "input_ids": tokens(2, length),
            "attention_mask": (torch.arange(length) < length - 1).long().expand(2, -1),
        }
        expected = model(**batch)[0]
        assert torch.allclose(exported(**batch).logits, expected, atol=1e-5)
        assert torch.allclose(traced(**batch)[0], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"remove_qk": True, "qk": "convolution_depth 2 1"}])
def test_without_convolutions_over_tokens_the_number_of_examples_is_not_needed(options, no_device_read):
    model = CompositeBertForMaskedLM(
        config(**options, attention_kernel="qk_convq 2", attn_implementation="eager")
    ).eval()
    with no_device_read:
        model(tokens(), attention_mask=PACKED["attention_mask"])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("over_tokens", ["attention_kernel qk_convolution 2", "value_forward convolution 2 1", "qk"])
def test_a_step_on_packed_rows_reads_no_value_from_the_device(over_tokens, implementation, no_device_read):
    name, _, value = over_tokens.partition(" ")
    options = {**NO_DROPOUT, name: value or "convolution_depth 2 1"}
    model = CompositeBertForMaskedLM(config(**options, attn_implementation=implementation)).train()
    ids = tokens()
    with no_device_read:
        model(ids, labels=ids.flatten()[::5], **PACKED).loss.backward()
    assert model(ids, labels=ids).logits.shape == (3, 20, 61)
