"""A second run in the same folder: what is done before, goes on, is refused, or takes the place of the first."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert_convolutions import files
from bert_convolutions.errors import RunInterrupted, TrainingDiverged, UsageError
from bert_convolutions.glue import state
from bert_convolutions.glue.finetune import GlueTrainer
from bert_convolutions.glue.run import run_glue
from bert_convolutions.schemas import TaskState
from tests.glue.helpers import arguments, kill_in_step, options
from tests.helpers import contents, same_weights


def change_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights = {name: value + 0.01 for name, value in weights.items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def flip_labels(data: Path, task: str = "RTE") -> None:
    """Other labels in a file of the same size."""
    path = data / task / "train.tsv"
    text = path.read_text()
    a, b = "\tentailment\n", "\tnot_entailment\n"
    path.write_text(text.replace(b, "\0").replace(a, b).replace("\0", a))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path, model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("done") / "out"
    run_glue(options(glue_dir, model_dir), arguments(folder, do_train=True, do_eval=True, do_predict=True))
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "out"))


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


@pytest.fixture
def data(glue_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(glue_dir, tmp_path / "data"))


OTHER_FLAGS = {
    "learning_rate": 1e-4,
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "optim": "sgd",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "seed": 1,
    "data_seed": 1,
}


@pytest.mark.parametrize("flag", OTHER_FLAGS)
def test_results_of_other_flags_are_not_done_before(again: Path, glue_dir: Path, model_dir: Path, flag: str):
    before = contents(again)
    named = "batch_size" if flag.startswith(("per_device", "gradient")) else flag
    with pytest.raises(UsageError, match=rf"RTE in .* was fine-tuned with {named} .*\(now .*--overwrite_output_dir"):
        run_glue(options(glue_dir, model_dir), arguments(again, do_train=True, **{flag: OTHER_FLAGS[flag]}))
    assert contents(again) == before


def test_a_result_of_the_last_step_is_not_that_of_the_best(again: Path, glue_dir: Path, model_dir: Path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 9999999}
    with pytest.raises(UsageError, match=r"was fine-tuned with load_best_model_at_end False \(now True\)"):
        run_glue(options(glue_dir, model_dir), arguments(again, do_train=True, **best))


def test_results_of_another_length_are_not_done_before(again: Path, glue_dir: Path, model_dir: Path):
    with pytest.raises(UsageError, match=r"max_seq_length 32 \(now 16\)"):
        run_glue(options(glue_dir, model_dir, max_seq_length=16), arguments(again, do_train=True))


def test_the_same_batch_in_other_parts_is_the_same_run(again: Path, glue_dir: Path, model_dir: Path, capsys):
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    run_glue(options(glue_dir, model_dir), arguments(again, do_train=True, **given))
    assert "RTE: done before" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["another path", "the same path"])
def test_results_of_other_weights_are_not_done_before(
    tmp_path: Path, glue_dir: Path, model: Path, where: str, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    run_glue(options(glue_dir, model), arguments(out, do_train=True))
    other = model if where == "the same path" else Path(shutil.copytree(model, tmp_path / "other"))
    if where == "another path":  # with the same weights it is the same model
        run_glue(options(glue_dir, other), arguments(out, do_train=True))
        assert "RTE: done before" in capsys.readouterr().out
    change_weights(other)
    with pytest.raises(UsageError, match=rf"the weights of {model} \(now other ones, those of {other}\)"):
        run_glue(options(glue_dir, other), arguments(out, do_train=True))
    run_glue(options(glue_dir, other, overwrite_output_dir=True), arguments(out, do_train=True))
    run_glue(options(glue_dir, other), arguments(out, do_train=True))


def test_another_dropout_is_another_model(tmp_path: Path, glue_dir: Path, model: Path):
    run_glue(options(glue_dir, model), arguments(tmp_path / "out", do_train=True))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.3}))
    with pytest.raises(UsageError, match="the weights of"):
        run_glue(options(glue_dir, model), arguments(tmp_path / "out", do_train=True))


def test_results_of_other_data_are_not_done_before(again: Path, data: Path, model_dir: Path):
    flip_labels(data)
    with pytest.raises(UsageError, match=r"RTE in .* was fine-tuned with another training file"):
        run_glue(options(data, model_dir), arguments(again, do_train=True))


def test_a_task_that_started_from_another_encoder_of_mnli(tmp_path: Path, glue_dir: Path, model_dir: Path):
    """RTE0 without MNLI, then with it: the paper's RTE starts from MNLI's encoder, so this one is not done."""
    run_glue(options(glue_dir, model_dir, "RTE,MRPC", rounds=1), arguments(tmp_path, do_train=True))
    with pytest.raises(UsageError, match=r"MRPC0 in .*the weights of .*MNLI0/transformer_subgraph"):
        run_glue(options(glue_dir, model_dir, "MNLI,MRPC,RTE", rounds=1), arguments(tmp_path, do_train=True))
    assert not (tmp_path / "MNLI0").exists()
    for name in ("MRPC0", "RTE0"):  # as the message says
        shutil.rmtree(tmp_path / name)
    run_glue(options(glue_dir, model_dir, "MNLI,MRPC", rounds=1), arguments(tmp_path, do_train=True))
    run_glue(options(glue_dir, model_dir, "MNLI,MRPC", rounds=1), arguments(tmp_path, do_train=True))


def half_done(folder: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Stop a run of five steps after its second."""
    with monkeypatch.context() as patch:
        kill_in_step(patch, 2, signal.SIGTERM)
        with pytest.raises(RunInterrupted):
            run_glue(options(data, model), arguments(folder, do_train=True, max_steps=5))
    assert (folder / "checkpoint-2").is_dir()
    return contents(folder)


