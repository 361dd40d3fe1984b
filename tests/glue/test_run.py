"""``bertconv glue`` end to end with a tiny random model on a tiny GLUE: train, predict, compile, stop and resume."""

import json
import shutil
import signal
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_convolutions.errors import RunInterrupted, TrainingDiverged, UsageError
from bert_convolutions.glue import finetune, models
from bert_convolutions.glue.options import CompileGlueOptions
from bert_convolutions.glue.run import run_glue
from bert_convolutions.glue.submit import compile_submission
from bert_convolutions.glue.tasks import TASKS, all_dev_sets, all_test_sets
from tests.glue.helpers import arguments, kill_in_step, options
from tests.helpers import NO_DROPOUT, same_weights, weights
from tests.ranks import run_in_two_ranks


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path, model_dir: Path) -> Path:
    """Nine tasks and AX, one round, fine-tuned, scored and predicted."""
    folder = tmp_path_factory.mktemp("all")
    run_glue(
        options(glue_dir, model_dir, "ALL", rounds=1, hyperparams="electra"),
        arguments(folder, do_train=True, do_eval=True, do_predict=True, per_device_train_batch_size=99999),
    )
    return folder


def test_every_task_has_its_results(finished: Path):
    for task in TASKS:
        folder = finished / f"{task.name}0"
        for dev in task.dev:
            lines = (folder / f"eval_results_{dev.name}.txt").read_text().splitlines()
            assert dev.score in {line.split(" = ")[0] for line in lines}
        for test in task.tests:
            rows = (folder / f"test_results_{test.name}.txt").read_text().splitlines()
            assert rows[0] == "index\tprediction"
            assert [row.split("\t")[0] for row in rows[1:]] == [str(index) for index in range(7)]
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == task.num_outputs
        assert len(AutoTokenizer.from_pretrained(folder)) == 45
        assert not list(folder.glob("checkpoint-*"))
        assert not list(folder.rglob("*.bin"))


