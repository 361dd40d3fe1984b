"""A second run in a folder resumes, finishes, refuses or replaces the first, and never loses it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from bert_convolutions import files
from bert_convolutions.errors import EXIT_DIVERGED
from bert_convolutions.training import checkpoints
from bert_convolutions.training.output_folder import parse_resume_flag
from bert_convolutions.training.trainer import PretrainingTrainer
from tests.helpers import contents, same_weights
from tests.training.conftest import Workspace


class KilledError(BaseException):
    """Ends a run in place of kill -9."""


def resume(workspace: Workspace, output: str, **changes: Any) -> int:
    return workspace.run(output, resume_from_checkpoint="true", **changes)


def steps_of_results(folder: Path) -> int:
    return json.loads((folder / "train_results.json").read_text())["steps"]


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make a function end the run at its n-th call, or at the n-th call for which ``of`` is true."""
    with monkeypatch.context() as patch:

        def plan(owner: Any, name: str, call: int, of: Callable[..., bool] = lambda *_, **__: True) -> None:
            genuine = getattr(owner, name)
            calls = iter(range(1, 10**6))

            def killed(*args: Any, **kwargs: Any) -> Any:
                if of(*args, **kwargs) and next(calls) == call:
                    raise KilledError
                return genuine(*args, **kwargs)

            patch.setattr(owner, name, killed)

        plan.undo = patch.undo  # type: ignore[attr-defined]
        yield plan


@pytest.mark.parametrize("value", [None, False, "false", "False", "none", ""])
def test_a_run_is_not_resumed_by_other_words_for_no(value: str | bool | None) -> None:
    assert parse_resume_flag(value) is None and parse_resume_flag(True) == parse_resume_flag("True") == "true"


