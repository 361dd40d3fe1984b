"""Read the examples of a file, of GLUE's TSV, CSV, JSONL, parquet or CoNLL; or of a split that ``datasets`` loads.

Each format gives rows, and one function makes examples of them. Imports neither torch nor transformers.
"""

import csv
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.errors import UsageError, brief, first_line
from bert_convolutions.glue.tasks import LAST, MAX_SCORE, MIN_SCORE, Task, TestSet

logger = logging.getLogger(__name__)

SHORT_LINES_PER_LINE = 1 / 1000
"""Share of lines with too few columns that QQP may hold. The official train.tsv has a few dozen in 364 thousand."""
_MOST_CHARACTERS = 1 << 30
"""Of a cell of a CSV file; Python's own limit is 131,072."""
Rows = Iterator[tuple[str, Any]]
"""Place in the file, such as ``line 3``, and cells: by name, by number, or of CoNLL's a list of lists by number."""


@dataclass(frozen=True)
class Examples:
    """The texts of one file, and what goes with each.

    Attributes:
        path: where they were read.
        texts: one list of texts per text column, all of the same length; of a task of words a list of lists of words.
        labels: label ids, or real numbers for STS-B; None for a test file; of a task of words a list for each text.
        indices: the file's own ``index`` column of a test file, or its rows' numbers; None for train and dev files.
        sha256: of the file's bytes, in hexadecimal; of a split that of its texts and labels.
    """

    path: Path
    texts: tuple[list[Any], ...]
    labels: list[float] | list[int] | list[list[int]] | None
    indices: list[int] | None
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.texts[0])


def read_examples(path: Path, task: Task, test: TestSet | None = None) -> Examples:
    """Read a training or development file of a task, or the file of one of its test sets.

    Args:
        path: the file; of a data set ``<data set>/<configuration>/<split>``.
        task: whose file it is.
        test: the test set, which has no labels; the first column of GLUE's TSVs is the index that a submission gives.

    Raises:
        UsageError: a missing or empty file, or a line that does not fit the task's declaration.
    """
    if task.dataset is not None:
        digest, rows = "", _dataset_rows(task.dataset, str(path.relative_to(task.dataset)))
    elif not path.is_file():
        in_data_dir = "SuperGLUE's folders with JSONL (super.gluebenchmark.com)" if task.named else "GLUE's TSV files"
        own = task.root is not None
        advice = "see files: in the task's YAML file" if own else f"--data_dir must hold {in_data_dir}"
        raise UsageError(f"{path}: no such file; {advice}")
    else:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        own_rows = _FORMATS.get(path.suffix, _conll_rows)
        rows = own_rows(path, content) if task.named else _glue_rows(path, content, task, test)
    columns = test.texts if test else task.texts
    found: tuple[list[Any], ...] = tuple([] for _ in columns)
    labels: list[Any] = []
    places: dict[int, str] = {}
    for place, row in rows:
        where = f"{path}, {place}"
        for names, values in zip(columns, found, strict=True):
            values.append(_text(where, row, names, task.per_token))
        if test is None:
            labels.append(_labels(where, row, task, found[0][-1]))
            continue
        index = len(places) if task.named else _index(where, row[0])
        if places.setdefault(index, place) != place:
            raise UsageError(f"{where}: index {index} was already on {places[index]}")
    if not found[0]:
        raise UsageError(f"{path}: the file has no examples")
    digest = digest or hashlib.sha256(json.dumps([found, labels]).encode()).hexdigest()
    return Examples(path, found, None if test else labels, list(places) if test else None, digest)


def _text(where: str, row: Any, columns: tuple[str | int, ...], per_token: bool) -> str | list[str]:
    """The text of a row, columns joined by a space; or its words."""
    cells = [_cell(where, row, column) for column in columns]
    for column, cell in zip(columns, cells, strict=True):
        if not per_token and not isinstance(cell, str):
            raise UsageError(f"{where}: column {column!r} has {brief(cell)}, which is not text")
        if per_token and not (isinstance(cell, list) and cell and all(isinstance(word, str) for word in cell)):
            raise UsageError(f"{where}: column {column!r} has {brief(cell)}, which is not a list of words")
    return cells[0] if per_token else " ".join(cells)


def _labels(where: str, row: Any, task: Task, words: Any) -> int | float | list[int]:
    """The label of a row, or those of its words."""
    value = _cell(where, row, task.label_column)
    if not task.per_token:
        return _label(where, value, task)
    if not isinstance(value, list) or len(value) != len(words):
        raise UsageError(f"{where}: column {task.label_column!r} has not one label for each of the words")
    return [int(_label(where, word, task)) for word in value]


def _cell(where: str, row: Any, column: str | int) -> Any:
    try:
        return row[column]
    except (KeyError, IndexError, TypeError):
        there = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"numbers from 0 to {len(row) - 1}"
        raise UsageError(f"{where}: there is no column {column!r}; there are {there}") from None


