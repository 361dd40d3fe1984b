"""``bertconv compile-glue``: prints the dev table, chooses the best rounds, writes and checks the submission.

Imports neither PyTorch nor transformers: everything is read from the files that ``bertconv glue`` wrote.
"""

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bert_convolutions.errors import UsageError
from bert_convolutions.files import make_folder, whole_file, write_csv, write_json, write_text
from bert_convolutions.glue.options import CompileGlueOptions
from bert_convolutions.glue.state import ENCODER_FOLDER, STATE_FILE, read_state
from bert_convolutions.glue.tasks import MAX_SCORE, MIN_SCORE, ROUND_SEEDS, TASKS, DevSet, Task, all_test_sets
from bert_convolutions.parsing import parse, read_text
from bert_convolutions.schemas import AccuracyScore, CorrelationScore, TaskState
from bert_convolutions.terminal import make_console, make_table

SCORES_FILE = "dev_scores.json"
METRICS_FILE = "dev_scores.csv"
ARCHIVE = "submission.zip"
HEADER = "index\tprediction"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""A fixed time, so that equal predictions give equal archives."""

Scores = dict[str, dict[int, float]]
"""Scores (0 to 1; correlations from -1) by column title of the development set and by round."""


def compile_glue(options: CompileGlueOptions) -> None:
    """Run ``bertconv compile-glue``: :func:`compile_submission`, then fail if the GLUE site will refuse the archive.

    Raises:
        UsageError: as :func:`compile_submission`, or the site will refuse the archive, which is written anyway.
    """
    faults = compile_submission(options)
    if faults:
        raise UsageError(f"{Path(options.test_dir) / ARCHIVE} was written, but the GLUE site will refuse it: {faults}")


def compile_submission(options: CompileGlueOptions) -> str:
    """Print the dev table; write the scores and the submission of the best rounds.

    Returns:
        Why the GLUE site will refuse the archive; empty if it won't, or if no archive was written.

    Raises:
        UsageError: the folder holds no results, a results file is damaged, or rounds of a task have other settings.
    """
    source, target = Path(options.input), Path(options.test_dir)
    if not source.is_dir():
        raise UsageError(f"--input {source}: no such folder")
    scores = collect_scores(source)
    if not any(scores.values()):
        raise UsageError(
            f"--input {source}: no <TASK><round>/eval_results_<task>.txt of GLUE below it; run bertconv glue "
            "--do_train --do_eval with several tasks or rounds first"
        )
    if mixed := mixed_rounds(source):
        raise UsageError(f"--input {source}: {mixed}; move the rounds of one of the runs elsewhere")
    chosen, missing = _choose(source, scores)
    files = {name: convert_predictions(path, task) for name, (path, task) in chosen.items()}
    console = make_console()
    console.print(score_table(scores, f"Dev scores of {source}, times 100"))
    if several := different_models(source):
        console.print(several, style="bold red")
    for sentence in missing:
        console.print(f"missing: {sentence}")
    make_folder(target, "--test_dir")
    submitted_from = {name: path.parent.name for name, (path, _) in chosen.items()}
    write_json(target / SCORES_FILE, {"dev": _summary(scores), "submitted_from": submitted_from, "missing": missing})
    _write_submission(target, files)
    if not files:
        console.print(f"No predictions to submit. Scores: {target / SCORES_FILE}")
        return ""
    for name, folder_name in submitted_from.items():
        console.print(f"{name}: from {folder_name}")
    problems, unofficial = check_files(files)
    if problems:
        console.print(f"The GLUE site will refuse this archive: {'; '.join(problems)}")
    if unofficial:
        console.print(f"Not the official test set, so not for the GLUE site: {'; '.join(unofficial)}")
    if not problems and not unofficial:
        console.print("All eleven files have the names, headers, rows and labels of the GLUE site.")
    console.print(f"Submission: {target / ARCHIVE}\nScores: {target / SCORES_FILE}")
    return "; ".join([*problems, *unofficial])


def _rounds(folder: Path, task: Task) -> dict[int, Path]:
    """The ``<TASK><round>`` folders in ``folder`` by round."""
    found = {path.name.removeprefix(task.name): path for path in folder.glob(f"{task.name}*") if path.is_dir()}
    return {number: found[str(number)] for number in range(len(ROUND_SEEDS)) if str(number) in found}


def mixed_rounds(folder: Path, tasks: Iterable[Task] = TASKS) -> str:
    """Two rounds of a task that were fine-tuned with other settings, whose mean says nothing; empty if there are none.

    Each has its own seed, and its own weights to start from if all start from the MNLI encoder of their round.
    """
    for task in tasks:
        states = [(place.name, state) for place in _rounds(folder, task).values() if (state := read_state(place))]
        for (first, one), (second, other) in pairwise(states):
            from_mnli = (str(state.settings.get("model")).endswith(ENCODER_FOLDER) for state in (one, other))
            own = {"seed", "model", *(("weights",) if all(from_mnli) else ())}
            common = one.settings.keys() & other.settings.keys() - own
            if differ := sorted(key for key in common if one.settings[key] != other.settings[key]):
                return f"{first} and {second} are of different runs, which differ in {', '.join(differ)}"
    return ""


def _states(folder: Path) -> Iterator[tuple[int, TaskState]]:
    """The round and the state of each task that ``bertconv glue`` ran in ``folder``, also of tasks of one's own."""
    for path in sorted(folder.glob(f"*/{STATE_FILE}")):
        state = read_state(path.parent)
        number = path.parent.name.removeprefix(state.task) if state else ""
        if state and number in map(str, range(len(ROUND_SEEDS))):
            yield int(number), state


