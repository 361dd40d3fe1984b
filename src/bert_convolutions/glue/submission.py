"""The files of a GLUE submission: what the site accepts, written and checked.

Imports neither torch nor transformers.
"""

import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.files import write_bytes, write_text
from bert_convolutions.glue.tasks import MAX_SCORE, MIN_SCORE, Task, TestSet, all_test_sets

HEADER = "index\tprediction"
ARCHIVE = "submission.zip"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Fixed, so that equal predictions give an equal archive."""


def convert_predictions(path: Path, task: Task) -> str:
    """Return a ``test_results_<task>.txt`` as the site takes it: scores clamped to 0 to 5, the rest as it is.

    Raises:
        UsageError: the file is not ``index<TAB>prediction`` with the task's label words.
    """
    content = path.read_text(encoding="utf-8")
    if not task.labels:
        header, *rows = content.splitlines()
        content = "\n".join([header, *(_clamped(path, row) for row in rows)]) + "\n"
    problem = check_rows(content, task)
    if problem:
        raise UsageError(f"{path}: {problem}")
    return content


def _clamped(path: Path, row: str) -> str:
    index, _, word = row.partition("\t")
    try:
        score = min(max(float(word), MIN_SCORE), MAX_SCORE)
    except ValueError:
        raise UsageError(f"{path}: {word!r} of index {index} is not a number") from None
    return f"{index}\t{score:.3f}"


def check_rows(content: str, task: Task) -> str:
    """Return what is wrong with the rows of a submission file, or nothing.

    The indices must be 0, 1, 2, ... in order, as GLUE's are, and the predictions the task's label words or scores.
    """
    header, *rows = content.splitlines() or [""]
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


def write_submission(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files and the archive of them, each as a whole, and read the archive again.

    Args:
        folder: where to write; files of an earlier submission that are not written now are deleted.
        files: file name to content.

    Returns:
        The archive's path.

    Raises:
        UsageError: what was read back is not what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _, test in all_test_sets():
        if test.submission not in files:
            (folder / test.submission).unlink(missing_ok=True)
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
            elif _num_rows(content) != test.rows:
                unofficial.append(describe_rows(test, _num_rows(content)))
    return problems, unofficial


def _num_rows(content: str) -> int:
    return len(content.splitlines()) - 1


def describe_rows(test: TestSet, rows: int) -> str:
    """Return a file's name with its number of rows beside the official one."""
    return f"{test.submission} ({rows} rows, officially {test.rows})"