def _index(where: str, cell: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", cell):
        raise UsageError(f"{where}: the index in column 1 is {cell!r}, not a whole number")
    return int(cell)


def _label(where: str, value: Any, task: Task) -> int | float:
    """A label's id, or its number for a task of real numbers; files with types may have a truth value or the id."""
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
    if not (math.isfinite(score) if task.is_own else MIN_SCORE <= score <= MAX_SCORE):
        allowed = "a finite number" if task.is_own else f"a number from {MIN_SCORE:g} to {MAX_SCORE:g}"
        raise UsageError(f"{where}: {value!r} is not {allowed}")
    return score


def _lines(path: Path, content: bytes) -> Iterator[tuple[int, str]]:
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


def _glue_rows(path: Path, content: bytes, task: Task, test: TestSet | None) -> Rows:
    """Cells of GLUE's TSV: tab separated, quotes literal, one example a line; a test file always has a header."""
    lines = _lines(path, content)
    first = next(lines, None) if test or task.header else (0, "")
    if first is None:
        raise UsageError(f"{path}: the file is empty")
    needed = 1 + max(int(column) for text in (test.texts if test else task.texts) for column in text)
    width = None
    if test is None:
        header = first[1].split("\t")
        width = len(header) if task.header else None
        label_column = len(header) - 1 if task.label_column == LAST else int(task.label_column)
        needed = max(needed, label_column + 1)
        if task.header:
            _refuse_missing_header(path, header, label_column, needed, task)
    count, short = 0, []
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) >= needed:
            count += 1
            yield f"line {number}", cells[:width]
        elif test is None and task.skips_short_lines:
            short.append((number, len(cells)))
        else:
            raise UsageError(_too_few(path, number, len(cells), needed))
    if len(short) > SHORT_LINES_PER_LINE * count:
        raise UsageError(_too_few(path, *short[0], needed))
    if short:
        logger.warning(
            "%s: skipped %d lines with too few columns (first: line %d), as every reader of %s does",
            *(path, len(short), short[0][0], task.name),
        )


def _refuse_missing_header(path: Path, header: list[str], label_column: int, needed: int, task: Task) -> None:
    """Refuse a file whose first line is an example already: skipping it as a header would lose it silently."""
    if len(header) < needed:
        raise UsageError(_too_few(path, 1, len(header), needed))
    word = header[label_column]
    if word in task.labels or (not task.labels and word.replace(".", "", 1).isdigit()):
        raise UsageError(f"{path}: line 1 must be a header, but its label column holds {word!r}")


def _too_few(path: Path, number: int, found: int, needed: int) -> str:
    return f"{path}, line {number}: {found} tab-separated columns where at least {needed} are needed"


def _csv_rows(path: Path, content: bytes) -> Rows:
    """Cells by the header's names. In a CSV file quotes are quotes; in a TSV file they are text, as in GLUE's."""
    csv.field_size_limit(_MOST_CHARACTERS)
    lines = (f"{line}\n" for _, line in _lines(path, content))
    is_tsv = path.suffix == ".tsv"
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
    reader = csv.DictReader(lines, **dialect)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(f"{path}, line {reader.line_num}: not as many cells as the header has names")
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from error


def _json_rows(path: Path, content: bytes) -> Rows:
    for number, line in _lines(path, content):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: {brief(row)} is not an object with named values")
        yield f"line {number}", row


def _parquet_rows(path: Path, content: bytes) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(pa.BufferReader(content)).iter_batches()
        yield from _numbered(row for batch in batches for row in batch.to_pylist())
    except pa.ArrowException as error:
        raise UsageError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error


def _conll_rows(path: Path, content: bytes) -> Rows:
    """Sentences between blank lines, a word a line, its columns parted by white space.

    ``-DOCSTART-`` is no word; in CoNLL-U neither are comments, nor what has no whole number in front.
    """
    first = 0
    cells: list[list[str]] = []
    for number, line in (*_lines(path, content), (0, "")):
        parts = line.split("\t") if path.suffix == ".conllu" else line.split()
        if not line.strip():
            if cells:
                yield f"line {first}", [list(column) for column in zip(*cells, strict=True)]
            cells = []
        elif parts[0] != "-DOCSTART-" and (path.suffix != ".conllu" or parts[0].isdecimal()):
            if cells and len(parts) != len(cells[0]):
                raise UsageError(f"{path}, line {number}: {len(parts)} columns, and {len(cells[0])} in the line before")
            first = first if cells else number
            cells.append(parts)


_FORMATS = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def has_split(dataset: str, path: str) -> bool:
    """Whether a local data set has a split; one of the hub is taken to."""
    return not Path(dataset).is_dir() or any(Path(dataset).glob(f"{path}*.parquet"))


def _dataset_rows(dataset: str, path: str) -> Rows:
    """The rows of ``<configuration>/<split>``, by ``datasets``, which keeps what it has fetched."""
    import datasets

    try:
        rows = datasets.load_dataset(dataset, data_files=f"{path}*.parquet", split="train")
    except Exception as error:  # of the network, of the hub, of the disk
        raise UsageError(f"--dataset {dataset}: {path} can't be read ({first_line(error)})") from error
    yield from _numbered(rows)


def _numbered(rows: Iterable[Any]) -> Rows:
    return ((f"row {number}", row) for number, row in enumerate(rows))