@pytest.mark.parametrize("change", ["batch", "rate", "weights", "labels"])
def test_a_half_done_run_is_neither_mixed_nor_deleted(
    tmp_path: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    before = half_done(tmp_path / "out", data, model, monkeypatch)
    given = {"max_steps": 5, "do_train": True}
    if change == "batch":
        given["per_device_train_batch_size"] = 4
    elif change == "rate":
        given["learning_rate"] = 1e-4
    elif change == "weights":
        change_weights(model)
    else:
        flip_labels(data)
    with pytest.raises(UsageError, match=r"RTE in .* is in the middle of a run with "):
        run_glue(options(data, model), arguments(tmp_path / "out", **given))
    assert contents(tmp_path / "out") == before


def test_a_half_done_run_goes_on_from_the_same_weights_by_another_path(
    tmp_path: Path, glue_dir: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    half_done(tmp_path / "out", glue_dir, model, monkeypatch)
    monkeypatch.chdir(model.parent)
    run_glue(options(glue_dir, Path("model")), arguments(tmp_path / "out", do_train=True, max_steps=5))
    assert "resuming from" in capsys.readouterr().out
    run_glue(options(glue_dir, model), arguments(tmp_path / "whole", do_train=True, max_steps=5))
    assert same_weights(tmp_path / "whole", tmp_path / "out")


def test_data_that_changes_under_a_run_is_refused(tmp_path: Path, data: Path, model_dir: Path, monkeypatch):
    from bert_convolutions.glue.examples import GlueData

    check = GlueData.check

    def check_then_change(self, jobs):
        counts = check(self, jobs)
        flip_labels(data)
        return counts

    monkeypatch.setattr(GlueData, "check", check_then_change)
    with pytest.raises(UsageError, match=r"RTE/train\.tsv has changed since this run began"):
        run_glue(options(data, model_dir), arguments(tmp_path / "out", do_train=True))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_nothing_is_predicted_by_what_was_not_saved(again: Path, glue_dir: Path, model_dir: Path, name: str, capsys):
    for path in again.glob("test_results*"):
        path.unlink()
    kept = json.loads((again / "glue_state.json").read_text())
    (again / "glue_state.json").write_text(json.dumps(kept | {"predicted": {}}))
    if name == "model.safetensors":
        change_weights(again)
    else:
        (again / name).write_text((again / name).read_text() + "\n")
    with pytest.raises(UsageError, match=rf"{name} has changed since it was saved after training"):
        run_glue(options(glue_dir, model_dir), arguments(again, do_predict=True))
    assert not list(again.glob("test_results*"))


def test_the_rest_is_predicted_and_the_exit_says_what_was_not(tmp_path: Path, glue_dir: Path, model_dir: Path):
    run_glue(options(glue_dir, model_dir, "RTE,WNLI", rounds=1), arguments(tmp_path, do_train=True))
    change_weights(tmp_path / "RTE0")
    with pytest.raises(UsageError, match=r"RTE0/model\.safetensors has changed since it was saved"):
        run_glue(options(glue_dir, model_dir, "RTE,WNLI", rounds=1), arguments(tmp_path, do_predict=True))
    assert (tmp_path / "WNLI0" / "test_results_wnli.txt").is_file()
    assert not (tmp_path / "RTE0" / "test_results_rte.txt").exists()


def test_a_test_file_that_is_not_there_fails_no_second_run(tmp_path: Path, data: Path, model_dir: Path, capsys):
    (data / "diagnostic" / "diagnostic.tsv").unlink()
    for _ in range(2):
        run_glue(options(data, model_dir, "MNLI"), arguments(tmp_path / "out", do_train=True, do_predict=True))
        assert "Left out: MNLI (diagnostic/diagnostic.tsv)" in capsys.readouterr().out


def test_a_state_of_the_version_before_is_read(again: Path, glue_dir: Path, model_dir: Path, capsys):
    kept = json.loads((again / "glue_state.json").read_text())
    names = ("seed", "learning_rate", "batch_size", "max_steps", "num_train_epochs", "max_seq_length", "model")
    old = {name: kept["settings"][name] for name in names}
    del kept["saved"]
    (again / "glue_state.json").write_text(json.dumps(kept | {"settings": old}))
    run_glue(options(glue_dir, model_dir), arguments(again, do_train=True, do_eval=True, do_predict=True))
    assert "RTE: done before" in capsys.readouterr().out


BAD_STATES = {
    "list": [],
    "null": None,
    "key": {"task": "RTE", "settings": {}, "other": 1},
    "score": {"task": "RTE", "settings": {}, "trained": True, "dev": {"rte": {"eval_acc": "high"}}},
    "trained": {"task": "RTE", "settings": {}, "trained": "yes"},
    "rows": {"task": "RTE", "settings": {}, "trained": True, "predicted": {"rte": -1}},
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_of_another_form_is_named_and_overwritten_if_told(again: Path, glue_dir: Path, model_dir: Path, case):
    (again / "glue_state.json").write_text(json.dumps(BAD_STATES[case]))
    before = contents(again)
    with pytest.raises(UsageError, match=r"glue_state\.json is damaged: delete or move .* to run this task again"):
        run_glue(options(glue_dir, model_dir), arguments(again, do_train=True))
    assert contents(again) == before
    run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(again, do_train=True))
    assert not (again / "eval_results_rte.txt").exists()


def test_killed_while_the_first_state_was_written(tmp_path: Path, glue_dir: Path, model_dir: Path):
    """The rerun just works, and finished tasks stay as they are."""
    chosen = options(glue_dir, model_dir, "RTE,WNLI", rounds=1)
    run_glue(chosen, arguments(tmp_path, do_train=True))
    before = contents(tmp_path / "RTE0")
    shutil.rmtree(tmp_path / "WNLI0")
    (tmp_path / "WNLI0").mkdir()
    (tmp_path / "WNLI0" / ".glue_state.json.abc123.writing").write_text("{")
    run_glue(chosen, arguments(tmp_path, do_train=True))
    assert contents(tmp_path / "RTE0") == before
    assert (tmp_path / "WNLI0" / "model.safetensors").is_file()
    assert not list((tmp_path / "WNLI0").glob(".*.writing"))


def test_a_strangers_folder_is_to_be_moved_and_finished_tasks_stay(tmp_path: Path, glue_dir: Path, model_dir: Path):
    (tmp_path / "RTE1").mkdir()
    (tmp_path / "RTE1" / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"RTE1 is not empty and was not made by bertconv glue \(notes.txt\): move it"):
        run_glue(options(glue_dir, model_dir, rounds=2), arguments(tmp_path, do_train=True))


# An overwrite


def fail_before_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, *args, **kwargs):
        raise RuntimeError("no such optimizer")

    monkeypatch.setattr(GlueTrainer, "create_optimizer", fail)


def test_an_overwrite_that_fails_leaves_the_old_run(again: Path, glue_dir: Path, model_dir: Path, monkeypatch):
    before = contents(again)
    fail_before_the_first_checkpoint(monkeypatch)
    with pytest.raises(RuntimeError, match="no such optimizer"):
        run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(again, do_train=True, seed=1))
    assert contents(again) == before


