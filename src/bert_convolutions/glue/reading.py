"""Read GLUE's TSV files: tab separated, quotes literal, one example a line; files of other kinds: ``named``.

Imports neither torch nor transformers.
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.tasks import LAST, MAX_SCORE, MIN_SCORE, DevSet, Task, TestSet

logger = logging.getLogger(__name__)

SHORT_LINES_PER_LINE = 1 / 1000
"""Share of lines with too few columns that QQP may hold. The official train.tsv has a few dozen in 364 thousand."""


@dataclass(frozen=True)
class Examples:
    """The texts of one file, and what goes with each.

    Attributes:
        path: where they were read.
        texts: one list of texts per text column, all of the same length; of a task of words a list of lists of words.
        labels: label ids, or real numbers for STS-B; None for a test file; of a task of words a list for each text.
        indices: the file's own ``index`` column of a test file; None for train and dev files.
        sha256: of the file's bytes, in hexadecimal.
    """

    path: Path
    texts: tuple[list[Any], ...]
    labels: list[float] | list[int] | list[list[int]] | None
    indices: list[int] | None
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.texts[0])


def read_train(data_dir: Path, task: Task) -> Examples:
    """Read a task's training file; see :func:`read_dev`."""
    return _read_labelled(data_dir / task.train_path, task)


def read_dev(data_dir: Path, task: Task, dev_set: DevSet) -> Examples:
    """Read a development file of a task.

    Raises:
        UsageError: a missing or empty file, or a line that does not fit the task's declaration.
    """
    return _read_labelled(data_dir / task.dev_path(dev_set), task)


def read_test(data_dir: Path, test_set: TestSet) -> Examples:
    """Read a test file. Its first column is the index that a submission refers to.

    Raises:
        UsageError: a missing or empty file, too few columns, or an index that is not a whole number or comes twice.
    """
    path = data_dir / test_set.path
    content = content_of(path)
    lines = lines_of(path, content)
    _header(path, lines)
    needed = max(test_set.texts) + 1
    texts: tuple[list[str], ...] = tuple([] for _ in test_set.texts)
    indices: dict[int, int] = {}
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < needed:
            raise UsageError(_too_few(path, number, len(cells), needed))
        if not re.fullmatch("[0-9]{1,9}", cells[0]):
            raise UsageError(f"{path}, line {number}: the index in column 1 is {cells[0]!r}, not a whole number")
        index = int(cells[0])
        if index in indices:
            raise UsageError(f"{path}, line {number}: index {index} was already on line {indices[index]}")
        indices[index] = number
        for column, values in zip(test_set.texts, texts, strict=True):
            values.append(cells[column])
    refuse_empty(path, len(indices))
    return Examples(path, texts, None, list(indices), sha256_of(content))


def _read_labelled(path: Path, task: Task) -> Examples:
    """Read a train or dev file by the columns that the task declares."""
    content = content_of(path)
    lines = lines_of(path, content)
    label_column = int(task.label_column)
    if task.header:
        header = _header(path, lines)
        label_column = len(header) - 1 if label_column == LAST else label_column
        _refuse_missing_header(path, header, label_column, task)
    needed = max(*task.texts, label_column) + 1
    texts: tuple[list[str], ...] = tuple([] for _ in task.texts)
    labels: list[float] = []
    short: list[tuple[int, int]] = []
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < needed:
            short.append((number, len(cells)))
            if not task.skips_short_lines:
                break
            continue
        labels.append(label_of(f"{path}, line {number}", cells[label_column], task))
        for column, values in zip(task.texts, texts, strict=True):
            values.append(cells[column])
    if short:
        if not task.skips_short_lines or len(short) > SHORT_LINES_PER_LINE * len(labels):
            raise UsageError(_too_few(path, *short[0], needed))
        logger.warning(
            "%s: skipped %d lines with too few columns (first: line %d), as every reader of %s does",
            *(path, len(short), short[0][0], task.name),
        )
    refuse_empty(path, len(labels))
    return Examples(path, texts, labels, None, sha256_of(content))


def content_of(path: Path) -> bytes:
    """Return the bytes of a file, which must be there."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --data_dir must hold the GLUE folders with their TSV files")
    return path.read_bytes()


def sha256_of(content: bytes) -> str:
    """Return the SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def lines_of(path: Path, content: bytes) -> Iterator[tuple[int, str]]:
    r"""Yield (line number from 1, line) of a UTF-8 file with ``\n`` or ``\r\n``; a byte order mark is dropped.

    Only ``\n`` ends a line: texts hold other characters that ``str.splitlines`` would cut at. Blank lines at the end
    are dropped.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}, line {number}: not UTF-8 (byte {error.start} of the line)") from None


def _header(path: Path, lines: Iterator[tuple[int, str]]) -> list[str]:
    """Take the header off the lines."""
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{path}: the file is empty")
    return first[1].split("\t")


def _refuse_missing_header(path: Path, header: list[str], label_column: int, task: Task) -> None:
    """Refuse a file whose first line is an example already: skipping it as a header would lose it silently."""
    needed = max(*task.texts, label_column) + 1
    if len(header) < needed:
        raise UsageError(_too_few(path, 1, len(header), needed))
    word = header[label_column]
    if word in task.labels or (not task.labels and word.replace(".", "", 1).isdigit()):
        raise UsageError(f"{path}: line 1 must be a header, but its label column holds {word!r}")


def refuse_empty(path: Path, num_examples: int) -> None:
    """Refuse a file without examples."""
    if not num_examples:
        raise UsageError(f"{path}: the file has no examples")


def label_of(where: str, value: Any, task: Task) -> int | float:
    """Return a label's id, or its number for a task of real numbers.

    Args:
        where: file and line, for the message.
        value: a word; in files that have types also a truth value, or the number of the label.
        task: whose label it is.

    Raises:
        UsageError: the task has no such label.
    """
    if task.labels:
        word = str(value).lower() if isinstance(value, bool) else str(value)
        numbers = task.numbers or task.labels
        if word not in task.labels and type(value) is int and 0 <= value < len(numbers):
            word = numbers[value]
        if word not in task.labels:
            raise UsageError(f"{where}: unknown label {word!r}; {task.name} has {', '.join(task.labels)}")
        return task.labels.index(word)
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    lowest, highest = (-math.inf, math.inf) if task.named and task.dataset is None else (MIN_SCORE, MAX_SCORE)
    if not lowest <= score <= highest or math.isinf(score):
        allowed = "a finite number" if math.isinf(highest) else f"a number from {lowest:g} to {highest:g}"
        raise UsageError(f"{where}: {value!r} is not {allowed}")
    return score


def _too_few(path: Path, number: int, found: int, needed: int) -> str:
    return f"{path}, line {number}: {found} tab-separated columns where at least {needed} are needed"
