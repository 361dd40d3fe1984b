"""``bertconv compile-glue``: the dev table, the best round of each task, and the submission.

Imports neither torch nor transformers: everything is read from the files that ``bertconv glue`` wrote.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.files import write_json
from bert_convolutions.glue.options import CompileGlueOptions
from bert_convolutions.glue.progress import best, mean, score_table, standard_deviation
from bert_convolutions.glue.submission import check_archive, convert_predictions, write_submission
from bert_convolutions.glue.tasks import DevSet, all_dev_sets, all_test_sets
from bert_convolutions.terminal import make_console

SCORES_FILE = "dev_scores.json"

Scores = dict[str, dict[int, float]]
"""Column title of a development set to round to score (0 to 1)."""


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
    """Run ``bertconv compile-glue``.

    Args:
        options: the folder of the fine-tuned tasks, and where to write.

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
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / SCORES_FILE, summary(compilation))
    if not compilation.files:
        console.print(f"No predictions to submit. Scores: {target / SCORES_FILE}", markup=False)
        return
    archive = write_submission(target, compilation.files)
    problems, unofficial = check_archive(archive)
    for name, folder in compilation.chosen.items():
        console.print(f"{name}: from {folder}", markup=False)
    if problems:
        console.print(f"The GLUE site will not take this archive: {'; '.join(problems)}", markup=False)
    if unofficial:
        console.print(f"Not the official test set, so not for the GLUE site: {'; '.join(unofficial)}", markup=False)
    if not problems and not unofficial:
        console.print("All eleven files have the names, headers, rows and labels of the GLUE site.", markup=False)
    console.print(f"Submission: {archive}\nScores: {target / SCORES_FILE}", markup=False)


def collect_scores(folder: Path) -> Scores:
    """Return the dev scores of all ``<TASK><round>`` folders below ``folder``, a column for each development set.

    Raises:
        UsageError: an ``eval_results_<task>.txt`` without the task's score.
    """
    scores: Scores = {}
    for task, dev_set in all_dev_sets():
        rounds = sorted(
            int(path.name.removeprefix(task.name))
            for path in folder.glob(f"{task.name}*")
            if path.name.removeprefix(task.name).isdecimal() and path.is_dir()
        )
        found = {number: read_score(folder / f"{task.name}{number}", dev_set) for number in rounds}
        scores[dev_set.title] = {number: score for number, score in found.items() if score is not None}
    return scores


def read_score(folder: Path, dev_set: DevSet) -> float | None:
    """Return the score in a folder's ``eval_results_<task>.txt``, or None where the file is not there.

    Raises:
        UsageError: the file has no such line, or no number there.
    """
    path = folder / f"eval_results_{dev_set.name}.txt"
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(" = ")
        if name == dev_set.score:
            try:
                score = float(value)
            except ValueError:
                score = math.nan
            if math.isnan(score):
                raise UsageError(f"{path}: {dev_set.score} is {value!r}, not a number")
            return score
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
        folder = source / f"{task.name}{best_round(column)}"
        path = folder / f"test_results_{test.name}.txt"
        if path.is_file():
            compilation.files[test.submission] = convert_predictions(path, task)
            compilation.chosen[test.submission] = folder.name
        else:
            compilation.missing.append(
                f"{path}, the predictions of the best round for {test.submission}: run bertconv glue --do_predict"
            )
    return compilation


def best_round(column: dict[int, float]) -> int:
    """Return the round with the highest score, of equal ones the first."""
    return min(column, key=lambda number: (-column[number], number))


def summary(compilation: Compilation) -> dict[str, object]:
    """Return the table and the choice as JSON data; scores from 0 to 1."""
    columns = {}
    for title, column in compilation.scores.items():
        values = list(column.values())
        columns[title] = {
            "rounds": {str(number): score for number, score in column.items()},
            "mean": mean(values),
            "std": standard_deviation(values),
            "best": best(values),
            "best_round": best_round(column) if column else None,
        }
    return {"dev": columns, "submitted_from": compilation.chosen, "missing": compilation.missing}