def test_a_task_is_trained_without_the_models_of_earlier_ones_in_memory(
    glue_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[weakref.ref] = []

    def training_begins(trainer: finetune.GlueTrainer):
        assert [earlier() for earlier in begun] == [None] * len(begun)
        begun.extend([weakref.ref(trainer.model), weakref.ref(trainer.optimizer)])

    monkeypatch.setattr(finetune.GlueTrainer, "training_begins", training_begins)
    chosen = options(glue_dir, model_dir, "CoLA,WNLI", rounds=1, hyperparams="flags")
    run_glue(chosen, arguments(tmp_path, do_train=True, max_steps=1))
    assert len(begun) == 4


def test_labels_of_classes_are_smoothed_and_scores_are_not(glue_dir: Path, model_dir: Path, tmp_path: Path):
    for smoothing in (0.0, 0.2):
        flags = {"do_train": True, "label_smoothing_factor": smoothing}
        chosen = options(glue_dir, model_dir, "CoLA,STS-B", rounds=1, hyperparams="flags")
        run_glue(chosen, arguments(tmp_path / str(smoothing), **flags))
    assert not same_weights(tmp_path / "0.0" / "CoLA0", tmp_path / "0.2" / "CoLA0")
    assert same_weights(tmp_path / "0.0" / "STS-B0", tmp_path / "0.2" / "STS-B0")


def test_saved_models_have_the_names_of_their_labels(finished: Path):
    config = json.loads((finished / "RTE0" / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "not_entailment"}
    assert config["label2id"] == {"entailment": 0, "not_entailment": 1}
    assert json.loads((finished / "STS-B0" / "config.json").read_text())["problem_type"] == "regression"


def test_three_tasks_start_from_the_mnli_encoder_of_their_round(finished: Path, model_dir: Path):
    for task in TASKS:
        state = json.loads((finished / f"{task.name}0" / "glue_state.json").read_text())
        from_mnli = task.name in ("MRPC", "STS-B", "RTE")
        expected = finished / "MNLI0" / "transformer_subgraph" if from_mnli else model_dir
        assert state["settings"]["model"] == str(expected)
        assert state["settings"]["seed"] == 42
        assert state["settings"]["max_steps"] == 2


def test_the_saved_encoder_of_mnli_is_fine_tuned(finished: Path, model_dir: Path):
    encoder = load_file(finished / "MNLI0" / "transformer_subgraph" / "model.safetensors")
    whole = weights(finished / "MNLI0")
    assert all(torch.equal(value, whole[f"bert.{name}"]) for name, value in encoder.items())
    assert not any("classifier" in name for name in encoder)
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(encoder[name], load_file(model_dir / "model.safetensors")[f"bert.{name}"])


def test_a_submission_is_compiled_from_the_finished_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    compile_submission(CompileGlueOptions(input=str(finished), test_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    assert "MNLI-mm" in printed and "Not the official test set" in printed
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert set(archive.namelist()) == {test.submission for _, test in all_test_sets()}
    scores = json.loads((tmp_path / "dev_scores.json").read_text())
    assert set(scores["dev"]) == {dev.title for _, dev in all_dev_sets()}


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_finished_tasks_are_not_run_again(finished: Path, glue_dir: Path, model_dir: Path, tmp_path: Path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = modified(folder)
    shutil.rmtree(folder / "WNLI0")
    stages = {"do_train": True, "do_eval": True, "do_predict": True}
    chosen = options(glue_dir, model_dir, "ALL", rounds=1, hyperparams="electra")
    run_glue(chosen, arguments(folder, **stages, per_device_train_batch_size=99999))
    after = modified(folder)
    changed = {path for path in before if before[path] != after[path]}
    assert {path.relative_to(folder).parts[0] for path in changed} == {"WNLI0", "dev_scores.csv"}
    assert "RTE0: done before" in capsys.readouterr().out
    with pytest.raises(
        UsageError, match=r"MNLI0 in .* was fine-tuned with .*max_steps 2 \(now 3\), batch_size 128 \(now 8\)"
    ):
        run_glue(chosen, arguments(folder, **stages, max_steps=3, per_device_train_batch_size=8))
    assert modified(folder) == after


@pytest.fixture
def second_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Sets a function that is called when the first task is being run."""
    load = models.load_pretrained

    def set_up(run: Callable[[], None]) -> None:
        def load_pretrained(*given):
            monkeypatch.setattr(models, "load_pretrained", load)
            run()
            return load(*given)

        monkeypatch.setattr(models, "load_pretrained", load_pretrained)

    return set_up


def test_two_runs_share_the_tasks_of_a_folder(tmp_path: Path, glue_dir: Path, model_dir: Path, capsys, second_run):
    chosen = options(glue_dir, model_dir, "MNLI,CoLA,RTE", rounds=1)
    given = arguments(tmp_path, do_train=True, do_eval=True, do_predict=True)
    said = []

    def second():
        run_glue(chosen, given)
        said.append(capsys.readouterr().out)
        with pytest.raises(UsageError, match=r"MNLI0 is in use by another run"):
            run_glue(options(glue_dir, model_dir, "MNLI,CoLA,RTE", rounds=1, overwrite_output_dir=True), given)

    second_run(second)
    run_glue(chosen, given)
    printed = capsys.readouterr().out
    assert "CoLA0: trained" in said[0] and "Left to other processes: MNLI0, RTE0\n" in said[0]
    assert "CoLA0: done by another process" in printed and "[2/2] RTE0" in printed and "Left to" not in printed
    assert json.loads((tmp_path / "RTE0" / "glue_state.json").read_text())["settings"]["model"].endswith("_subgraph")


def test_what_another_run_did_meanwhile_with_other_flags_is_refused(
    tmp_path: Path, glue_dir: Path, model_dir: Path, second_run
):
    chosen = options(glue_dir, model_dir, "SST-2,CoLA", rounds=1, hyperparams="flags")
    second_run(lambda: run_glue(chosen, arguments(tmp_path, do_train=True, weight_decay=0.5)))
    with pytest.raises(UsageError, match=r"SST-20 in .* was fine-tuned with weight_decay 0.5 \(now 0.0\)"):
        run_glue(chosen, arguments(tmp_path, do_train=True))


def test_tasks_of_a_composite_model_start_from_its_mnli_encoder(tmp_path: Path, glue_dir: Path, composite_dir: Path):
    given = arguments(tmp_path, do_train=True, do_eval=True, do_predict=True)
    run_glue(options(glue_dir, composite_dir, "MNLI,STS-B", rounds=1), given)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "STS-B0").config.model_type == "composite_bert"
    assert json.loads((tmp_path / "STS-B0" / "glue_state.json").read_text())["settings"]["model"].endswith("_subgraph")
    encoder = load_file(tmp_path / "MNLI0" / "transformer_subgraph" / "model.safetensors")
    assert any("convq_param" in name for name in encoder) and not any("classifier" in name for name in encoder)
    assert not (tmp_path / "STS-B0" / "transformer_subgraph").exists()  # no task starts from it
    for folder in (tmp_path / "MNLI0", tmp_path / "MNLI0" / "transformer_subgraph"):
        assert (folder / "modeling_composite_bert.py").is_file()


def test_a_single_task_runs_directly_in_the_output_folder(tmp_path: Path, glue_dir: Path, model_dir: Path):
    run_glue(options(glue_dir, model_dir), arguments(tmp_path, do_train=True, do_eval=True, seed=7))
    state = json.loads((tmp_path / "glue_state.json").read_text())
    assert (state["settings"]["seed"], state["settings"]["max_steps"]) == (7, 2)
    assert (tmp_path / "eval_results_rte.txt").is_file()
    with pytest.raises(UsageError, match="holds a run of RTE"):
        run_glue(options(glue_dir, model_dir, "CoLA"), arguments(tmp_path, do_train=True))


def test_equal_seeds_give_equal_weights_and_another_seed_needs_an_overwrite(
    tmp_path: Path, glue_dir: Path, model_dir: Path
):
    for name in ("a", "b"):
        run_glue(options(glue_dir, model_dir), arguments(tmp_path / name, do_train=True))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    given = arguments(tmp_path / "b", do_train=True, seed=1)
    with pytest.raises(UsageError, match=r"RTE in .* was fine-tuned with seed 42 \(now 1\): .*--overwrite_output_dir"):
        run_glue(options(glue_dir, model_dir), given)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    run_glue(options(glue_dir, model_dir, overwrite_output_dir=True), given)
    assert not same_weights(tmp_path / "a", tmp_path / "b")


def test_a_list_without_mnli_starts_from_the_model_and_says_so(tmp_path: Path, glue_dir: Path, model_dir: Path, capsys):
    """Also that the examples are too long."""
    chosen = options(glue_dir, model_dir, "rte,Mrpc", rounds=1, max_seq_length=6)
    run_glue(chosen, arguments(tmp_path, do_train=True))
    printed = capsys.readouterr().out
    assert "RTE0: 100% of the examples are cut off at --max_seq_length 6" in printed
    assert "MRPC0: no encoder fine-tuned on MNLI" in printed and "RTE0: no encoder fine-tuned on MNLI" in printed
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["MRPC0", "RTE0"]


@pytest.fixture(scope="module")
def model_dir_without_dropout(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """The pre-trained model without dropout."""
    folder = tmp_path_factory.mktemp("calm") / "model"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | NO_DROPOUT))
    return folder


def test_accumulated_steps_equal_whole_steps(tmp_path: Path, glue_dir: Path, model_dir_without_dropout: Path):
    """24 examples in steps of 10, 10 and 4; the last is not a multiple of the micro-batch of 5."""
    for name, size, accumulation in (("whole", 10, 1), ("parts", 5, 2)):
        given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 4}
        run_glue(options(glue_dir, model_dir_without_dropout), arguments(tmp_path / name, do_train=True, **given))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0)


def test_two_processes_equal_one(tmp_path: Path, glue_dir: Path, model_dir_without_dropout: Path):
    """Same global batch: same weights; every file is written once. 24 examples in steps of 10, 10 and 4."""
    command = [
        *("glue", "--data_dir", glue_dir, "--task_name", "MNLI,RTE", "--rounds", "1", "--max_seq_length", "32"),
        *(
            "--model_name_or_path",
            model_dir_without_dropout,
            "--do_train",
            "--do_eval",
            "--do_predict",
            "--max_steps",
            "4",
        ),
        *("--learning_rate", "1e-3", "--use_cpu", "--disable_tqdm", "true", "--output_dir", tmp_path / "two"),
        *("--per_device_train_batch_size", "5"),
    ]
    run_in_two_ranks(list(map(str, command)))
    given = {"per_device_train_batch_size": 10, "max_steps": 4, "do_train": True, "do_eval": True, "do_predict": True}
    run_glue(options(glue_dir, model_dir_without_dropout, "MNLI,RTE", rounds=1), arguments(tmp_path / "one", **given))
    for task in ("MNLI0", "RTE0"):
        one, two = weights(tmp_path / "one" / task), weights(tmp_path / "two" / task)
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=2e-5, rtol=0)
        assert {path.name for path in (tmp_path / "one" / task).iterdir()} == {
            path.name for path in (tmp_path / "two" / task).iterdir()
        }
    rows = (tmp_path / "two" / "MNLI0" / "test_results_diagnostic.txt").read_text()
    assert rows == (tmp_path / "one" / "MNLI0" / "test_results_diagnostic.txt").read_text()


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_stopped_task_resumes_and_ends_with_the_same_weights(
    tmp_path: Path, glue_dir: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    """24 examples in batches of 8: stopped within an epoch, at its end, and in the last step; with dropout."""
    given = {"do_train": True, "do_eval": True, "max_steps": 5, "per_device_train_batch_size": 8}
    run_glue(options(glue_dir, model_dir), arguments(tmp_path / "whole", **given))
    stopped = arguments(tmp_path / "stopped", **given)
    kill_in_step(monkeypatch, step, signal.SIGTERM)
    with pytest.raises(RunInterrupted, match="SIGTERM"):
        run_glue(options(glue_dir, model_dir), stopped)
    assert not json.loads((tmp_path / "stopped" / "glue_state.json").read_text())["trained"]
    assert (tmp_path / "stopped" / f"checkpoint-{step}").is_dir()
    run_glue(options(glue_dir, model_dir), stopped)
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_files_of_a_killed_task_are_not_taken_for_results(tmp_path: Path, glue_dir: Path, model_dir: Path):
    """Killed while the model was saved: its files exist, the state says untrained, and no checkpoint is complete."""
    run_glue(options(glue_dir, model_dir), arguments(tmp_path / "whole", do_train=True))
    folder = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", folder)
    state = json.loads((folder / "glue_state.json").read_text()) | {"trained": False}
    (folder / "glue_state.json").write_text(json.dumps(state))
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "checkpoint-1").mkdir()
    with pytest.raises(UsageError, match=r"nothing could be predicted: RTE"):
        run_glue(options(glue_dir, model_dir), arguments(folder, do_predict=True))
    run_glue(options(glue_dir, model_dir), arguments(folder, do_train=True))
    assert same_weights(tmp_path / "whole", folder)
    assert not (folder / "checkpoint-1").exists()


def test_other_tasks_are_predicted_where_one_is_missing(finished: Path, glue_dir: Path, tmp_path: Path, capsys):
    folder, data = tmp_path / "copy", tmp_path / "data"
    shutil.copytree(finished, folder)
    shutil.copytree(glue_dir, data)
    shutil.rmtree(folder / "CoLA0")
    (data / "QQP" / "test.tsv").unlink()
    for path in folder.glob("*/test_results_*"):
        path.unlink()
    for path in folder.glob("*/glue_state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"predicted": {}}))
    placeholder = options(data, Path("placeholder"), "ALL", rounds=1)
    run_glue(placeholder, arguments(folder, do_predict=True))
    printed = capsys.readouterr().out
    assert "Left out: CoLA0, QQP0 (QQP/test.tsv)" in printed
    assert (folder / "MNLI0" / "test_results_diagnostic.txt").is_file()
    for test in ("MNLI0/test_results_mnli.txt", "STS-B0/test_results_sts-b.txt"):
        assert (folder / test).read_text() == (finished / test).read_text()


def test_a_task_can_be_evaluated_during_training(tmp_path: Path, glue_dir: Path, model_dir: Path):
    given = arguments(tmp_path, do_train=True, eval_strategy="steps", eval_steps=1, save_strategy="no")
    run_glue(options(glue_dir, model_dir), given)
    assert (tmp_path / "model.safetensors").is_file()


def test_the_best_step_of_mnli_is_that_of_the_matched_loss(
    tmp_path: Path, glue_dir: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([(1.0, 4.0), (2.0, 3.0)])

    def scores(*args, **kwargs):
        return {name: {"eval_loss": loss} for name, loss in zip(("mnli", "mnli-mm"), next(losses), strict=True)}

    monkeypatch.setattr(finetune, "evaluate", scores)
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    run_glue(options(glue_dir, model_dir, "MNLI"), arguments(tmp_path / "best", do_train=True, **best))
    monkeypatch.undo()
    run_glue(options(glue_dir, model_dir, "MNLI"), arguments(tmp_path / "last", do_train=True))
    assert not same_weights(tmp_path / "best", tmp_path / "last")


def test_a_diverged_task_stops_the_run(tmp_path: Path, glue_dir: Path, model_dir: Path):
    with pytest.raises(TrainingDiverged, match=r"step 2 \(samples "):
        run_glue(
            options(glue_dir, model_dir, "STS-B"),
            arguments(tmp_path, do_train=True, learning_rate=1e30, max_grad_norm=1e30, max_steps=4),
        )
    assert not json.loads((tmp_path / "glue_state.json").read_text())["trained"]
