"""The layout of the global batch changes no loss and no weight."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.helpers import MakeTrainer, losses


@pytest.mark.parametrize("sentence_order", [False, True])
def test_accumulation_and_packing_change_no_loss_and_no_weight(
    make_trainer: MakeTrainer, tmp_path: Path, sentence_order: bool
) -> None:
    layouts = (
        {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "pack": True},
        {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "pack": False},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6, "pack": True},
    )
    trainers = []
    for number, layout in enumerate(layouts):
        trainer = make_trainer(
            tmp_path / str(number), dropout=0.0, max_steps=12, sentence_order=sentence_order, **layout
        )
        trainer.train()
        trainers.append(trainer)
    reference = losses(trainers[0])
    assert len(reference) == 12 and len(set(reference)) == 12
    for trainer in trainers[1:]:
        np.testing.assert_allclose(losses(trainer), reference, atol=1e-5)
        for one, other in zip(trainer.model.parameters(), trainers[0].model.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)  # Adam enlarges rounding errors
        assert trainer.throughput.seen == trainers[0].throughput.seen


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
@pytest.mark.usefixtures("small_tiles")
def test_a_compiled_model_is_one_graph_for_all_steps_and_has_the_same_losses(
    make_trainer: MakeTrainer, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # so that it is reset after the Trainer has set it
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainers = []
    for compiler in ({}, {"torch_compile_backend": "eager"}):
        trainer = make_trainer(
            tmp_path, dropout=0.0, max_steps=3, per_device_train_batch_size=6, gradient_accumulation_steps=1, **compiler
        )
        trainer.model.set_attn_implementation(backend)
        trainer.train()
        trainers.append(trainer)
    batches = [batch for _, batch in zip(range(3), trainers[0].get_train_dataloader(), strict=False)]
    assert all(len({len(batch[name]) for batch in batches}) > 1 for name in ("input_ids", "labels"))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    np.testing.assert_allclose(losses(trainers[1]), losses(trainers[0]), atol=1e-5)


def test_tokens_are_counted_without_padding(make_trainer: MakeTrainer, store: list[np.ndarray], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=13)  # an epoch
    result = trainer.train()
    tokens = sum(min(len(ids), 32) for ids in store)
    assert trainer.state.num_input_tokens_seen == tokens
    assert trainer.state.log_history[-1]["non_padding_tokens_seen"] == tokens
    rate = trainer.state.log_history[-1]["real_tokens_per_second"]
    assert rate == pytest.approx(tokens / result.metrics["train_runtime"], rel=0.3)


def test_evaluation_is_the_same_for_any_batch_size_layout_and_seed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    batches = [(21, True), (4, False), (8, True)]
    found = []
    for number, (size, pack) in enumerate(batches):
        trainer = make_trainer(
            tmp_path / str(number), seed=number, pack=pack, per_device_eval_batch_size=size, sentence_order=True
        )
        torch.manual_seed(number)
        found.append(trainer.evaluate())
    for metrics in found:
        assert metrics["eval_masked_tokens"] == found[0]["eval_masked_tokens"] > 20
        assert metrics["eval_perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]))
        for name in ("eval_loss", "eval_masked_accuracy", "eval_sop_loss", "eval_sop_accuracy"):
            assert metrics[name] == pytest.approx(found[0][name], abs=1e-6)