def test_an_overwrite_that_diverges_leaves_the_old_run(again: Path, glue_dir: Path, model_dir: Path):
    before = contents(again)
    wild = {"learning_rate": 1e30, "max_grad_norm": 1e30, "max_steps": 4}
    with pytest.raises(TrainingDiverged):
        run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(again, do_train=True, **wild))
    assert contents(again) == before


def test_an_overwrite_takes_the_place_of_the_old_run(again: Path, glue_dir: Path, model_dir: Path):
    (again / "thesis.tex").write_text("precious")
    before = contents(again)
    run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(again, do_train=True, seed=1))
    after = contents(again)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["thesis.tex"] == b"precious"
    assert not {"eval_results_rte.txt", "test_results_rte.txt"} & after.keys()
    assert not (again / files.ASIDE_NAME).exists()


def test_the_old_run_goes_when_a_checkpoint_stands(again: Path, glue_dir: Path, model_dir: Path, monkeypatch):
    kill_in_step(monkeypatch, 2, signal.SIGTERM)
    changed = options(glue_dir, model_dir, overwrite_output_dir=True)
    with pytest.raises(RunInterrupted):
        run_glue(changed, arguments(again, do_train=True, seed=1, max_steps=5))
    assert not (again / files.ASIDE_NAME).exists()
    run_glue(options(glue_dir, model_dir), arguments(again, do_train=True, seed=1, max_steps=5))
    assert json.loads((again / "glue_state.json").read_text())["settings"]["seed"] == 1