def test_a_longer_run_interrupted_at_its_end_is_finished_by_the_next(
    workspace: Workspace, kill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results of the shorter run are not taken for those of the longer one, nor put beside its model."""
    folder = workspace.folder / "longer"
    assert workspace.run("longer", max_steps=4) == 0
    shutil.copytree(folder, workspace.folder / "shorter")
    kill(PretrainingTrainer, "save_model", call=2)  # the first is the checkpoint's
    with pytest.raises(KilledError):
        resume(workspace, "longer", max_steps=6)
    kill.undo()
    assert checkpoints.newest_valid(folder).found == folder / "checkpoint-6"
    assert steps_of_results(folder) == 4 and same_weights(folder, workspace.folder / "shorter")
    assert resume(workspace, "longer", max_steps=6) == 0
    assert steps_of_results(folder) == 6 and same_weights(folder, folder / "checkpoint-6")
    assert resume(workspace, "longer", max_steps=6) == 0
    assert "the run is finished, 6 of 6 steps" in capsys.readouterr().err


def test_an_evaluation_of_the_shorter_run_is_not_kept_beside_the_model_of_the_longer_one(workspace: Workspace) -> None:
    folder = workspace.folder / "evaluated"
    assert workspace.run("evaluated", max_steps=2, do_eval="true", eval_data_file=workspace.folder / "eval.ids") == 0
    evaluation = [folder / "eval_results.json", folder / "eval_results_lm.txt"]
    assert all(path.is_file() for path in evaluation)
    assert resume(workspace, "evaluated", max_steps=4) == 0 and steps_of_results(folder) == 4
    assert not any(path.exists() for path in evaluation)


@pytest.mark.parametrize("call", [1, 3, 6])
def test_results_and_model_are_installed_together(workspace: Workspace, kill: Any, call: int) -> None:
    """Killed while their files are moved in, the next command completes the new model and the new results."""
    folder = workspace.folder / f"together-{call}"
    assert workspace.run(folder.name, max_steps=2, save_strategy="no") == 0
    shutil.copytree(folder, workspace.folder / f"was-{call}")
    kill(Path, "replace", call, of=lambda source, target: source.parent.name == ".installing")
    with pytest.raises(KilledError):
        workspace.run(folder.name, max_steps=3, overwrite_output_dir="true", save_strategy="no")
    kill.undo()
    assert resume(workspace, folder.name, max_steps=3, save_strategy="no") == 0
    assert steps_of_results(folder) == 3
    assert not same_weights(folder, workspace.folder / f"was-{call}")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != files.LOCK_NAME]


def test_the_best_model_of_a_run_that_was_moved_is_found(workspace: Workspace) -> None:
    best = {
        "load_best_model_at_end": "true",
        "metric_for_best_model": "loss",
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    best |= {"eval_data_file": workspace.folder / "eval.ids", "save_steps": 2, "max_steps": 4}
    assert workspace.run("before", **best) == 0
    moved = (workspace.folder / "before").rename(workspace.folder / "after")
    for path in (moved / "model.safetensors", moved / "train_results.json"):
        path.unlink()  # as if it had been killed after its last checkpoint
    assert workspace.run("after", **best, resume_from_checkpoint="true") == 0
    assert same_weights(moved, moved / "checkpoint-2") and not same_weights(moved, moved / "checkpoint-4")


def test_a_finished_run_without_a_checkpoint_of_its_last_step_is_not_trained_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best checkpoint may be the only one that is left; without it, the model is still the best."""
    flags = {"eval_data_file": workspace.folder / "eval.ids", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    flags |= {"metric_for_best_model": "loss", "load_best_model_at_end": "true", "save_steps": 2, "save_total_limit": 1}
    assert workspace.run("best", **flags) == 0
    folder = workspace.folder / "best"
    assert [path.name for path in checkpoints.list_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(folder / "checkpoint-4")
    before = contents(folder)
    assert resume(workspace, "best", **flags) == 0
    assert "the run is finished, 4 of 4 steps" in capsys.readouterr().err
    (folder / "checkpoint-2").rename(folder / "checkpoint-moved")
    assert resume(workspace, "best", **flags) == 0
    (folder / "checkpoint-moved").rename(folder / "checkpoint-2")
    after = contents(folder)
    assert loss_of(before) == loss_of(after) and before["model.safetensors"] == after["model.safetensors"]
    assert resume(workspace, "best", **flags | {"max_steps": 6}) == 0
    assert steps_of_results(folder) == 6


def loss_of(files: dict[str, bytes]) -> float:
    return json.loads(files["eval_results.json"])["eval_loss"]


def test_a_resumed_run_uses_new_flags_of_the_optimizer(workspace: Workspace) -> None:
    assert workspace.run("rates", max_steps=6, save_steps=3, learning_rate=0.01) == 0
    shutil.rmtree(workspace.folder / "rates" / "checkpoint-6")
    settings = {"learning_rate": 0.002, "weight_decay": 0.3, "adam_beta2": 0.9, "adam_epsilon": 1e-5}
    folder = workspace.folder / "rates"
    resumed = {"resume_from_checkpoint": folder / "checkpoint-3", **settings}
    assert workspace.run("rates", max_steps=6, save_steps=3, **resumed) == 0
    rates = [entry["learning_rate"] for entry in state_of(folder)["log_history"] if "learning_rate" in entry]
    assert rates == pytest.approx([0.01, 0.01 * 5 / 6, 0.01 * 4 / 6, 0.002 * 3 / 6, 0.002 * 2 / 6, 0.002 / 6])
    groups = torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(0.002, 0.3), (0.002, 0.0)]
    assert all(group["betas"] == (0.9, 0.9) and group["eps"] == 1e-5 for group in groups)


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


def test_an_earlier_checkpoint_is_not_resumed_beside_later_ones(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped again, the run would be resumed from a later one, which the user had gone back behind."""
    folder = workspace.folder / "back"
    assert workspace.run("back", save_steps=2, max_steps=6) == 0
    before = contents(folder)
    earlier = {"resume_from_checkpoint": folder / "checkpoint-4", "max_steps": 6, "learning_rate": 0.001}
    assert workspace.run("back", **earlier) == 2
    assert f"would take {folder / 'checkpoint-6'}" in capsys.readouterr().err and contents(folder) == before
    assert workspace.run("back-elsewhere", **earlier) == 0
    (folder / "checkpoint-6").rename(workspace.folder / "elsewhere")
    assert workspace.run("back", **earlier) == 0
    assert same_weights(folder, workspace.folder / "back-elsewhere")


def test_the_advice_after_a_divergence_works(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Resume from the last good checkpoint with a lower rate, or without one, start again with a lower rate."""
    flags = {"save_steps": 2, "max_steps": 12, "max_grad_norm": 0}
    assert workspace.run("wild", learning_rate=0.01, **{**flags, "max_steps": 2}) == 0
    assert resume(workspace, "wild", learning_rate=1e30, **flags) == EXIT_DIVERGED
    said = capsys.readouterr().err
    assert "resume from it with --resume_from_checkpoint true and a lower --learning_rate" in said
    assert (workspace.folder / "wild" / "diverged.json").exists()
    assert resume(workspace, "wild", learning_rate=0.001, **flags) == 0
    assert (
        steps_of_results(workspace.folder / "wild") == 12 and not (workspace.folder / "wild" / "diverged.json").exists()
    )
    rates = [entry.get("learning_rate", 0) for entry in state_of(workspace.folder / "wild")["log_history"]]
    assert max(rates[2:]) <= 0.001

    assert workspace.run("wild-start", learning_rate=1e30, **flags) == EXIT_DIVERGED
    assert "start again with a lower --learning_rate" in capsys.readouterr().err
    assert resume(workspace, "wild-start", learning_rate=0.001, **flags) == 0


FAILS_LATE = {
    "a rate": {"learning_rate": -1},
    "a schedule's argument": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"num_cycle": 2}'},
    "an optimizer that isn't installed": {"optim": "lomo"},
    "an optimizer's argument": {"optim": "sgd", "optim_args": "momentum=-3"},
    "a tracker that isn't installed": {"report_to": "comet_ml"},
    "a rate at which nothing is left": {"learning_rate": 1e30, "max_grad_norm": 0},
    "a metric that nobody measures": {
        "load_best_model_at_end": "true", "metric_for_best_model": "beauty", "eval_strategy": "steps", "eval_steps": 1,
        "save_strategy": "best",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", FAILS_LATE)
def test_a_run_to_be_replaced_is_kept_when_the_new_one_fails(workspace: Workspace, case: str) -> None:
    folder = workspace.folder / "precious"
    if not folder.exists():
        assert workspace.run("precious", max_steps=2) == 0
    before = contents(folder)
    changes = {"eval_data_file": workspace.folder / "eval.ids"} | FAILS_LATE[case]
    assert workspace.run("precious", overwrite_output_dir="true", seed=7, **changes) != 0
    (folder / "diverged.json").unlink(missing_ok=True)
    assert contents(folder) == before


def test_a_run_to_be_replaced_is_restored_after_a_kill_until_the_first_new_checkpoint(
    workspace: Workspace, kill: Any
) -> None:
    folder = workspace.folder / "kept"
    assert workspace.run("kept", max_steps=4, save_steps=2) == 0
    before = contents(folder)
    kill(PretrainingTrainer, "training_step", call=1)
    real_settle = files.settle_aside
    files.settle_aside = lambda *args, **kwargs: None  # what a killed process can't do any more
    try:
        with pytest.raises(KilledError):
            workspace.run("kept", max_steps=3, seed=7, overwrite_output_dir="true")
    finally:
        files.settle_aside = real_settle
        kill.undo()
    assert not checkpoints.list_checkpoints(folder) and (folder / files.ASIDE_NAME).exists()
    assert workspace.run("kept", max_steps=4) == 2  # not taken for an empty folder
    assert resume(workspace, "kept", max_steps=4, save_steps=2) == 0
    assert contents(folder) == before

    kill(PretrainingTrainer, "training_step", call=3)
    with pytest.raises(KilledError):
        workspace.run("kept", max_steps=3, save_steps=1, seed=7, overwrite_output_dir="true")
    kill.undo()
    assert [path.name for path in checkpoints.list_checkpoints(folder)] == ["checkpoint-1", "checkpoint-2"]
    assert not (folder / files.ASIDE_NAME).exists() and not (folder / "model.safetensors").exists()


def test_flags_and_data_that_make_another_run_are_refused_on_resume(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any field of the configuration, other data of the same size, and another optimizer."""
    assert workspace.run("facts", max_steps=2) == 0
    config = json.loads((workspace.folder / "config.json").read_text())
    for name, value in (("hidden_dropout_prob", 0.1), ("hidden_act", "relu"), ("layer_norm_eps", 1e-6)):
        (workspace.folder / "changed.json").write_text(json.dumps(config | {name: value}))
        assert resume(workspace, "facts", max_steps=4, config_name=workspace.folder / "changed.json") == 2
        said = capsys.readouterr().err
        assert f"{name} {value}" in said and "the model (--config_name" in said
    lines = (workspace.folder / "train.ids").read_text().splitlines()
    lines[7] = " ".join([*lines[7].split()[:1], "5", *lines[7].split()[2:]])
    (workspace.folder / "other.ids").write_text("\n".join(lines) + "\n")
    assert resume(workspace, "facts", max_steps=4, train_data_file=workspace.folder / "other.ids") == 2
    assert "the content of --train_data_file" in capsys.readouterr().err
    assert resume(workspace, "facts", max_steps=4, optim="sgd") == 2
    assert "--optim" in capsys.readouterr().err
    assert resume(workspace, "facts", max_steps=4, optim="adamw_torch") == 0  # the same optimizer with other kernels


def test_another_measure_or_schedule_by_the_loss_is_refused_on_resume(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best value so far can't be compared with one of another measure; the state of such a schedule holds its own
    settings, which would be used in place of the flags'."""
    flags = {"eval_data_file": workspace.folder / "eval.ids", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    flags |= {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": '{"patience": 1}'}
    assert workspace.run("measures", **flags) == 0
    flags["max_steps"] = 4
    for name, value in (
        ("metric_for_best_model", "masked_accuracy"),
        ("greater_is_better", "true"),
        ("lr_scheduler_kwargs", '{"patience": 2}'),
    ):
        assert resume(workspace, "measures", **flags | {name: value}) == 2
        assert f"--{name} was" in capsys.readouterr().err
    assert resume(workspace, "measures", **flags | {"metric_for_best_model": "eval_loss"}) == 0


def test_a_model_without_checkpoints_is_not_replaced_by_a_resumed_run(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is finished by these flags is reported as finished; other models and longer runs are refused."""
    folder = workspace.folder / "no-checkpoints"
    assert workspace.run(folder.name, max_steps=2, save_strategy="no") == 0
    before = contents(folder)
    assert resume(workspace, folder.name, max_steps=2, save_strategy="no") == 0
    assert "the run is finished, 2 of 2 steps" in capsys.readouterr().err
    evaluation = {"do_eval": "true", "eval_data_file": workspace.folder / "eval.ids"}
    assert resume(workspace, folder.name, max_steps=2, save_strategy="no", **evaluation) == 0
    for name in ("eval_results.json", "eval_results_lm.txt"):
        (folder / name).unlink()
    assert resume(workspace, folder.name, max_steps=2, seed=7) == 2
    assert "--seed was 42 and is now 7" in capsys.readouterr().err
    assert resume(workspace, folder.name, max_steps=3) == 2
    assert "holds a model (model.safetensors) and no checkpoint to resume from" in capsys.readouterr().err
    assert contents(folder) == before
    shutil.copytree(folder, workspace.folder / "converted")
    (workspace.folder / "converted" / "train_results.json").unlink()
    for changes in ({}, {"resume_from_checkpoint": workspace.folder / "other-run" / "checkpoint-2"}):
        if changes:
            assert workspace.run("other-run", max_steps=2) == 0
        assert workspace.run("converted", max_steps=2, **({"resume_from_checkpoint": "true"} | changes)) == 2
        assert "no checkpoint to resume from" in capsys.readouterr().err
    assert same_weights(workspace.folder / "converted", folder)


@pytest.mark.parametrize(
    "flag", ["config_name", "tokenizer_name", "train_data_file", "eval_data_file", "model_name_or_path"]
)
def test_an_input_in_the_folder_that_would_be_cleared_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    folder = workspace.folder / "holding"
    if not folder.exists():
        assert workspace.run(folder.name, max_steps=1) == 0
        for name in ("train.ids", "eval.ids"):
            shutil.copy(workspace.folder / name, folder / name)
    inside = {
        "config_name": "config.json", "tokenizer_name": "", "train_data_file": "train.ids",
        "eval_data_file": "eval.ids", "model_name_or_path": "checkpoint-1",
    }  # fmt: skip
    before = contents(folder)
    changes: dict[str, Any] = {flag: folder / inside[flag]}
    if flag == "model_name_or_path":
        changes["config_name"] = None
    changes = {"eval_data_file": workspace.folder / "eval.ids", **changes}
    assert workspace.run(folder.name, overwrite_output_dir="true", do_eval="true", **changes) == 2
    assert f"the input --{flag}" in capsys.readouterr().err and contents(folder) == before


def test_a_checkpoint_without_its_optimizer_cannot_be_resumed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.run("light", max_steps=2, save_steps=1, save_only_model="true") == 0
    assert resume(workspace, "light", max_steps=4) == 2
    assert "--save_only_model" in capsys.readouterr().err
    assert AutoModelForMaskedLM.from_pretrained(workspace.folder / "light")


def test_an_evaluation_replaces_no_results_of_another_model(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"do_eval": "true", "eval_data_file": workspace.folder / "eval.ids"}
    assert workspace.run("scored", max_steps=2, save_steps=1, **evaluation) == 0
    folder = workspace.folder / "scored"
    before = contents(folder)
    evaluation |= {"do_train": None, "config_name": None, "tokenizer_name": None}
    assert workspace.run("scored", model_name_or_path=folder / "checkpoint-1", **evaluation) == 2
    assert f"--output_dir {folder} holds the results of another model" in capsys.readouterr().err
    assert contents(folder) == before
    assert workspace.run("scored-1", model_name_or_path=folder / "checkpoint-1", **evaluation) == 0
    link = workspace.folder / "scored-link"
    link.symlink_to(folder)
    assert workspace.run("scored", model_name_or_path=link, **evaluation) == 0
