"""``bertconv compile-glue``: the dev table, the best round of each task, and the submission, written and checked.

Imports neither torch nor transformers: everything is read from the files that ``bertconv glue`` wrote.
"""

import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from rich.table import Table

from bert_convolutions.errors import UsageError
from bert_convolutions.files import make_folder, write_bytes, write_json, write_text
from bert_convolutions.glue.options import CompileGlueOptions
from bert_convolutions.glue.tasks import MAX_SCORE, MIN_SCORE, TASKS, DevSet, Task, all_dev_sets, all_test_sets
from bert_convolutions.parsing import parse, read_text
from bert_convolutions.schemas import AccuracyScore, CorrelationScore
from bert_convolutions.terminal import make_console

SCORES_FILE = "dev_scores.json"
ARCHIVE = "submission.zip"
HEADER = "index\tprediction"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Fixed, so that equal predictions give an equal archive."""

Scores = dict[str, dict[int, float]]
"""Column title of a development set to round to score (0 to 1; correlations from -1)."""


@dataclass
class Compilation:
    """What was found below the input folder, and what of it goes into the submission.

    Attributes:
        scores: all dev scores.
        chosen: submission file to the folder whose predictions it holds.
        files: submission file to its content.
        missing: sentences about what is not there.
    """

    scores: Scores
    chosen: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def compile_glue(options: CompileGlueOptions) -> None:
    """Run ``bertconv compile-glue``: as :func:`compile_submission`, and fail where the site will refuse the archive.

    Raises:
        UsageError: as there, or the archive, which is written all the same, is not one for the GLUE site.
    """
    faults = compile_submission(options)
    if faults:
        raise UsageError(f"{Path(options.test_dir) / ARCHIVE} was written, but the GLUE site will refuse it: {faults}")


def compile_submission(options: CompileGlueOptions) -> str:
    """Print the dev table, and write the scores and the submission of the best rounds.

    Args:
        options: the folder of the fine-tuned tasks, and where to write.

    Returns:
        Why the GLUE site will refuse the archive that was written, if there is one and it will.

    Raises:
        UsageError: there is no result below the folder, or a file of results is damaged.
    """
    source, target = Path(options.input), Path(options.test_dir)
    if not source.is_dir():
        raise UsageError(f"--input {source}: no such folder")
    compilation = gather(source)
    if not any(compilation.scores.values()):
        raise UsageError(
            f"--input {source}: no <TASK><round>/eval_results_<task>.txt below it; run bertconv glue --do_train "
            "--do_eval with several tasks or rounds first"
        )
    console = make_console()
    console.print(score_table(compilation.scores, f"Dev scores of {source}, times 100"))
    for sentence in compilation.missing:
        console.print(f"missing: {sentence}", markup=False)
    make_folder(target, "--test_dir")
    write_json(target / SCORES_FILE, summary(compilation))
    remove_former(target, compilation.files)
    if not compilation.files:
        console.print(f"No predictions to submit. Scores: {target / SCORES_FILE}", markup=False)
        return ""
    archive = write_submission(target, compilation.files)
    problems, unofficial = check_archive(archive)
    for name, folder_name in compilation.chosen.items():
        console.print(f"{name}: from {folder_name}", markup=False)
    faults = []
    if problems:
        faults.append(f"The GLUE site will not take this archive: {'; '.join(problems)}")
    if unofficial:
        faults.append(f"Not the official test set, so not for the GLUE site: {'; '.join(unofficial)}")
    for sentence in faults or ["All eleven files have the names, headers, rows and labels of the GLUE site."]:
        console.print(sentence, markup=False)
    console.print(f"Submission: {archive}\nScores: {target / SCORES_FILE}", markup=False)
    return "; ".join([*problems, *unofficial])


def _rounds(folder: Path, task: Task) -> dict[int, Path]:
    """Return the ``<TASK><round>`` folders below ``folder`` by their round."""
    found = {path.name.removeprefix(task.name): path for path in folder.glob(f"{task.name}*") if path.is_dir()}
    return {int(number): found[number] for number in sorted(found) if number.isdecimal()}


def collect_scores(folder: Path, tasks: Iterable[Task] = TASKS) -> Scores:
    """Return the dev scores of tasks' ``<TASK><round>`` folders below ``folder``, a column for each development set.

    Raises:
        UsageError: an ``eval_results_<task>.txt`` without the task's score.
    """
    scores: Scores = {}
    for task in tasks:
        rounds = sorted(_rounds(folder, task).items())
        for dev_set in task.dev:
            found = {number: read_score(place, dev_set) for number, place in rounds}
            scores[dev_set.title] = {number: score for number, score in found.items() if score is not None}
    return scores


def read_score(folder: Path, dev_set: DevSet) -> float | None:
    """Return the score in a folder's ``eval_results_<task>.txt``, or None where the file is not there.

    Raises:
        UsageError: the file is not text, has no such line, or no number there that such a score can be.
    """
    path = folder / f"eval_results_{dev_set.name}.txt"
    if not path.exists():
        return None
    for line in read_text(path).split("\n"):
        name, _, value = line.partition(" = ")
        if name == dev_set.score:
            kind = CorrelationScore if name in ("eval_mcc", "eval_corr") else AccuracyScore
            return parse(kind, value.strip(), f"{path}: {name}").root
    raise UsageError(f"{path}: no line {dev_set.score} = ...")


def gather(source: Path) -> Compilation:
    """Choose the best round of each test set and read its predictions."""
    scores = collect_scores(source)
    compilation = Compilation(scores)
    all_rounds = {number for column in scores.values() for number in column}
    titles = {dev_set.name: dev_set.title for _, dev_set in all_dev_sets()}
    unscored = [title for title, column in scores.items() if not column]
    if unscored:
        compilation.missing.append(f"dev scores in any round of {', '.join(unscored)}: nothing of them is submitted")
    for title, column in scores.items():
        absent = sorted(all_rounds - set(column))
        if column and absent:
            compilation.missing.append(f"dev scores of {title} in round {', '.join(map(str, absent))}")
    for task, test in all_test_sets():
        column = scores[titles[test.chosen_by]]
        if not column:
            continue
        folder = _rounds(source, task)[best_round(column)]
        path = folder / f"test_results_{test.name}.txt"
        if path.is_file():
            compilation.files[test.submission] = convert_predictions(path, task)
            compilation.chosen[test.submission] = folder.name
        else:
            compilation.missing.append(
                f"{path}, the predictions of the best round for {test.submission}: run bertconv glue --do_predict"
            )
    return compilation


def best_round(column: Mapping[int, float]) -> int:
    """Return the round with the highest score, of equal ones the first."""
    return min(column, key=lambda number: (-column[number], number))


def statistics(column: Mapping[int, float]) -> dict[str, float | None]:
    """Return mean, sample standard deviation (divided by N - 1) and best of a column; None where there are too few."""
    values = list(column.values())
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "best": max(values, default=None),
    }


def summary(compilation: Compilation) -> dict[str, object]:
    """Return the table and the choice as JSON data; scores are not multiplied."""
    columns = {
        title: {
            "rounds": {str(number): score for number, score in column.items()},
            **statistics(column),
            "best_round": best_round(column) if column else None,
        }
        for title, column in compilation.scores.items()
    }
    return {"dev": columns, "submitted_from": compilation.chosen, "missing": compilation.missing}


def score_table(scores: Scores, title: str) -> Table:
    """Return the dev table: a row each round, then mean, standard deviation and best, times 100.

    Args:
        scores: column title to round to score.
        title: line above the table.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("round")
    for column in scores:
        table.add_column(column, justify="right")
    for number in sorted({number for column in scores.values() for number in column}):
        table.add_row(str(number), *(_percent(column.get(number)) for column in scores.values()))
    table.add_section()
    of_columns = [statistics(column) for column in scores.values()]
    for name in ("mean", "std", "best"):
        table.add_row(name, *(_percent(values[name]) for values in of_columns))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def convert_predictions(path: Path, task: Task) -> str:
    """Return a ``test_results_<task>.txt`` as the site takes it: scores clamped to 0 to 5, the rest as it is.

    Raises:
        UsageError: the file is not ``index<TAB>prediction`` with the task's label words.
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
    """Return what is wrong with the rows of a submission file, or nothing.

    The indices must be 0, 1, 2, ... in order, as GLUE's are, and the predictions the task's label words or scores.
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
        if not _is_prediction(cells[1], task):
            return f"line {number + 2} has the prediction {cells[1]!r}, which {task.name} does not know"
    return ""