class Killed(BaseException):
    """Stands for a SIGKILL: nobody catches it in the functions under test."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Die before the change of the file system with this number, from 0."""
    seen = []

    def dying(function):
        def call(*args, **kwargs):
            seen.append(1)
            if len(seen) > number:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", dying(shutil.rmtree))


def survive(monkeypatch: pytest.MonkeyPatch, number: int, *steps) -> bool:
    """Do steps until killed; whether they came to their end."""
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        try:
            for step in steps:
                step()
        except Killed:
            return False
    return True


@pytest.mark.parametrize("stands", [False, True])
def test_an_overwrite_killed_anywhere_is_whole_again(again: Path, tmp_path: Path, monkeypatch, stands: bool):
    """Killed while it sets aside or begins, and again while that is settled: the old run or the new one, all of it."""
    old = contents(again)
    new_state = TaskState(task="RTE", settings={"seed": 1})

    def train() -> None:
        (again / "tokenizer.json").write_text("new")
        (again / "config.json").write_text("new")
        if stands:
            state.write_state(again, new_state.model_copy(update={"trained": True}))

    killed = 0
    for first in range(100):
        ended = survive(monkeypatch, first, lambda: state.start_anew(again, new_state), train)
        for second in range(100):
            if survive(monkeypatch, second, lambda: state.settle_overwrite(again)):
                break
            killed += 1
        files.remove_temporaries(again)
        if stands and state.read_state(again).settings == new_state.settings:  # killed after that was written, or not
            assert contents(again).keys() == {"glue_state.json", "tokenizer.json", "config.json"}
            break
        assert contents(again) == old, first
        if ended:
            break
    assert first > 8 and killed > 30
    assert not (again / files.ASIDE_NAME).exists()


