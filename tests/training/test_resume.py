"""A run that is stopped and resumed equals one that is not, bit for bit; nothing bad is ever saved."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerState

from bert_convolutions.errors import RunInterrupted, TrainingDiverged, UsageError
from bert_convolutions.training import checkpoints, pretrain
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.output_folder import Start
from bert_convolutions.training.trainer import PretrainingTrainer
from tests.training.helpers import CLS, SEP, MakeTrainer, assert_same_weights, losses

STEPS_PER_EPOCH = 13  # 52 examples, 4 per step


class At(TrainerCallback):
    """Does something once, at the given event of the given step."""

    def __init__(self, event: str, step: int, action: Callable[[Any], None]) -> None:
        self.event, self.step, self.action = event, step, action

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "event"):
            return object.__getattribute__(self, "_act")
        return object.__getattribute__(self, name)

    def _act(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            self.action(kwargs.get("model"))


def terminate(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(trainer: PretrainingTrainer, resume: bool = False, callback: TrainerCallback | None = None) -> None:
    """Train with signal handlers, as the command does."""
    if callback:
        trainer.add_callback(callback)
    found = checkpoints.newest_valid(Path(trainer.args.output_dir)).found if resume else None
    with trainer.watch.finish_step_on_signal():
        trainer.train(resume_from_checkpoint=str(found) if found else None)


@pytest.fixture
def uninterrupted(make_trainer: MakeTrainer, tmp_path: Path) -> PretrainingTrainer:
    trainer = make_trainer(tmp_path / "whole")
    run(trainer)
    return trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_three_times_ends_with_the_same_weights(
    make_trainer: MakeTrainer, uninterrupted: PretrainingTrainer, tmp_path: Path, workers: int
) -> None:
    """Stopped within an epoch, at its end, and in the next one; with accumulation, dropout and workers."""
    folder = tmp_path / "cut"
    for step in (7, STEPS_PER_EPOCH, 20):
        trainer = make_trainer(folder, dataloader_num_workers=workers, save_total_limit=1)
        with pytest.raises(RunInterrupted, match=rf"SIGTERM after step {step}.*; resume with: the same call"):
            run(trainer, resume=True, callback=At("on_step_end", step, terminate))
        assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(folder)] == [step]
    trainer = make_trainer(folder, dataloader_num_workers=workers)
    run(trainer, resume=True)
    assert trainer.state.global_step == 30
    assert_same_weights(trainer, uninterrupted)
    assert trainer.throughput.seen == uninterrupted.throughput.seen


def test_a_run_stopped_in_the_middle_of_a_step_ends_with_the_same_weights(
    make_trainer: MakeTrainer, uninterrupted: PretrainingTrainer, tmp_path: Path
) -> None:
    """Stopped during accumulation, while a checkpoint is saved, in an evaluation, and while logging."""
    folder = tmp_path / "cut"
    settings = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 8}
    places = (("on_substep_end", 2, 3), ("on_save", 5, 5), ("on_prediction_step", 8, 8), ("on_log", 12, 12))
    for event, step, saved in places:
        with pytest.raises(RunInterrupted):
            run(make_trainer(folder, **settings), resume=True, callback=At(event, step, terminate))
        assert checkpoints.newest_valid(folder).found == folder / f"checkpoint-{saved}"
    trainer = make_trainer(folder, **settings)
    run(trainer, resume=True)
    assert_same_weights(trainer, uninterrupted)


def test_where_the_newest_checkpoint_is_damaged_a_run_resumes_from_the_one_before(
    make_trainer: MakeTrainer, uninterrupted: PretrainingTrainer, tmp_path: Path
) -> None:
    """As after kill -9; the damaged one is replaced."""
    folder = tmp_path / "cut"
    settings = {"save_strategy": "steps", "save_steps": 6}
    with pytest.raises(RunInterrupted):
        run(make_trainer(folder, **settings), callback=At("on_step_end", 18, terminate))
    os.truncate(folder / "checkpoint-18" / "optimizer.pt", 100)
    trainer = make_trainer(folder, **settings)
    run(trainer, resume=True)
    assert checkpoints.fault_in(folder / "checkpoint-18") is None
    assert_same_weights(trainer, uninterrupted)


def test_checkpoints_are_saved_by_the_clock(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3, trainer={"save_every_minutes": 1e-9})
    run(trainer)
    assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] == [1, 2, 3]


def set_nan(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.bert.embeddings_project.weight[0, 0] = float("nan")


def test_a_bad_loss_stops_the_run_and_leaves_the_last_good_checkpoint(
    make_trainer: MakeTrainer, store: list[np.ndarray], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4)
    with pytest.raises(TrainingDiverged) as caught:
        run(trainer, callback=At("on_step_begin", 7, set_nan))
    assert "in step 8 (samples " in str(caught.value) and "checkpoint-4" in str(caught.value)
    facts = json.loads((tmp_path / "diverged.json").read_text())
    assert (
        facts["step"] == 8
        and facts["samples"] == trainer.train_plan().samples_of_step(7)
        and len(facts["samples"]) == 4
    )
    assert checkpoints.newest_valid(tmp_path).found == tmp_path / "checkpoint-4"


def test_weights_that_become_nan_in_a_step_are_not_saved(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Though the loss of this step was finite."""
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4)
    with pytest.raises(TrainingDiverged, match="weights are no longer finite in step 4"):
        run(trainer, callback=At("on_step_end", 4, set_nan))
    assert not checkpoints.list_checkpoints(tmp_path)


