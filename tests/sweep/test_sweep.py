"""``bertconv sweep``: which cells there are, which are run, and what happens when one fails."""

import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bert_convolutions.cli.main import main
from bert_convolutions.cli.trainer_flags import trainer_parser
from bert_convolutions.errors import CommandError, RunInterrupted, UsageError
from bert_convolutions.flags import as_argv
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import CellRecord, DatasetManifest
from bert_convolutions.sweep import run
from bert_convolutions.sweep.cells import Cell, effective_flags, plan_cells, read_experiment
from bert_convolutions.sweep.options import SweepOptions
from bert_convolutions.training.arguments import BertTrainingArguments
from tests.helpers import TINY, trained_tokenizer

ROOT = Path(__file__).parents[2]
COMPOSITE = {"attention_kernel": "qk_convfixed_convq_convk 2", "remove_position_embeddings": True}


def write(path: Path, **changes: Any) -> Path:
    value: dict[str, Any] = {
        "base": {"config_name": "bert_small", "tokenizer_name": "tok", "train_data_file": "text", "max_steps": 2},
        "baseline": "absolute",
        "variants": {"absolute": {}, "composite": COMPOSITE},
        "seeds": [1, 2],
        "evaluate": {"minimal_pairs": {"blimp": {"data_dir": "blimp", "pairs": 3}}, "local_order": {"text": "text"}},
    }
    path.write_text(yaml.safe_dump({**value, **changes}, sort_keys=False))
    return path


def finish(cell: Cell) -> CellRecord:
    """Write what a cell writes."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "eval_results.json", "minimal_pairs.csv", "local_order.csv", "glue_state.json"):
        (cell.folder / name).write_text("{}")
    record = CellRecord(command=cell.argv, seconds=1.0, exit_code=0)
    cell.record_path.write_text(record.model_dump_json())
    return record


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the cells that are run; here they only write their files."""
    labels: list[str] = []

    def run_cell(cell: Cell) -> CellRecord:
        labels.append(cell.label)
        return finish(cell)

    monkeypatch.setattr(run, "run_cell", run_cell)
    return labels


def sweep(experiment: Path, folder: Path, **others: Any) -> None:
    run.run_sweep(SweepOptions(experiment=experiment, output_dir=folder, **others))


def test_each_cell_is_a_command_with_its_own_folder(tmp_path: Path) -> None:
    cells = plan_cells(read_experiment(write(tmp_path / "e.yaml")), tmp_path / "out")
    assert [cell.label for cell in cells][:4] == [
        "absolute/seed1/pretrain",
        "absolute/seed1/blimp",
        "absolute/seed1/local_order",
        "composite/seed1/pretrain",
    ]
    assert len(cells) == 2 * 2 * 3 and len({cell.folder for cell in cells}) == len(cells)
    assert "--attention_kernel=qk_convfixed_convq_convk 2" in cells[3].argv
    assert {"--seed=1", "--do_train=true", "--max_steps=2", "--resume_from_checkpoint=true"} <= set(cells[3].argv)
    assert cells[1].argv[0] == "minimal-pairs"
    assert f"--model_name_or_path={tmp_path}/out/absolute/seed1/pretrain" in cells[1].argv


def test_only_missing_cells_are_run(tmp_path: Path, ran: list[str]) -> None:
    experiment, folder = write(tmp_path / "e.yaml"), tmp_path / "out"
    sweep(experiment, folder, only=["composite/seed1/*"])
    assert ran == ["composite/seed1/pretrain", "composite/seed1/blimp", "composite/seed1/local_order"]
    ran.clear()
    (folder / "composite" / "seed1" / "blimp" / "minimal_pairs.csv").unlink()
    sweep(experiment, folder)
    assert len(ran) == 10 and "composite/seed1/blimp" in ran and "composite/seed1/pretrain" not in ran
    ran.clear()
    sweep(experiment, folder)
    assert ran == []
    with pytest.raises(UsageError, match="matches no cell"):
        sweep(experiment, folder, only=["nothing/*"])


