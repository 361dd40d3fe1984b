"""The demo from end to end, on its quick scale."""

import shlex
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bert_convolutions import files
from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.demo import run as demo_run
from bert_convolutions.demo.corpus import Speech
from bert_convolutions.demo.options import QUICK, DemoOptions
from bert_convolutions.demo.run import MODELS, DemoPaths, command_line, run_demo
from bert_convolutions.errors import RunInterrupted, UsageError
from bert_convolutions.training.options import PretrainOptions


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, speeches: list[Speech]) -> tuple[DemoPaths, str]:
    """A finished quick demo, and what it printed."""
    places = DemoPaths(tmp_path_factory.mktemp("demo") / "output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "QUICK", replace(QUICK, steps=2, glue_steps={"default": 1}))
        patch.setattr(demo_run, "load_speeches", lambda: speeches)
        console = demo_run.make_console()
        patch.setattr(demo_run, "make_console", lambda: console)
        with console.capture() as printed:
            run_demo(DemoOptions(output_dir=str(places.root), quick=True))
    return places, printed.get()


def test_the_demo_writes_figures_models_scores_and_a_submission(demo: tuple[DemoPaths, str]) -> None:
    places, _ = demo
    for picture in (places.curves, places.kernels):
        assert picture.read_bytes().startswith(b"\x89PNG")
    for name in MODELS:
        assert (places.pretrained / name / "model.safetensors").is_file()
    with zipfile.ZipFile(places.submission / "submission.zip") as archive:
        assert len(archive.namelist()) == 11
    for task in ("MNLI", "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "QNLI", "RTE", "WNLI"):
        assert list((places.finetuned / "composite" / f"{task}0").glob("eval_results_*.txt"))


def test_the_demo_prints_its_steps_and_where_results_are(demo: tuple[DemoPaths, str]) -> None:
    places, printed = demo
    steps = [line for line in printed.splitlines() if line.startswith("[") and "since the start" in line]
    assert [line.split("]")[0] for line in steps] == [f"[{number}/12" for number in range(1, 13)]
    for description in MODELS.values():
        assert description in printed
    for path in (places.curves, places.kernels, places.submission / "submission.zip", places.tokenizer):
        assert str(path) in printed


def test_the_printed_commands_can_be_parsed_and_do_what_the_demo_does(demo: tuple[DemoPaths, str]) -> None:
    shown = [shlex.split(line[2:]) for line in demo[1].splitlines() if line.startswith("$ ")]
    assert {words[1] for words in shown} == {"train-tokenizer", "build-dataset", "pretrain", "glue", "compile-glue"}
    assert all(words[0] == "bertconv" for words in shown)
    for _, name, *argv in shown:
        options, _ = COMMANDS[name].read(argv)
        assert command_line(name, options).split()[:2] == ["bertconv", name]
        if isinstance(options, PretrainOptions):
            assert options.remove_position_embeddings == ("positions" not in argv[-1])


def test_a_second_run_repeats_nothing(demo: tuple[DemoPaths, str], monkeypatch: pytest.MonkeyPatch) -> None:
    places, _ = demo
    models = {path: path.stat().st_mtime_ns for path in places.root.rglob("model.safetensors")}
    assert len(models) > 9
    monkeypatch.setattr(demo_run, "QUICK", replace(QUICK, steps=2, glue_steps={"default": 1}))
    run_demo(DemoOptions(output_dir=str(places.root), quick=True))
    assert {path: path.stat().st_mtime_ns for path in places.root.rglob("model.safetensors")} == models


def test_a_stopped_demo_prints_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: object) -> None:
        raise RunInterrupted("stopped by SIGTERM")

    monkeypatch.setattr(demo_run.Demo, "run", stopped)
    for overwrite in (False, True):
        with pytest.raises(RunInterrupted, match=r"resume with: bertconv demo --output_dir .*/new --quick$"):
            run_demo(DemoOptions(output_dir=str(tmp_path / "new"), quick=True, overwrite_output_dir=overwrite))


def test_a_running_demo_is_not_overwritten(tmp_path: Path) -> None:
    places = DemoPaths(tmp_path)
    places.claim(DemoOptions())
    places.tokenizer.mkdir()
    with files.run_lock(tmp_path), pytest.raises(UsageError, match="in use by another run"):
        run_demo(DemoOptions(output_dir=str(tmp_path), seed=2, overwrite_output_dir=True))
    assert places.tokenizer.exists() and '"seed": 42' in (tmp_path / "demo.json").read_text()


def test_folders_of_other_files_and_other_demos_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("do not touch")
    with pytest.raises(UsageError, match="not empty and holds no demo"):
        DemoPaths(mine).claim(DemoOptions(overwrite_output_dir=True))
    with pytest.raises(UsageError, match="is a file"):
        DemoPaths(mine / "thesis.txt").claim(DemoOptions())

    places = DemoPaths(tmp_path / "demo")
    places.claim(DemoOptions(seed=1))
    places.claim(DemoOptions(seed=1))
    (places.root / "notes.txt").write_text("mine")
    places.tokenizer.mkdir()
    with pytest.raises(UsageError, match="--seed 1 --quick false, not --seed 2 --quick false"):
        places.claim(DemoOptions(seed=2))
    places.claim(DemoOptions(seed=2, overwrite_output_dir=True))
    assert not places.tokenizer.exists()
    assert (places.root / "notes.txt").exists()
    (places.root / "demo.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        places.claim(DemoOptions(seed=2))