def test_a_full_disk_costs_one_checkpoint_and_no_step(
    make_trainer: MakeTrainer, uninterrupted: PretrainingTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full"
    trainer = make_trainer(folder, save_strategy="steps", save_steps=10)
    genuine = torch.save

    def full(value: Any, path: Any) -> None:
        if trainer.state.global_step == 20:
            raise OSError(28, "No space left on device", str(path))
        genuine(value, path)

    monkeypatch.setattr(torch, "save", full)
    run(trainer)
    assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(folder)] == [10, 30]
    assert checkpoints.fault_in(folder / "checkpoint-10") is None
    assert_same_weights(trainer, uninterrupted)


def test_a_resumed_run_uses_new_flags_and_refuses_weights_of_another_model(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    run(make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=4))
    trainer = make_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=2)
    run(trainer, resume=True)
    assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] == [4, 6, 8]
    with pytest.raises(UsageError, match="of another model"):
        run(make_trainer(tmp_path, sentence_order=True), resume=True)


def test_a_finished_run_has_no_speed_and_only_the_first_process_prints(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    checkpoint = tmp_path / "checkpoint-2"
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.load_finished(checkpoint)
    trainer.finish()
    figures = trainer.throughput_metrics()
    assert figures["real_tokens_per_second"] == 0 < figures["non_padding_tokens_seen"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    capsys.readouterr()
    pretrain._train(trainer, Start(checkpoint, step=2, finished=2), checkpoint, PretrainOptions())
    trainer.log({"eval_loss": 1.0})
    assert capsys.readouterr() == ("", "")


EVALUATED = {
    "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6,
    "load_best_model_at_end": True, "per_device_eval_batch_size": 4, "dropout": 0.0,
}  # fmt: skip
BY_EPOCH = {"eval_strategy": "epoch", "eval_steps": None, "save_strategy": "epoch", "max_steps": 15}
BY_LOSS = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "threshold": 1.0}}