def different_models(folder: Path) -> str:
    """The models that tasks started from, if they are several, apart from encoders fine-tuned on MNLI; else empty."""
    found: dict[Any, str] = {}
    for number, state in _states(folder):
        model, weights = str(state.settings.get("model")), state.settings.get("weights")
        if weights and not model.endswith(ENCODER_FOLDER):
            found.setdefault(weights, f"{state.task}{number} from {model}")
    return f"Tasks started from different models: {', '.join(found.values())}" if len(found) > 1 else ""


def write_metrics(folder: Path) -> None:
    """Write every metric of each task and round in ``folder`` to ``dev_scores.csv``, a row each."""
    rows = [
        (state.task, number, name, metric.removeprefix("eval_").removeprefix(f"{name}/"), value)
        for number, state in _states(folder)
        for name, metrics in state.dev.items()
        for metric, value in metrics.items()
    ]
    write_csv(folder / METRICS_FILE, [("task", "round", "dev_set", "metric", "value"), *rows])


def collect_scores(folder: Path, tasks: Iterable[Task] = TASKS) -> Scores:
    """The dev scores in the ``<TASK><round>`` folders of ``folder``, a column per development set.

    Raises:
        UsageError: an ``eval_results_<task>.txt`` lacks the task's score.
    """
    scores: Scores = {}
    for task in tasks:
        for dev_set in task.dev:
            found = {number: read_score(place, dev_set) for number, place in _rounds(folder, task).items()}
            scores[dev_set.title] = {number: score for number, score in found.items() if score is not None}
    return scores


def read_score(folder: Path, dev_set: DevSet) -> float | None:
    """The score in a folder's ``eval_results_<task>.txt``, or None if there is no such file.

    Raises:
        UsageError: the file is not text, or lacks the score, or the score is not a number in range.
    """
    path = folder / dev_set.results
    if not path.exists():
        return None
    for line in read_text(path).split("\n"):
        name, _, value = line.partition(" = ")
        if name == dev_set.score:
            kind = CorrelationScore if name in ("eval_mcc", "eval_corr") else AccuracyScore
            return parse(kind, value.strip(), f"{path}: {name}").root
    raise UsageError(f"{path}: no line {dev_set.score} = ...")


def _choose(source: Path, scores: Scores) -> tuple[dict[str, tuple[Path, Task]], list[str]]:
    """Choose the best round for each file of the submission.

    Returns:
        The predictions and the task for each submission file; and sentences about what is missing.
    """
    unscored = [title for title, column in scores.items() if not column]
    missing = [f"dev scores in any round of {', '.join(unscored)}, which are not submitted"] if unscored else []
    all_rounds = {number for column in scores.values() for number in column}
    for title, column in scores.items():
        absent = sorted(all_rounds - set(column))
        if column and absent:
            missing.append(f"dev scores of {title} in round {', '.join(map(str, absent))}")
    chosen = {}
    for task, test in all_test_sets():
        column = scores[next(dev_set.title for dev_set in task.dev if dev_set.name == test.chosen_by)]
        if not column:
            continue
        path = _rounds(source, task)[best_round(column)] / test.results
        if path.is_file():
            chosen[test.submission] = (path, task)
        else:
            missing.append(
                f"{path}, the predictions of the best round for {test.submission}: run bertconv glue --do_predict"
            )
    return chosen, missing