def test_two_sweeps_share_the_models_of_a_folder(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, folder = write(tmp_path / "e.yaml"), tmp_path / "out"
    run_one = run.run_cell

    def run_cell(cell: Cell) -> CellRecord:
        if not ran:  # while this sweep runs its first cell, another one does all that this one is not working on
            ran.append("")
            sweep(experiment, folder)
            assert len(ran) == 1 + 9 and not any(label.startswith("absolute/seed1/") for label in ran)
            assert "left to other processes, which are running them: absolute/seed1" in capsys.readouterr().err
        return run_one(cell)

    monkeypatch.setattr(run, "run_cell", run_cell)
    sweep(experiment, folder)
    assert ran[10:] == ["absolute/seed1/pretrain", "absolute/seed1/blimp", "absolute/seed1/local_order"]
    assert "left to other" not in capsys.readouterr().err


def test_results_without_a_record_are_accepted_and_those_of_other_flags_refused(tmp_path: Path, ran: list[str]) -> None:
    experiment, folder = write(tmp_path / "e.yaml"), tmp_path / "out"
    sweep(experiment, folder)
    for record in folder.rglob("*.cell.json"):
        record.unlink()
    ran.clear()
    sweep(experiment, folder)
    assert ran == []
    for cell in plan_cells(read_experiment(experiment), folder):
        finish(cell)
    trainer_parser("pretrain", BertTrainingArguments)  # changes the types of the fields of the class
    sweep(
        experiment, folder, set=["bf16=true", "save_steps=1", "report_to=[tensorboard]"]
    )  # flags of speed and saving make no other run
    with pytest.raises(UsageError, match=r"was run with .*--max_steps=2.* now says --max_steps=3"):
        sweep(experiment, folder, set=["max_steps=3"])
    (folder / "absolute" / "seed2" / "pretrain" / "eval_results.json").unlink()
    before = (folder / "experiment.json").read_bytes()
    with pytest.raises(UsageError, match=r"seed1/pretrain was run with .*--max_steps=2"):  # a report reads them all
        sweep(experiment, folder, set=["max_steps=3"], only=["absolute/seed2/*"])
    assert (folder / "experiment.json").read_bytes() == before
    sweep(experiment, folder)
    ran.clear()
    moved = folder.rename(tmp_path / "moved")  # or the same folder under another path
    sweep(experiment, moved)
    assert ran == []


def test_evaluations_of_a_model_that_was_replaced_are_run_again(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, folder = write(tmp_path / "e.yaml"), tmp_path / "out"
    cells = {cell.label: cell for cell in plan_cells(read_experiment(experiment), folder)}
    pretrain, blimp = (cells[f"absolute/seed1/{name}"] for name in ("pretrain", "blimp"))
    sweep(experiment, folder)
    (pretrain.folder / "train_results.json").write_text('{"train_runtime": 1.25}')
    blimp.record_path.write_text(finish(blimp).model_copy(update={"model": blimp.model_key()}).model_dump_json())
    assert blimp.is_finished()
    (pretrain.folder / "train_results.json").write_text('{"train_runtime": 1.5}')
    old = blimp.folder / "minimal_pairs.json"  # which minimal-pairs wouldn't overwrite with those of another model
    old.touch()
    ran.clear()
    sweep(experiment, folder)
    assert ran == ["absolute/seed1/blimp"] and not old.exists()
    (pretrain.folder / "train_results.json").write_text('{"train_runtime": 2.5}')
    blimp.record_path.write_text(finish(blimp).model_copy(update={"model": "of the model before"}).model_dump_json())
    old.touch()
    kept = blimp.folder.with_name("blimp.earlier_model")
    blimp.log_path.touch()
    failed = CellRecord(command=blimp.argv, seconds=1.0, exit_code=1)
    with monkeypatch.context() as patch, pytest.raises(CommandError, match="blimp"):
        patch.setattr(run, "run_cell", lambda cell: failed)
        sweep(experiment, folder)
    assert (kept / old.name).exists() and not blimp.folder.exists()  # until there are new results
    sweep(experiment, folder)
    assert blimp.is_finished() and not kept.exists()


def test_the_same_values_written_in_another_way_make_no_other_run(tmp_path: Path, ran: list[str]) -> None:
    experiment, folder = write(tmp_path / "e.yaml"), tmp_path / "out"
    sweep(experiment, folder, set=["learning_rate=1e-3", "per_device_train_batch_size=16"])
    ran.clear()
    same = ["learning_rate=0.001", "train_data_file=[text]", "weight_decay=null"]
    same += ["per_device_train_batch_size=4", "gradient_accumulation_steps=4"]  # what fits into a smaller memory
    sweep(experiment, folder, set=same)
    assert ran == []
    with pytest.raises(UsageError, match=r"was run with --per_device_train_batch_size=16, .* says .*=4;"):
        sweep(experiment, folder, set=["learning_rate=1e-3", "per_device_train_batch_size=4"])


def test_glue_is_run_again_where_its_folder_was_removed(tmp_path: Path, ran: list[str]) -> None:
    evaluate = {"glue": {"task_name": "RTE", "data_dir": "glue"}}
    experiment, folder = write(tmp_path / "e.yaml", evaluate=evaluate, seeds=[1]), tmp_path / "out"
    sweep(experiment, folder)
    ran.clear()
    sweep(experiment, folder)
    assert ran == []
    shutil.rmtree(folder / "composite" / "seed1" / "glue")
    sweep(experiment, folder)
    assert ran == ["composite/seed1/glue"]


def test_tasks_and_rounds_can_be_added_to_glue(tmp_path: Path, ran: list[str]) -> None:
    glue, folder = {"task_name": "RTE,CoLA", "data_dir": "glue", "rounds": 1}, tmp_path / "out"
    sweep(write(tmp_path / "e.yaml", evaluate={"glue": glue}, seeds=[1]), folder)
    ran.clear()
    more = {**glue, "task_name": "RTE,CoLA,MRPC", "rounds": 3}
    sweep(write(tmp_path / "e.yaml", evaluate={"glue": more}, seeds=[1]), folder)
    assert ran == ["absolute/seed1/glue", "composite/seed1/glue"]
    with pytest.raises(UsageError, match=r"now says --max_seq_length=64"):
        sweep(write(tmp_path / "e.yaml", evaluate={"glue": {**more, "max_seq_length": 64}}, seeds=[1]), folder)


def test_an_unfinished_cell_is_not_resumed_with_other_flags(tmp_path: Path, ran: list[str]) -> None:
    experiment, folder = write(tmp_path / "e.yaml"), tmp_path / "out"
    cell = plan_cells(read_experiment(experiment), folder)[0]
    cell.folder.mkdir(parents=True)
    cell.record_path.write_text(CellRecord(command=cell.argv, seconds=1.0, exit_code=75).model_dump_json())
    sweep(experiment, folder, set=["learning_rate=0.1"], only=[cell.label])  # nothing was saved yet
    assert ran == [cell.label]
    (cell.folder / "eval_results.json").unlink()
    (cell.folder / "checkpoint-1").mkdir()
    with pytest.raises(UsageError, match=r"was run with --learning_rate=0\.1, but the experiment now says less"):
        sweep(experiment, folder)


def test_a_failed_cell_is_reported_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run_cell(cell: Cell) -> CellRecord:
        ran.append(cell.label)
        if cell.label != "absolute/seed1/pretrain":
            return finish(cell)
        cell.log_path.write_text("something\nbertconv: error: it broke\n")
        return CellRecord(command=cell.argv, seconds=1.0, exit_code=2)

    monkeypatch.setattr(run, "run_cell", run_cell)
    argv = ["sweep", str(write(tmp_path / "e.yaml")), "--output_dir", str(tmp_path / "out")]
    assert main(argv) == 1
    assert len(ran) == 12 - 2  # its two evaluations are not run without a model
    error = capsys.readouterr().err
    assert "absolute/seed1/pretrain failed with exit code 2: bertconv: error: it broke" in error
    assert "3 of 12 cells failed" in error and "absolute/seed1/blimp (there is no model to evaluate)" in error
    assert "about" in error  # the time left


def test_an_interrupted_cell_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_cell", lambda cell: CellRecord(command=cell.argv, seconds=1.0, exit_code=75))
    with pytest.raises(RunInterrupted, match="resume with the same command"):
        sweep(write(tmp_path / "e.yaml"), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {}, "b": {"bf16": True}}}, "variants a and b are the same .* or differ only in speed"),
        ({"variants": {"a": {}, "b": {"pack": False, "attn_implementation": "eager"}}}, "differ only in speed"),
        ({"variants": {"a": {}, "b": {"gradient_checkpointing": True, "log_level": "info"}}}, "differ only in speed"),
        ({"variants": {"a": {}, "b": {"per_device_train_batch_size": 8}}}, "differ only in speed"),  # the default
        (
            {"variants": {"a": {"per_device_train_batch_size": 8}, "b": {"gradient_accumulation_steps": 1}}},
            "differ only in speed",
        ),
        (
            {"variants": {"a": {"attention_kernel": "qk_convq 8"}, "b": {"attention_kernel": "convq_qk 8"}}},
            "differ only in speed",
        ),
        ({"variants": {"a": {"learning_rate": 0.001}, "b": {"learning_rate": "1e-3"}}}, "differ only in speed"),
        ({"variants": {"a": {"atention_kernel": "qk 8"}}}, "a: there is no flag atention_kernel, did you mean"),
        ({"variants": {"a": {"seed": 3}}}, "a sets seed"),
        ({"variants": {"a/b": {}}}, r"variants\.a/b"),
        ({"variants": {"a": {"attention_kernel": "qk_conv 8"}}}, "variant a: .*unknown term"),
        ({"variants": {}}, "variants"),
        ({"seeds": [1, 1]}, "seed is given twice"),
        ({"baseline": "other"}, "baseline other is not one of"),
        ({"surprise": 1}, "surprise"),
        ({"base": None}, r"e\.yaml: base: "),
        ({"base": ["max_steps"]}, r"e\.yaml: base: "),
        ({"evaluate": {"minimal_pairs": {"pretrain": {"data_dir": "x"}}}}, "can't be named pretrain"),
        ({"evaluate": {"minimal_pairs": {"GLUE": {"data_dir": "x"}}}}, "minimal_pairs can't be named GLUE"),
        ({"variants": {"a": {}, "A": {"remove_position_embeddings": True}}}, "variants can't be named A"),
        ({"evaluate": {"local_order": {"txt": "x"}}}, "local_order: there is no flag txt"),
        ({"base": {"mlm_probability": "often"}}, r"base: --mlm_probability: .*number.*, not 'often'"),
        ({"variants": {"a": {"max_steps": "long"}}}, r"a: --max_steps: .*integer.*, not 'long'"),
        ({"evaluate": {"glue": {"task_name": "RTE", "rounds": 1.5}}}, "glue: --rounds: .*, not 1.5"),
        (
            {"evaluate": {"glue": {"task_name": ["CoLA", "RTE"]}}},
            "glue: task_name takes one value.* task_name: CoLA,RTE",
        ),
    ],
)
def test_bad_experiments_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_experiment(write(tmp_path / "e.yaml", **{"baseline": None, **changes}))