def evaluated(trainer: PretrainingTrainer) -> list[tuple[int, float]]:
    return [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.mark.parametrize(
    ("changes", "event", "step"),
    [
        ({}, "on_step_begin", 3),
        (BY_LOSS, "on_prediction_step", 4),
        (BY_LOSS, "on_substep_end", 4),  # in the middle of the fifth step, which owes no evaluation
        ({"lr_scheduler_type": "greedy"}, "on_step_begin", 3),
        (BY_EPOCH, "on_prediction_step", 13),
    ],
)
def test_an_evaluation_that_a_signal_prevents_is_made_by_the_resumed_run(
    make_trainer: MakeTrainer, tmp_path: Path, changes: dict[str, Any], event: str, step: int
) -> None:
    """Otherwise another checkpoint could be the best, and a schedule that depends on the loss would differ."""
    flags = {**EVALUATED, **changes}
    whole = make_trainer(tmp_path / "whole", **flags)
    run(whole)
    with pytest.raises(RunInterrupted):
        run(make_trainer(tmp_path / "parts", **flags), callback=At(event, step, terminate))
    resumed = make_trainer(tmp_path / "parts", **flags)
    run(resumed, resume=True)
    assert evaluated(resumed) == evaluated(whole) and losses(resumed) == losses(whole)
    assert_same_weights(resumed, whole)


def test_the_last_evaluation_may_still_find_the_best_model(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    flags = {**EVALUATED, "learning_rate": 0.1}
    whole = make_trainer(tmp_path / "whole", **flags)
    run(whole)
    assert whole.state.best_global_step == 6
    with pytest.raises(RunInterrupted):
        run(make_trainer(tmp_path / "parts", **flags), callback=At("on_prediction_step", 6, terminate))
    resumed = make_trainer(tmp_path / "parts", **flags)
    resumed.load_finished(tmp_path / "parts" / "checkpoint-6")
    resumed.finish()
    assert evaluated(resumed) == evaluated(whole) and resumed.state.best_global_step == 6
    assert_same_weights(resumed, whole)


def test_a_lower_rate_applies_to_a_schedule_by_the_loss(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    flags = {**EVALUATED, **BY_LOSS}
    run(make_trainer(tmp_path, **flags))
    checkpoints.delete(tmp_path / "checkpoint-6")
    resumed = make_trainer(tmp_path, **flags, learning_rate=1e-3)
    run(resumed, resume=True)
    rates = [entry["learning_rate"] for entry in resumed.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-5, 1e-5])  # a tenth of 1e-4 for the rest


def test_a_schedule_by_the_loss_resumes_a_checkpoint_without_peak_rates(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Older versions didn't save them."""
    flags = {**EVALUATED, **BY_LOSS}
    whole = make_trainer(tmp_path, **flags)
    run(whole)
    checkpoints.delete(tmp_path / "checkpoint-6")
    path = tmp_path / "checkpoint-4" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    for group in saved["param_groups"]:
        del group["initial_lr"]
    torch.save(saved, path)
    resumed = make_trainer(tmp_path, **flags)
    with resumed.watch.finish_step_on_signal():
        resumed.train(resume_from_checkpoint=str(path.parent))
    assert_same_weights(resumed, whole)


def test_a_run_that_saves_models_only_is_saved_whole_for_a_signal(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Also where its step has just been saved."""
    flags = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "save_only_model": True}
    run(make_trainer(tmp_path / "whole", **flags))
    with pytest.raises(RunInterrupted, match="checkpoint-2"):
        run(make_trainer(tmp_path / "parts", **flags), callback=At("on_save", 2, terminate))
    resumed = make_trainer(tmp_path / "parts", **flags)
    run(resumed, resume=True)
    assert resumed.state.global_step == 4 and not (tmp_path / "parts" / "checkpoint-4" / "optimizer.pt").exists()


def test_the_log_of_a_long_run_is_not_written_by_the_trainer(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would copy and indent it: 5 s for 100,000 entries, at each checkpoint."""
    lengths, save = [], TrainerState.save_to_json
    monkeypatch.setattr(
        TrainerState, "save_to_json", lambda state, path: lengths.append(len(state.log_history)) or save(state, path)
    )
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    run(trainer)
    assert lengths == [0] and len(trainer.state.log_history) == 3  # two losses and the summary
    saved = TrainerState.load_from_json(str(tmp_path / "checkpoint-2" / "trainer_state.json"))
    assert saved.log_history == trainer.state.log_history[:2] and saved.global_step == 2


class Store(list[np.ndarray]):
    """Examples that can change during a run."""


def test_data_without_tokens_to_predict_stop_the_run(
    make_trainer: MakeTrainer, store: list[np.ndarray], tmp_path: Path
) -> None:
    """As of a file that is overwritten during training; otherwise the loss would be 0 to the end."""
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train_dataset = changing = Store(store)

    def overwrite(_: Any) -> None:
        changing[:] = [np.full_like(example, CLS) for example in changing]

    with pytest.raises(UsageError, match=r"from step 5 on \(samples .*--train_data_file is damaged.*of step 4 or"):
        run(trainer, callback=At("on_step_end", 4, overwrite))
    assert trainer.state.global_step < 8


def test_a_step_in_which_no_token_happens_to_be_masked_stops_no_run(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_steps=40)
    trainer.train_dataset = [np.array([CLS, 1, SEP, number, SEP]) for number in range(20)]
    run(trainer)
    assert losses(trainer).count(0.0) > 5