def _is_prediction(word: str, task: Task) -> bool:
    if task.labels:
        return word in task.labels
    try:
        return MIN_SCORE <= float(word) <= MAX_SCORE
    except ValueError:
        return False


def remove_former(folder: Path, files: Mapping[str, str]) -> None:
    """Delete what an earlier submission left in a folder: its archive, and its files that are not among ``files``."""
    (folder / ARCHIVE).unlink(missing_ok=True)
    for _, test in all_test_sets():
        if test.submission not in files:
            (folder / test.submission).unlink(missing_ok=True)


def write_submission(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files and the archive of them, each as a whole.

    Args:
        folder: where to write.
        files: file name to content.

    Returns:
        The archive's path.
    """
    for name, content in files.items():
        write_text(folder / name, content)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), content, zipfile.ZIP_DEFLATED)
    path = folder / ARCHIVE
    write_bytes(path, buffer.getvalue())
    return path


def check_archive(path: Path) -> tuple[list[str], list[str]]:
    """Read a submission archive and compare it with what the GLUE site accepts.

    Returns:
        Problems for which the site refuses it or scores it wrongly; and the names of files whose number of rows is
        not that of the official test set.
    """
    problems: list[str] = []
    unofficial: list[str] = []
    known = {test.submission: (task, test) for task, test in all_test_sets()}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        absent = [name for name in known if name not in names]
        if absent:
            problems.append(f"of the eleven files it lacks {', '.join(absent)}")
        for name in names:
            if name not in known:
                problems.append(f"{name} is not a file of the submission")
                continue
            task, test = known[name]
            content = archive.read(name).decode("utf-8")
            problem = check_rows(content, task)
            if problem:
                problems.append(f"{name}: {problem}")
            elif (rows := len(_lines(content)) - 1) != test.rows:
                unofficial.append(f"{test.submission} ({rows} rows, officially {test.rows})")
    return problems, unofficial