@pytest.mark.parametrize(("change", "message"), [("max_steps=[1", "not valid YAML"), ("a={b: 1}", "a")])
def test_bad_changes_are_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^--set.*{message}"):
        read_experiment(write(tmp_path / "e.yaml"), [change])


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match=r"--output_dir .*out is a file"):
        sweep(write(tmp_path / "e.yaml"), tmp_path / "out")


def test_files_that_are_no_experiment_are_refused(tmp_path: Path) -> None:
    for content in ("- a\n", "a: [", "extends: e.yaml\n", ""):
        (tmp_path / "e.yaml").write_text(content)
        with pytest.raises(UsageError, match=r"e\.yaml"):
            read_experiment(tmp_path / "e.yaml")
    with pytest.raises(UsageError, match="can't be read"):
        read_experiment(tmp_path / "missing.yaml")


def test_an_experiment_can_extend_others(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml")
    (tmp_path / "small.yaml").write_text("base: {max_steps: 1}\nseeds: [5]\n")
    (tmp_path / "e.yaml").write_text("extends: [parent.yaml, small.yaml]\nbase: {learning_rate: 0.1}\n")
    experiment = read_experiment(tmp_path / "e.yaml", ["learning_rate=1e-3", "remove_qk=true"])
    assert experiment.base["max_steps"] == 1 and experiment.base["tokenizer_name"] == "tok"
    assert (experiment.base["learning_rate"], experiment.base["remove_qk"]) == ("1e-3", True)
    assert experiment.seeds == [5] and list(experiment.variants) == ["absolute", "composite"]


SHARED = ("small", "glue")  # extended or named by the others
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").rglob("*.yaml") if path.stem not in SHARED)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiments_of_the_repository_can_be_read(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.baseline in experiment.variants and len(experiment.seeds) == 3
    assert len({json.dumps(effective_flags(flags)) for flags in experiment.variants.values()}) == len(
        experiment.variants
    )
    assert ("num_hidden_layers" in experiment.base) == (path.parent.name == "cpu")


@pytest.fixture(scope="session")
def small_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment that can be run: a tiny model on a little text."""
    folder = tmp_path_factory.mktemp("real")
    lines = [f"the {a} {b} the {c} ." for a in ("cat", "dog", "cow") for b in ("sees", "eats") for c in ("cat", "dog")]
    tokenizer = trained_tokenizer(folder, "\n\n".join("\n".join(lines) for _ in range(20)), vocab_size=17)
    (folder / "zorro").mkdir()
    (folder / "zorro" / "agreement-x.txt").write_text("the cat see the dog .\nthe cat sees the dog .\n")
    config = {**TINY, "num_hidden_layers": 1, "embedding_size": 8, "max_position_embeddings": 64}
    (folder / "model.json").write_text(json.dumps(config))
    text = str(folder / "text.txt")
    write(
        folder / "e.yaml",
        base={
            "config_name": str(folder / "model.json"),
            "tokenizer_name": str(tokenizer),
            "train_data_file": text,
            "line_by_line": True,
            "eval_fraction": 0.2,
            "block_size": 64,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "num_proc": 1,
            "save_steps": 1,
        },
        variants={"absolute": {}, "broken": {"eval_fraction": 1.5}},
        seeds=[1],
        evaluate={"minimal_pairs": {"zorro": {"data_dir": str(folder / "zorro")}}},
    )
    return folder


@pytest.fixture(scope="session")
def swept(small_experiment: Path) -> Path:
    """The folder of its finished sweep, run beside a script that Python must not import; ``error.txt`` is its error."""
    folder = small_experiment / "out"
    (small_experiment / "tokenize.py").write_text(
        "raise SystemExit('a script of the user, and not the standard library')"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_experiment)
        with pytest.raises(CommandError) as error:
            sweep(small_experiment / "e.yaml", folder)
    (small_experiment / "error.txt").write_text(str(error.value))
    return folder


def test_a_sweep_runs_its_commands_and_records_them(small_experiment: Path, swept: Path) -> None:
    folder = swept
    assert "2 of 4 cells failed" in (small_experiment / "error.txt").read_text()
    record = read_model(CellRecord, folder / "absolute" / "seed1" / "pretrain.cell.json")
    assert record.exit_code == 0 and record.seconds > 0 and record.model is None
    evaluation = next(
        cell for cell in plan_cells(read_experiment(small_experiment / "e.yaml"), folder) if cell.name == "zorro"
    )
    assert (
        evaluation.is_finished()
        and evaluation.record()
        and evaluation.record().model == evaluation.model_key() is not None
    )
    assert (folder / "absolute" / "seed1" / "pretrain" / "model.safetensors").is_file()
    assert json.loads((folder / "absolute" / "seed1" / "zorro" / "minimal_pairs.json").read_text())["all"]["pairs"] == 1
    assert read_model(CellRecord, folder / "broken" / "seed1" / "pretrain.cell.json").exit_code == 2
    assert "--eval_fraction" in (folder / "broken" / "seed1" / "pretrain.log").read_text()
    assert json.loads((folder / "experiment.json").read_text())["baseline"] == "absolute"


def test_a_signal_while_a_command_is_started_ends_that_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminated: list[bool] = []

    class Process:
        def __init__(self, *_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGHUP)

        def terminate(self) -> None:
            terminated.append(True)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(run.subprocess, "Popen", Process)
    monkeypatch.setattr(run, "environment", dict)
    cell = plan_cells(read_experiment(write(tmp_path / "e.yaml")), tmp_path / "out")[0]
    cell.folder.parent.mkdir(parents=True)
    assert run.run_cell(cell).exit_code == 75 and terminated == [True]


def test_a_job_that_submitit_requeues_ends_its_command_and_can_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    calls: list[str] = []

    class Process:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def wait(self) -> int:
            calls.append("wait")
            if len(calls) == 1:
                os.kill(os.getpid(), signal.SIGUSR2)
            return 75

        def terminate(self) -> None:
            calls.append("terminate")

    cells = plan_cells(read_experiment(write(tmp_path / "e.yaml")), tmp_path / "out")
    monkeypatch.setattr(run.subprocess, "Popen", Process)
    monkeypatch.setattr(run, "environment", dict)
    job = run._Job()
    signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(-1))  # as submitit sets it
    try:
        with pytest.raises(SystemExit):
            job(cells)
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    assert calls == ["wait", "terminate", "wait"] and cells[0].record().exit_code == 75
    again = job.checkpoint(cells)
    assert isinstance(again.function, run._Job) and again.args == (cells,)


def test_a_signal_to_a_sweep_makes_its_command_save_and_end(
    small_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain = tmp_path / "out" / "absolute" / "seed1" / "pretrain"
    codes: list[int] = []
    over = threading.Event()

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not over.wait(0.1):
            if list(pretrain.glob("checkpoint-*")) or time.monotonic() > deadline:
                codes.append(read_model(CellRecord, pretrain.with_name("pretrain.cell.json")).exit_code)
                return os.kill(os.getpid(), signal.SIGTERM)

    argv = ["sweep", str(small_experiment / "e.yaml"), "--output_dir", str(tmp_path / "out"), "--only", "absolute/*"]
    thread = threading.Thread(target=stop)
    thread.start()
    code = main([*argv, "--set", "max_steps=1000", "logging_steps=1"])
    over.set()
    thread.join()
    assert code == 75
    assert codes == [75]  # in case both are killed
    assert "resume with the same command" in capsys.readouterr().err
    assert read_model(CellRecord, pretrain.with_name("pretrain.cell.json")).exit_code == 75
    assert list(pretrain.glob("checkpoint-*"))
    assert "stopped by SIGTERM" in pretrain.with_name("pretrain.log").read_text()


def test_dry_run_prints_costs_and_commands(
    small_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["sweep", "--output_dir", str(tmp_path / "out"), str(small_experiment / "e.yaml"), "--dry_run"]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "parameters" in output and "absolute" in output and "GFLOP/s on this machine" in output
    assert main([*argv, "--format", "commands", "--only", "absolute/*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[:2] for line in lines] == [["bertconv", "pretrain"], ["bertconv", "minimal-pairs"]]
    assert not (tmp_path / "out").exists()
    assert main(["sweep", str(small_experiment / "e.yaml"), "--output_dir", "x", "--format", "commands"]) == 2


def test_costs_are_estimated_from_the_parameters_of_the_model(small_experiment: Path, tmp_path: Path) -> None:
    from bert_convolutions.sweep.estimate import estimate, meta_model

    cell = plan_cells(read_experiment(small_experiment / "e.yaml", ["max_steps=10"]), tmp_path)[0]
    cost = estimate(cell, 1e6)
    assert cost.parameters == meta_model(cell.flags).num_parameters()
    assert cost.tokens == 10 * 4 * 32
    assert cost.flops > 6 * cost.tokens * (4 * 16 * 16 + 2 * 16 * 32)
    assert cost.seconds == cost.flops / 1e6


def test_the_cost_of_passes_over_the_data_follows_from_its_manifest(small_experiment: Path, tmp_path: Path) -> None:
    from bert_convolutions.sweep.estimate import planned_tokens

    flags = plan_cells(read_experiment(small_experiment / "e.yaml", ["max_steps=-1"]), tmp_path)[0].flags
    with pytest.raises(UsageError, match="plain text: give --train_data_file a folder of build-dataset"):
        planned_tokens(flags)
    given = {"train_data_file": flags["train_data_file"], "tokenizer_name": flags["tokenizer_name"]}
    pairs = str(tmp_path / "pairs")
    assert main(["build-dataset", *as_argv({**given, "output_dir": pairs, "num_proc": 1})]) == 0
    tokens = read_model(DatasetManifest, tmp_path / "pairs" / "manifest.json").counts.tokens
    flags = {**flags, "train_data_file": pairs}
    assert planned_tokens({**flags, "num_train_epochs": 2}) == pytest.approx(2 * tokens)
    assert planned_tokens(flags) == pytest.approx(3 * tokens)  # the Trainer's default


@pytest.mark.parametrize("has_bf16", [False, True])
def test_the_speed_is_measured_in_the_precision_that_training_uses(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bert_convolutions.sweep import estimate

    class Timer:
        def __init__(self, statement: str, globals: dict[str, torch.Tensor], num_threads: int) -> None:
            self.median = 2.0 if globals["one"].dtype == torch.bfloat16 else 1.0

        def blocked_autorange(self) -> "Timer":
            return self

    monkeypatch.setattr(estimate, "Timer", Timer)
    monkeypatch.setattr(estimate, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ratio = estimate.measure_flops(bf16=False) / estimate.measure_flops(bf16=True)
    assert ratio == (2 if has_bf16 else 1)  # without bf16 instructions, --bf16 trains in float32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"executor": "slurm"}, "--executor slurm.*srun"),
        ({"executor": "local", "executor_options": ["timeout=5"]}, "--executor_options: Parameter 'timeout'"),
    ],
)
def test_errors_of_submitit_about_its_options_are_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], message: str
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=message):
        sweep(write(tmp_path / "e.yaml"), tmp_path / "out", **flags)


def test_submitit_runs_the_cells_in_jobs(
    small_experiment: Path, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    shutil.copytree(swept, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "absolute" / "seed1" / "zorro")  # left to do for this variant
    argv = ["sweep", str(small_experiment / "e.yaml"), "--output_dir", str(tmp_path / "out"), "--executor", "local"]
    assert main([*argv, "--executor_options", "timeout_min=5"]) == 1
    assert "1 of 2 jobs failed" in capsys.readouterr().err
    assert (tmp_path / "out" / "absolute" / "seed1" / "zorro" / "minimal_pairs.csv").is_file()
