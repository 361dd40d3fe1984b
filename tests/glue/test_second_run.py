"""A second run in the same folder: what is skipped, resumed, refused, or replaces the first run."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from bert_convolutions import files
from bert_convolutions.errors import RunInterrupted, TrainingDiverged, UsageError
from bert_convolutions.glue import state
from bert_convolutions.glue.finetune import GlueTrainer
from bert_convolutions.glue.options import CompileGlueOptions
from bert_convolutions.glue.run import run_glue
from bert_convolutions.glue.submit import compile_glue, mixed_rounds
from bert_convolutions.schemas import TaskState
from tests.glue.helpers import arguments, kill_in_step, options
from tests.helpers import contents, same_weights


def change_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights = {name: value + 0.01 for name, value in weights.items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def flip_labels(data: Path, task: str = "RTE") -> None:
    """Exchange the labels in a training file, which keeps its size."""
    path = data / task / "train.tsv"
    text = path.read_text()
    a, b = "\tentailment\n", "\tnot_entailment\n"
    path.write_text(text.replace(b, "\0").replace(a, b).replace("\0", a))


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path, model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("done") / "out"
    run_glue(options(glue_dir, model_dir), arguments(folder, do_train=True, do_eval=True, do_predict=True))
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_once, tmp_path / "out"))


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
def test_results_of_other_flags_are_refused(finished: Path, glue_dir: Path, model_dir: Path, flag: str):
    before = contents(finished)
    named = "batch_size" if flag.startswith(("per_device", "gradient")) else flag
    with pytest.raises(UsageError, match=rf"RTE in .* was fine-tuned with {named} .*\(now .*--overwrite_output_dir"):
        run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True, **{flag: OTHER_FLAGS[flag]}))
    assert contents(finished) == before


def test_results_of_the_last_step_are_refused_where_the_best_is_wanted(finished: Path, glue_dir: Path, model_dir: Path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 9999999}
    with pytest.raises(UsageError, match=r"was fine-tuned with load_best_model_at_end False \(now True\)"):
        run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True, **best))


def test_results_of_another_length_are_refused(finished: Path, glue_dir: Path, model_dir: Path):
    with pytest.raises(UsageError, match=r"max_seq_length 32 \(now 16\)"):
        run_glue(options(glue_dir, model_dir, max_seq_length=16), arguments(finished, do_train=True))


def test_nothing_is_predicted_at_another_length_or_with_another_tokenizer(
    finished: Path, glue_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    """The flags of a later ``--do_predict`` have defaults; another length cuts other examples off."""
    words = list(tokenizer.get_vocab())
    swapped = tokenizer.backend_tokenizer.to_str().replace(f'"{words[9]}"', '"?"')
    tokenizer_file = tmp_path / "other" / "tokenizer.json"
    tokenizer.save_pretrained(tokenizer_file.parent)
    tokenizer_file.write_text(swapped)
    (finished / "test_results_rte.txt").unlink()
    before = contents(finished)
    for change, message in (
        ({"max_seq_length": 128}, r"max_seq_length 32 \(now 128\)"),
        ({"tokenizer_name": str(tokenizer_file.parent)}, "another tokenizer"),
    ):
        with pytest.raises(UsageError, match=f"RTE in .* was fine-tuned with {message}: give the same as before$"):
            run_glue(options(glue_dir, finished, **change), arguments(finished, do_predict=True))
    assert contents(finished) == before
    wanted = options(glue_dir, finished, max_seq_length=16, overwrite_output_dir=True)
    run_glue(wanted, arguments(finished, do_predict=True))
    assert contents(finished).keys() == {*before, "test_results_rte.txt"}


def test_rounds_of_another_run_are_not_averaged_with_those_of_this_one(
    tmp_path: Path, glue_dir: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    """Two rounds, then an overwrite of the first with another learning rate."""
    out, stages = tmp_path / "out", {"do_train": True, "do_eval": True}
    run_glue(options(glue_dir, model_dir, "MNLI,RTE", rounds=2, hyperparams="electra"), arguments(out, **stages))
    compiled = CompileGlueOptions(input=str(out), test_dir=str(tmp_path / "submission"))
    compile_glue(compiled)
    assert "don't belong together" not in capsys.readouterr().out
    again = options(glue_dir, model_dir, "MNLI,RTE", rounds=1, hyperparams="stable", overwrite_output_dir=True)
    run_glue(again, arguments(out, **stages))
    differ = "MNLI0 and MNLI1 are of different runs, which differ in batch_size, learning_rate"
    assert f"These scores don't belong together: {differ}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UsageError, match=f"--input .*out: {differ}; move the rounds of one of the runs elsewhere"):
        compile_glue(compiled)


def test_rounds_from_mnli_are_not_averaged_with_others(tmp_path: Path):
    """As where MNLI was fine-tuned in some of the rounds."""
    for number, model in enumerate(("MNLI0/transformer_subgraph", "MNLI1/transformer_subgraph", "base")):
        (tmp_path / f"RTE{number}").mkdir()
        settings = {"model": model, "weights": f"hash of {model}"}
        state.write_state(tmp_path / f"RTE{number}", TaskState(task="RTE", settings=settings))
    assert mixed_rounds(tmp_path) == "RTE1 and RTE2 are of different runs, which differ in weights"


def test_tasks_of_different_models_are_named(tmp_path: Path, glue_dir: Path, model_dir: Path, model: Path, capsys):
    """As where --output_dir was not changed with the model; tasks that start from MNLI's encoder are of its model."""
    out, stages = tmp_path / "out", {"do_train": True, "do_eval": True}
    run_glue(options(glue_dir, model_dir, "MNLI,RTE", rounds=1), arguments(out, **stages))
    assert "different models" not in capsys.readouterr().out
    change_weights(model)
    run_glue(options(glue_dir, model, "WNLI", rounds=2), arguments(out, **stages))
    message = f"Tasks started from different models: MNLI0 from {model_dir}, WNLI0 from {model}"
    assert message in " ".join(capsys.readouterr().out.split())
    compile_glue(CompileGlueOptions(input=str(out), test_dir=str(tmp_path / "submission")))
    assert message in " ".join(capsys.readouterr().out.split())
    with (out / "dev_scores.csv").open() as file:
        values = {tuple(row.values())[:4]: float(row["value"]) for row in csv.DictReader(file)}
    assert len(values) == 4 + 2 + 2 * 2
    for number in ("0", "1"):
        saved = state.read_state(out / f"WNLI{number}").dev["wnli"]
        assert saved == {f"eval_{name}": values["WNLI", number, "wnli", name] for name in ("loss", "acc")}
    assert ("MNLI", "0", "mnli-mm", "acc") in values