def best_round(column: Mapping[int, float]) -> int:
    """The round with the highest score; of equal ones, the first."""
    return min(column, key=lambda number: (-column[number], number))


def statistics(column: Mapping[int, float]) -> dict[str, float | None]:
    """Mean, sample standard deviation (N - 1) and maximum of a column; None if it has too few values."""
    values = list(column.values())
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "best": max(values, default=None),
    }


def _summary(scores: Scores) -> dict[str, object]:
    """The table as JSON data, with scores as fractions."""
    return {
        title: {
            "rounds": {str(number): score for number, score in column.items()},
            **statistics(column),
            "best_round": best_round(column) if column else None,
        }
        for title, column in scores.items()
    }


def score_table(scores: Scores, title: str) -> Table:
    """The dev table: a row per round, then mean, standard deviation and best, times 100."""
    table = make_table(title, "round", *scores)
    for number in sorted({number for column in scores.values() for number in column}):
        table.add_row(str(number), *(_percent(column.get(number)) for column in scores.values()))
    table.add_section()
    column_statistics = [statistics(column) for column in scores.values()]
    for name in ("mean", "std", "best"):
        table.add_row(name, *(_percent(values[name]) for values in column_statistics))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def convert_predictions(path: Path, task: Task) -> str:
    """The content of a ``test_results_<task>.txt`` for the GLUE site, with scores clamped to 0 to 5.

    Raises:
        UsageError: the file is not ``index<TAB>prediction`` with the task's labels.
    """
    header, *rows = _lines(read_text(path))
    if not task.labels:
        rows = [_clamped(path, row) for row in rows]
    content = "\n".join([header, *rows]) + "\n"
    problem = check_rows(content, task)
    if problem:
        raise UsageError(f"{path}: {problem}")
    return content


def _lines(content: str) -> list[str]:
    return content.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _clamped(path: Path, row: str) -> str:
    index, _, word = row.partition("\t")
    try:
        score = float(word)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UsageError(f"{path}: {word!r} of index {index} is not a number")
    return f"{index}\t{min(max(score, MIN_SCORE), MAX_SCORE):.3f}"


def check_rows(content: str, task: Task) -> str:
    """What is wrong with the rows of a submission file (after clamping), or an empty string.

    The indices must be 0, 1, 2, ... in order, as GLUE's are, and the predictions must be labels of the task.
    """
    header, *rows = _lines(content)
    if header != HEADER:
        return f"the header is {header!r}, not {HEADER!r}"
    if not rows:
        return "there are no predictions"
    for number, row in enumerate(rows):
        cells = row.split("\t")
        if len(cells) != 2:
            return f"line {number + 2} has {len(cells)} tab-separated columns, not 2"
        if cells[0] != str(number):
            return f"line {number + 2} has the index {cells[0]!r}, not {number}"
        if task.labels and cells[1] not in task.labels:
            return f"line {number + 2} has the prediction {cells[1]!r}, which is not a label of {task.name}"
    return ""


def check_files(files: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Compare the files of a submission (content by name, with valid rows) with what the GLUE site accepts.

    Returns:
        Problems for which the site will refuse the submission, and files whose number of rows differs from the
        official test set's.
    """
    absent = [test.submission for _, test in all_test_sets() if test.submission not in files]
    rows = {test: len(_lines(files[test.submission])) - 1 for _, test in all_test_sets() if test.submission in files}
    return (
        [f"of the eleven files it lacks {', '.join(absent)}"] if absent else [],
        [f"{test.submission} ({n} rows, officially {test.rows})" for test, n in rows.items() if n != test.rows],
    )


def _write_submission(folder: Path, files: Mapping[str, str]) -> None:
    """Write each file and their archive atomically; delete other files of an earlier submission."""
    for name in (ARCHIVE, *(test.submission for _, test in all_test_sets())):
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_text(folder / name, content)
    if files:
        with whole_file(folder / ARCHIVE) as file, zipfile.ZipFile(file, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), content, zipfile.ZIP_DEFLATED)