def test_a_killed_overwrite_is_settled_by_the_next_run(again: Path, glue_dir: Path, model_dir: Path, capsys):
    before = contents(again)
    state.start_anew(again, TaskState(task="RTE", settings={"seed": 1}))
    assert contents(again) != before
    run_glue(options(glue_dir, model_dir), arguments(again, do_train=True))
    assert "RTE: done before" in capsys.readouterr().out
    assert contents(again) == before


# What is in the way


@pytest.mark.parametrize("relation", ["is", "holds", "lies in"])
@pytest.mark.parametrize("flag", ["--model_name_or_path", "--data_dir", "--tokenizer_name", "--hyperparams"])
def test_an_output_in_the_way_of_an_input(tmp_path: Path, data: Path, model: Path, tokenizer, flag: str, relation: str):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    yaml = tmp_path / "hyper" / "mine.yaml"
    yaml.parent.mkdir()
    yaml.write_text("RTE: {learning_rate: 1e-3, batch_size: 8, steps: 2}")
    inputs = {
        "--model_name_or_path": model,
        "--data_dir": data,
        "--tokenizer_name": tmp_path / "tokenizer",
        "--hyperparams": yaml,
    }
    chosen = options(
        data, model, tokenizer_name=str(tmp_path / "tokenizer"), hyperparams=str(yaml), overwrite_output_dir=True
    )
    output = {"is": inputs[flag], "holds": inputs[flag].parent, "lies in": inputs[flag] / "out"}[relation]
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=rf"--output_dir .* {relation} the input "):
        run_glue(chosen, arguments(output, do_train=True))
    assert contents(tmp_path) == before
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(inputs[flag].parent)
    with pytest.raises(UsageError, match="the input "):
        run_glue(chosen, arguments(link, do_train=True))
    assert contents(tmp_path) == before


def test_an_overwrite_does_not_touch_a_model_that_glue_did_not_make(tmp_path: Path, glue_dir: Path, model_dir, model):
    (model / "checkpoint-7").mkdir()
    (model / "checkpoint-7" / "weights").write_text("precious")
    before = contents(model)
    with pytest.raises(UsageError, match=r"config.json was not made by bertconv glue"):
        run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(model, do_train=True))
    assert contents(model) == before


def test_predicting_may_name_the_output_as_the_model(again: Path, glue_dir: Path):
    run_glue(options(glue_dir, again), arguments(again, do_predict=True))


def test_an_output_that_can_not_be_written(tmp_path: Path, glue_dir: Path, model_dir: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output_dir .*file/out can't be made: Not a directory"):
        run_glue(options(glue_dir, model_dir), arguments(tmp_path / "file" / "out", do_train=True))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "ro" and access(path, mode))
    with pytest.raises(UsageError, match=r"--output_dir .*ro can't be written to"):
        run_glue(options(glue_dir, model_dir), arguments(tmp_path / "ro", do_train=True))


def test_scores_that_are_no_numbers_are_not_kept(again: Path, glue_dir: Path, model_dir: Path):
    weights = load_file(again / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, again / "model.safetensors", metadata={"format": "pt"})
    kept = json.loads((again / "glue_state.json").read_text())
    kept |= {"dev": {}, "saved": {"model.safetensors": files.sha256(again / "model.safetensors")}}
    (again / "glue_state.json").write_text(json.dumps(kept))
    with pytest.raises(TrainingDiverged, match="its scores on rte are not finite"):
        run_glue(options(glue_dir, model_dir), arguments(again, do_eval=True))