def test_the_same_batch_by_accumulation_is_the_same_run(finished: Path, glue_dir: Path, model_dir: Path, capsys):
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True, **given))
    assert "RTE: done before" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["another path", "the same path"])
def test_results_of_other_weights_are_refused(
    tmp_path: Path, glue_dir: Path, model: Path, where: str, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    run_glue(options(glue_dir, model), arguments(out, do_train=True))
    other = model if where == "the same path" else Path(shutil.copytree(model, tmp_path / "other"))
    if where == "another path":  # the same weights are the same model
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


def test_results_of_other_data_are_refused(finished: Path, data: Path, model_dir: Path):
    flip_labels(data)
    with pytest.raises(UsageError, match=r"RTE in .* was fine-tuned with another training file"):
        run_glue(options(data, model_dir), arguments(finished, do_train=True))


def test_results_that_did_not_start_from_the_encoder_of_mnli_are_refused(
    tmp_path: Path, glue_dir: Path, model_dir: Path
):
    """Run without MNLI, then with it: the paper's MRPC and RTE start from MNLI's encoder."""
    run_glue(options(glue_dir, model_dir, "RTE,MRPC", rounds=1), arguments(tmp_path, do_train=True))
    with pytest.raises(UsageError, match=r"MRPC0 in .*the weights of .*MNLI0/transformer_subgraph"):
        run_glue(options(glue_dir, model_dir, "MNLI,MRPC,RTE", rounds=1), arguments(tmp_path, do_train=True))
    assert not (tmp_path / "MNLI0").exists()
    for name in ("MRPC0", "RTE0"):  # as the message says
        shutil.rmtree(tmp_path / name)
    run_glue(options(glue_dir, model_dir, "MNLI,MRPC", rounds=1), arguments(tmp_path, do_train=True))
    run_glue(options(glue_dir, model_dir, "MNLI,MRPC", rounds=1), arguments(tmp_path, do_train=True))


def stop_in_the_middle(folder: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Stop a run of five steps after its second."""
    with monkeypatch.context() as patch:
        kill_in_step(patch, 2, signal.SIGTERM)
        with pytest.raises(RunInterrupted):
            run_glue(options(data, model), arguments(folder, do_train=True, max_steps=5))
    assert (folder / "checkpoint-2").is_dir()
    return contents(folder)


@pytest.mark.parametrize("change", ["batch", "rate", "weights", "labels"])
def test_a_stopped_run_is_not_resumed_by_other_flags_and_is_kept(
    tmp_path: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    before = stop_in_the_middle(tmp_path / "out", data, model, monkeypatch)
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


def test_a_stopped_run_resumes_with_the_same_weights_under_another_path(
    tmp_path: Path, glue_dir: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    stop_in_the_middle(tmp_path / "out", glue_dir, model, monkeypatch)
    monkeypatch.chdir(model.parent)
    run_glue(options(glue_dir, Path("model")), arguments(tmp_path / "out", do_train=True, max_steps=5))
    assert "resuming from" in capsys.readouterr().out
    run_glue(options(glue_dir, model), arguments(tmp_path / "whole", do_train=True, max_steps=5))
    assert same_weights(tmp_path / "whole", tmp_path / "out")


def test_data_that_changes_during_a_run_is_refused(tmp_path: Path, data: Path, model_dir: Path, monkeypatch):
    from bert_convolutions.glue.examples import GlueData

    check = GlueData.check

    def check_then_change(self, jobs):
        counts = check(self, jobs)
        flip_labels(data)
        return counts

    monkeypatch.setattr(GlueData, "check", check_then_change)
    with pytest.raises(UsageError, match=r"RTE/train\.tsv has changed since this run began"):
        run_glue(options(data, model_dir), arguments(tmp_path / "out", do_train=True))


def test_results_that_were_deleted_are_made_again(finished: Path, glue_dir: Path, model_dir: Path):
    """As ``compile-glue`` advises where the predictions of a best round are missing."""
    before = contents(finished)
    for path in (*finished.glob("test_results_*"), *finished.glob("eval_results_*")):
        path.unlink()
    run_glue(options(glue_dir, model_dir), arguments(finished, do_eval=True, do_predict=True))
    assert contents(finished) == before


def test_results_of_other_development_and_test_data_are_made_again(
    tmp_path: Path, data: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    """Whoever corrects a label of a development file wants its new score, of the model that was fine-tuned before."""
    out, stages = tmp_path / "out", {"do_train": True, "do_eval": True, "do_predict": True}
    run_glue(options(data, model_dir), arguments(out, **stages))
    first = contents(out)
    dev, test = data / "RTE" / "dev.tsv", data / "RTE" / "test.tsv"
    dev.write_text(dev.read_text().replace("\tnot_entailment\n", "\tentailment\n"))
    test.write_text("".join(test.read_text().splitlines(keepends=True)[:-1]))
    run_glue(options(data, model_dir), arguments(out, **stages))
    second = contents(out)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"glue_state.json", "eval_results_rte.txt", "test_results_rte.txt"}
    run_glue(options(data, model_dir), arguments(out, **stages))
    assert contents(out) == second and "RTE: done before" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_nothing_is_predicted_with_files_that_changed_after_training(
    finished: Path, glue_dir: Path, model_dir: Path, name: str, capsys
):
    for path in finished.glob("test_results*"):
        path.unlink()
    kept = json.loads((finished / "glue_state.json").read_text())
    (finished / "glue_state.json").write_text(json.dumps(kept | {"predicted": {}}))
    if name == "model.safetensors":
        change_weights(finished)
    else:
        (finished / name).write_text((finished / name).read_text() + "\n")
    with pytest.raises(UsageError, match=rf"{name} has changed since it was saved after training"):
        run_glue(options(glue_dir, model_dir), arguments(finished, do_predict=True))
    assert not list(finished.glob("test_results*"))


def test_the_other_tasks_are_predicted_and_the_error_names_those_that_are_not(
    tmp_path: Path, glue_dir: Path, model_dir: Path
):
    run_glue(options(glue_dir, model_dir, "RTE,WNLI", rounds=1), arguments(tmp_path, do_train=True))
    change_weights(tmp_path / "RTE0")
    with pytest.raises(UsageError, match=r"RTE0/model\.safetensors has changed since it was saved"):
        run_glue(options(glue_dir, model_dir, "RTE,WNLI", rounds=1), arguments(tmp_path, do_predict=True))
    assert (tmp_path / "WNLI0" / "test_results_wnli.txt").is_file()
    assert not (tmp_path / "RTE0" / "test_results_rte.txt").exists()


def test_a_missing_test_file_is_left_out_of_both_runs(tmp_path: Path, data: Path, model_dir: Path, capsys):
    (data / "diagnostic" / "diagnostic.tsv").unlink()
    for _ in range(2):
        run_glue(options(data, model_dir, "MNLI"), arguments(tmp_path / "out", do_train=True, do_predict=True))
        assert "Left out: MNLI (diagnostic/diagnostic.tsv)" in capsys.readouterr().out


def test_a_state_of_the_previous_version_is_read(finished: Path, glue_dir: Path, model_dir: Path, capsys):
    kept = json.loads((finished / "glue_state.json").read_text())
    names = ("seed", "learning_rate", "batch_size", "max_steps", "num_train_epochs", "max_seq_length", "model")
    old = {name: kept["settings"][name] for name in names}
    del kept["saved"]
    (finished / "glue_state.json").write_text(json.dumps(kept | {"settings": old}))
    run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True, do_eval=True, do_predict=True))
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
def test_a_damaged_state_is_refused_and_overwritten_with_the_flag(
    finished: Path, glue_dir: Path, model_dir: Path, case
):
    (finished / "glue_state.json").write_text(json.dumps(BAD_STATES[case]))
    before = contents(finished)
    with pytest.raises(UsageError, match=r"glue_state\.json is damaged: delete or move .* to run this task again"):
        run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True))
    assert contents(finished) == before
    run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(finished, do_train=True))
    assert not (finished / "eval_results_rte.txt").exists()


def test_a_task_killed_while_its_first_state_was_written_is_run_and_others_are_kept(
    tmp_path: Path, glue_dir: Path, model_dir: Path
):
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


def test_a_folder_that_glue_did_not_make_is_refused(tmp_path: Path, glue_dir: Path, model_dir: Path):
    (tmp_path / "RTE1").mkdir()
    (tmp_path / "RTE1" / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"RTE1 is not empty and was not made by bertconv glue \(notes.txt\): move it"):
        run_glue(options(glue_dir, model_dir, rounds=2), arguments(tmp_path, do_train=True))


# Overwriting


def fail_before_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, *args, **kwargs):
        raise RuntimeError("no such optimizer")

    monkeypatch.setattr(GlueTrainer, "create_optimizer", fail)


def test_an_overwrite_that_fails_leaves_the_old_run(finished: Path, glue_dir: Path, model_dir: Path, monkeypatch):
    before = contents(finished)
    fail_before_the_first_checkpoint(monkeypatch)
    with pytest.raises(RuntimeError, match="no such optimizer"):
        run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(finished, do_train=True, seed=1))
    assert contents(finished) == before


def test_an_overwrite_that_diverges_leaves_the_old_run(finished: Path, glue_dir: Path, model_dir: Path):
    before = contents(finished)
    wild = {"learning_rate": 1e30, "max_grad_norm": 1e30, "max_steps": 4}
    with pytest.raises(TrainingDiverged):
        run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(finished, do_train=True, **wild))
    assert contents(finished) == before


def test_an_overwrite_replaces_the_old_run_and_keeps_other_files(finished: Path, glue_dir: Path, model_dir: Path):
    (finished / "thesis.tex").write_text("precious")
    before = contents(finished)
    run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), arguments(finished, do_train=True, seed=1))
    after = contents(finished)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["thesis.tex"] == b"precious"
    assert not {"eval_results_rte.txt", "test_results_rte.txt"} & after.keys()
    assert not (finished / files.ASIDE_NAME).exists()


def test_the_old_run_is_deleted_after_the_first_new_checkpoint(
    finished: Path, glue_dir: Path, model_dir: Path, monkeypatch
):
    kill_in_step(monkeypatch, 2, signal.SIGTERM)
    changed = options(glue_dir, model_dir, overwrite_output_dir=True)
    with pytest.raises(RunInterrupted):
        run_glue(changed, arguments(finished, do_train=True, seed=1, max_steps=5))
    assert not (finished / files.ASIDE_NAME).exists()
    run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True, seed=1, max_steps=5))
    assert json.loads((finished / "glue_state.json").read_text())["settings"]["seed"] == 1


class Killed(BaseException):
    """In place of SIGKILL: the functions under test don't catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Raise ``Killed`` before the change of the file system with this number, from 0."""
    seen = []

    def killing(function):
        def call(*args, **kwargs):
            seen.append(1)
            if len(seen) > number:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
        monkeypatch.setattr(Path, name, killing(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", killing(shutil.rmtree))


def run_until_killed(monkeypatch: pytest.MonkeyPatch, number: int, *steps) -> bool:
    """Whether all steps ran without being killed."""
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        try:
            for step in steps:
                step()
        except Killed:
            return False
    return True


@pytest.mark.parametrize("is_trained", [False, True])
def test_an_overwrite_killed_at_any_change_leaves_either_the_old_or_the_new_run(
    finished: Path, tmp_path: Path, monkeypatch, is_trained: bool
):
    """Killed while the old run is set aside or the new one begins, and again while that is settled."""
    old = contents(finished)
    new_state = TaskState(task="RTE", settings={"seed": 1})

    def train() -> None:
        (finished / "tokenizer.json").write_text("new")
        (finished / "config.json").write_text("new")
        if is_trained:
            state.write_state(finished, new_state.model_copy(update={"trained": True}))

    killed = 0
    for first in range(100):
        ended = run_until_killed(monkeypatch, first, lambda: state.start_anew(finished, new_state), train)
        for second in range(100):
            if run_until_killed(monkeypatch, second, lambda: state.settle_overwrite(finished)):
                break
            killed += 1
        files.remove_temporaries(finished)
        if is_trained and state.read_state(finished).settings == new_state.settings:  # killed after it was written
            assert contents(finished).keys() == {"glue_state.json", "tokenizer.json", "config.json"}
            break
        assert contents(finished) == old, first
        if ended:
            break
    assert first > 8 and killed > 30
    assert not (finished / files.ASIDE_NAME).exists()


def test_a_killed_overwrite_is_undone_by_the_next_run(finished: Path, glue_dir: Path, model_dir: Path, capsys):
    before = contents(finished)
    state.start_anew(finished, TaskState(task="RTE", settings={"seed": 1}))
    assert contents(finished) != before
    run_glue(options(glue_dir, model_dir), arguments(finished, do_train=True))
    assert "RTE: done before" in capsys.readouterr().out
    assert contents(finished) == before


# Outputs that are refused


@pytest.mark.parametrize("relation", ["is", "holds", "lies in"])
@pytest.mark.parametrize("flag", ["--model_name_or_path", "--data_dir", "--tokenizer_name", "--hyperparams"])
def test_an_output_that_overlaps_an_input_is_refused(
    tmp_path: Path, data: Path, model: Path, tokenizer, flag: str, relation: str
):
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


def test_for_prediction_the_output_can_be_the_model(finished: Path, glue_dir: Path):
    run_glue(options(glue_dir, finished), arguments(finished, do_predict=True))


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, glue_dir: Path, model_dir: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output_dir .*file/out can't be made: Not a directory"):
        run_glue(options(glue_dir, model_dir), arguments(tmp_path / "file" / "out", do_train=True))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "ro" and access(path, mode))
    with pytest.raises(UsageError, match=r"--output_dir .*ro can't be written to"):
        run_glue(options(glue_dir, model_dir), arguments(tmp_path / "ro", do_train=True))


def test_scores_that_are_not_finite_are_not_saved(finished: Path, glue_dir: Path, model_dir: Path):
    weights = load_file(finished / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, finished / "model.safetensors", metadata={"format": "pt"})
    kept = json.loads((finished / "glue_state.json").read_text())
    kept |= {"dev": {}, "saved": {"model.safetensors": files.sha256(finished / "model.safetensors")}}
    (finished / "glue_state.json").write_text(json.dumps(kept))
    with pytest.raises(TrainingDiverged, match="its scores on rte are not finite"):
        run_glue(options(glue_dir, model_dir), arguments(finished, do_eval=True))
