"""The dev table, the choice of rounds, and the submission, from files written by hand."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.options import CompileGlueOptions
from bert_convolutions.glue.progress import Progress
from bert_convolutions.glue.submit import (
    best_round,
    check_files,
    check_rows,
    collect_scores,
    compile_glue,
    compile_submission,
    statistics,
)
from bert_convolutions.glue.tasks import MNLI, TASKS, Task, all_test_sets, find_task
from bert_convolutions.terminal import duration, make_console

RTE, STSB = find_task("RTE"), find_task("STS-B")


def write_round(folder: Path, task: Task, number: int, score: float, rows: int | None = 3) -> None:
    """Write dev scores and predictions as the original does; with ``rows`` None, as many as officially."""
    place = folder / f"{task.name}{number}"
    place.mkdir(parents=True, exist_ok=True)
    for dev in task.dev:
        (place / f"eval_results_{dev.name}.txt").write_text(f"eval_loss = 0.5\n{dev.score} = {score}\nepoch = 3.0\n")
    for test in task.tests:
        word = task.labels[number % len(task.labels)] if task.labels else f"{number}.500"
        lines = [f"{index}\t{word}" for index in range(test.rows if rows is None else rows)]
        (place / f"test_results_{test.name}.txt").write_text("\n".join(["index\tprediction", *lines]) + "\n")


def run(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict]:
    compile_submission(CompileGlueOptions(input=str(source), test_dir=str(target)))
    return capsys.readouterr().out, json.loads((target / "dev_scores.json").read_text())


def prediction(target: Path, name: str) -> str:
    return (target / name).read_text().splitlines()[1].split("\t")[1]


def test_each_file_comes_from_the_best_round(tmp_path: Path, capsys):
    for task in TASKS:
        for number, score in enumerate([0.5, 0.75, 0.25]):
            write_round(tmp_path / "in", task, number, score)
    mismatched = tmp_path / "in" / "MNLI2" / "eval_results_mnli-mm.txt"
    mismatched.write_text("eval_mnli-mm/acc = 0.9\n")
    printed, scores = run(tmp_path / "in", tmp_path / "out", capsys)
    assert prediction(tmp_path / "out", "MNLI-m.tsv") == prediction(tmp_path / "out", "AX.tsv") == MNLI.labels[1]
    assert prediction(tmp_path / "out", "MNLI-mm.tsv") == MNLI.labels[2]
    assert prediction(tmp_path / "out", "RTE.tsv") == RTE.labels[1]
    assert scores["submitted_from"]["AX.tsv"] == "MNLI1"
    assert scores["dev"]["RTE"] == {
        "rounds": {"0": 0.5, "1": 0.75, "2": 0.25},
        "mean": 0.5,
        "std": 0.25,
        "best": 0.75,
        "best_round": 1,
    }
    assert scores["missing"] == []
    lines = [line.split() for line in printed.splitlines()]
    assert lines[1][:4] == ["round", "MNLI-m", "MNLI-mm", "CoLA"]
    assert ["1", *["75.0"] * 10] in lines
    assert ["mean", "50.0", "71.7", *["50.0"] * 8] in lines


def test_the_official_test_set_is_accepted(tmp_path: Path, capsys):
    for task in TASKS:
        write_round(tmp_path / "in", task, 0, 0.5, rows=None)
    printed, _ = run(tmp_path / "in", tmp_path / "out", capsys)
    assert "All eleven files have the names, headers, rows and labels of the GLUE site" in printed
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        contents = {name: archive.read(name).decode() for name in archive.namelist()}
        assert check_files(contents) == ([], [])
        assert not any(check_rows(contents[test.submission], task) for task, test in all_test_sets())
        assert sorted(archive.namelist()) == sorted(test.submission for _, test in all_test_sets())
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "out" / name).read_bytes()


def test_missing_files_are_named_and_the_others_written(tmp_path: Path, capsys):
    for task in TASKS[:-1]:
        for number in (0, 1):
            write_round(tmp_path / "in", task, number, 0.5 + number / 10)
    (tmp_path / "in" / "RTE1" / "test_results_rte.txt").unlink()
    (tmp_path / "in" / "CoLA1" / "eval_results_cola.txt").unlink()
    (tmp_path / "in" / "MNLI0" / "transformer_subgraph").mkdir()
    printed, scores = run(tmp_path / "in", tmp_path / "out", capsys)
    assert scores["missing"] == [
        "dev scores in any round of WNLI, which are not submitted",
        "dev scores of CoLA in round 1",
        f"{tmp_path}/in/RTE1/test_results_rte.txt, the predictions of the best round for RTE.tsv: "
        "run bertconv glue --do_predict",
    ]
    for sentence in scores["missing"]:
        assert f"missing: {sentence}" in printed
    assert "will refuse this archive: of the eleven files it lacks RTE.tsv, WNLI.tsv" in printed
    assert not (tmp_path / "out" / "RTE.tsv").exists()
    assert prediction(tmp_path / "out", "CoLA.tsv") == "0"
    assert len(list((tmp_path / "out").glob("*.tsv"))) == 9


def test_brackets_in_a_path_are_printed(tmp_path: Path, capsys):
    write_round(tmp_path / "runs[old]", RTE, 0, 0.5)
    printed, _ = run(tmp_path / "runs[old]", tmp_path / "out", capsys)
    assert f"Dev scores of {tmp_path}/runs[old], times 100" in printed


def test_files_of_an_earlier_submission_are_deleted(tmp_path: Path, capsys):
    for task in TASKS:
        write_round(tmp_path / "in", task, 0, 0.5)
    run(tmp_path / "in", tmp_path / "out", capsys)
    first = (tmp_path / "out" / "submission.zip").read_bytes()
    run(tmp_path / "in", tmp_path / "out", capsys)
    assert (tmp_path / "out" / "submission.zip").read_bytes() == first
    (tmp_path / "in" / "RTE0" / "test_results_rte.txt").unlink()
    run(tmp_path / "in", tmp_path / "out", capsys)
    assert not (tmp_path / "out" / "RTE.tsv").exists()


def test_without_predictions_there_are_dev_scores_and_no_archive(tmp_path: Path, capsys):
    write_round(tmp_path / "in", RTE, 0, 0.5)
    (tmp_path / "in" / "RTE0" / "test_results_rte.txt").unlink()
    printed, _ = run(tmp_path / "in", tmp_path / "out", capsys)
    assert "No predictions to submit" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dev_scores.json"]


def test_scores_of_stsb_are_clamped(tmp_path: Path, capsys):
    write_round(tmp_path / "in", STSB, 0, 0.5)
    (tmp_path / "in" / "STS-B0" / "test_results_sts-b.txt").write_text("index\tprediction\n0\t-0.2\n1\t5.31\n2\t2.5\n")
    run(tmp_path / "in", tmp_path / "out", capsys)
    assert (tmp_path / "out" / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t5.000\n2\t2.500\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the header is ''"),
        ("index,prediction\n0,entailment\n", "the header is 'index,prediction'"),
        ("index\tprediction\n", "there are no predictions"),
        ("index\tprediction\n0\tyes\n", "line 2 has the prediction 'yes', which is not a label of RTE"),
        ("index\tprediction\n1\tentailment\n", "line 2 has the index '1', not 0"),
        ("index\tprediction\n0\tentailment\tx\n", "line 2 has 3 tab-separated columns, not 2"),
        ("index\tprediction\n0\tentailment\n", ""),
    ],
)
def test_rows_of_a_submission_are_checked(content: str, problem: str):
    assert check_rows(content, RTE).startswith(problem)
    assert bool(check_rows(content, RTE)) == bool(problem)


def test_damaged_results_are_refused_by_name(tmp_path: Path):
    write_round(tmp_path / "in", RTE, 0, 0.5)
    options = CompileGlueOptions(input=str(tmp_path / "in"), test_dir=str(tmp_path / "out"))
    results = tmp_path / "in" / "RTE0" / "eval_results_rte.txt"
    for content, message in (
        ("eval_loss = 1\n", "no line eval_acc"),
        ("eval_acc = nan\n", "eval_acc: Input should be a finite number, not 'nan'"),
        ("eval_acc = inf\n", "eval_acc: Input should be a finite number, not 'inf'"),
        ("eval_acc = 7.5\n", "eval_acc: Input should be less than or equal to 1, not '7.5'"),
        ("eval_acc = -0.1\n", "eval_acc: Input should be greater than or equal to 0"),
    ):
        results.write_text(content)
        with pytest.raises(UsageError, match=message):
            compile_glue(options)
    write_round(tmp_path / "in", RTE, 0, 0.5)
    (tmp_path / "in" / "RTE0" / "test_results_rte.txt").write_text("index\tprediction\n0\tmaybe\n")
    with pytest.raises(UsageError, match=r"test_results_rte.txt: line 2 has the prediction 'maybe'"):
        compile_glue(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_results_is_refused(tmp_path: Path, make: bool):
    if make:
        (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=r"--input .*in: no "):
        compile_glue(CompileGlueOptions(input=str(tmp_path / "in"), test_dir=str(tmp_path / "out")))


def test_folders_with_similar_names_are_no_rounds(tmp_path: Path):
    write_round(tmp_path, RTE, 0, 0.5)
    write_round(tmp_path, RTE, 20, 0.9)  # such as round 0 of a task of one's own called RTE2
    for name in ("RTE", "RTEx", "RTE1.bak", "QNLI2"):
        (tmp_path / name).mkdir()
    scores = collect_scores(tmp_path)
    assert scores["RTE"] == {0: 0.5}
    assert scores["QNLI"] == {}


def test_the_first_of_equally_good_rounds_is_the_best():
    assert best_round({0: 0.1, 1: 0.7, 2: 0.7}) == 1
    assert statistics({0: 1.0}) == {"mean": 1.0, "std": None, "best": 1.0}


def test_the_time_left_is_estimated_from_what_each_task_took():
    progress = Progress(make_console(quiet=True), {"MNLI0": 1000, "RTE0": 100, "MNLI1": 1000, "RTE1": 100}, 4)
    assert progress.time_left() == ""
    progress._seconds = {"MNLI0": 1000.0}
    assert progress.time_left() == "20 min 0 s"
    progress._seconds["RTE0"] = 400.0
    assert progress.time_left() == "23 min 20 s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (100000, "1 d 3 h")]
)
def test_times_are_printed_in_two_units(seconds: float, text: str):
    assert duration(seconds) == text


def test_an_earlier_archive_is_deleted_where_nothing_is_predicted(tmp_path: Path, capsys):
    write_round(tmp_path / "in", RTE, 0, 0.5)
    run(tmp_path / "in", tmp_path / "out", capsys)
    assert (tmp_path / "out" / "submission.zip").is_file()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "in" / "RTE0" / "test_results_rte.txt").unlink()
    printed, _ = run(tmp_path / "in", tmp_path / "out", capsys)
    assert "No predictions to submit" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dev_scores.json", "notes.txt"}


def test_the_exit_code_says_whether_the_site_will_accept_the_archive(tmp_path: Path, capsys):
    command = ["compile-glue", "--input", str(tmp_path / "in"), "--test_dir", str(tmp_path / "out")]
    for task in TASKS:
        write_round(tmp_path / "in", task, 0, 0.5, rows=None)
    assert main(command) == 0
    (tmp_path / "in" / "RTE0" / "test_results_rte.txt").unlink()
    assert main(command) == 2
    assert "the GLUE site will refuse it: of the eleven files it lacks RTE.tsv" in capsys.readouterr().err
    assert (tmp_path / "out" / "submission.zip").is_file()
    write_round(tmp_path / "in", RTE, 0, 0.5, rows=3)
    assert main(command) == 2
    assert "RTE.tsv (3 rows, officially 3000)" in capsys.readouterr().err
    for path in (tmp_path / "in").glob("*/test_results*"):
        path.unlink()
    assert main(command) == 0  # only dev scores, without an archive that could be refused


@pytest.mark.parametrize("name", ["eval_results_rte.txt", "test_results_rte.txt"])
def test_files_that_are_not_text_are_refused_by_name(tmp_path: Path, name: str):
    write_round(tmp_path / "in", RTE, 0, 0.5)
    path = tmp_path / "in" / "RTE0" / name
    options = CompileGlueOptions(input=str(tmp_path / "in"), test_dir=str(tmp_path / "out"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=rf"{name} is not UTF-8 text \(byte 0\)"):
        compile_submission(options)
    path.unlink()
    os.mkfifo(path)
    if name.startswith("eval"):
        with pytest.raises(UsageError, match="it is not a regular file"):
            compile_submission(options)
    assert not (tmp_path / "out" / "submission.zip").exists()


@pytest.mark.parametrize("score", ["nan", "inf", "-inf", "1e999"])
def test_predicted_scores_that_are_not_finite_are_refused(tmp_path: Path, score: str):
    write_round(tmp_path / "in", STSB, 0, 0.5)
    (tmp_path / "in" / "STS-B0" / "test_results_sts-b.txt").write_text(f"index\tprediction\n0\t{score}\n")
    with pytest.raises(UsageError, match="is not a number"):
        compile_submission(CompileGlueOptions(input=str(tmp_path / "in"), test_dir=str(tmp_path / "out")))


def test_correlations_can_be_negative(tmp_path: Path, capsys):
    write_round(tmp_path / "in", STSB, 0, -0.25)
    _, scores = run(tmp_path / "in", tmp_path / "out", capsys)
    assert scores["dev"]["STS-B"]["best"] == -0.25


def test_a_test_dir_that_cannot_be_made_is_refused(tmp_path: Path):
    write_round(tmp_path / "in", RTE, 0, 0.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--test_dir .*file/out can't be made"):
        compile_submission(CompileGlueOptions(input=str(tmp_path / "in"), test_dir=str(tmp_path / "file" / "out")))
