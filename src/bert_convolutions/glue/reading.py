"""Reads examples from GLUE's TSV, CSV, JSONL, parquet or CoNLL files, or from a split that ``datasets`` loads.

A reader per format yields rows, which one function turns into examples. Imports neither PyTorch nor transformers.
"""

import contextlib
import csv
import dataclasses
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
"""Maximum fraction of QQP's lines with too few columns. The official train.tsv has a few dozen in 364 thousand."""
_MAX_CELL_CHARACTERS = 1 << 30
"""Maximum length of a CSV cell; Python's default is 131,072."""
Rows = Iterator[tuple[str, Any]]
"""Location in the file, such as ``line 3``, and cells by name or number; a CoNLL cell is the list of a column."""


@dataclass(frozen=True)
class Examples:
    """The texts of one file with their labels or indices.

    Attributes:
        path: the file.
        texts: one list of texts per text column, all of the same length; in word-level tasks a text is a list of words.
        labels: label ids, or real numbers for STS-B; None for a test file; for word-level tasks a list per text.
        indices: the ``index`` column of a test file, or its row numbers; None for train and dev files.
        sha256: hexadecimal hash of the file's bytes, or of the texts and labels of a split.
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
        path: the file, or ``<dataset>/<configuration>/<split>``.
        task: the task of the file.
        test: the test set, which has no labels; the first column of GLUE's TSVs is the index for the submission.

    Raises:
        UsageError: a missing or empty file, or a line that does not match the task's columns and labels.
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
        if content.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh91AY&SY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise UsageError(f"{path}: is compressed; unpack it")
        numbered = task.per_token and isinstance(task.label_column, int)  # columns without names are CoNLL's
        own_rows = _conll_rows if numbered else _FORMATS.get(path.suffix.lower(), _conll_rows)
        if own_rows is _parquet_rows and task.labels:
            task = dataclasses.replace(task, numbers=_class_names(content, task.label_column))
        rows = own_rows(path, content) if task.named else _glue_rows(path, content, task, test)
    columns = test.texts if test else task.texts
    found: tuple[list[Any], ...] = tuple([] for _ in columns)
    labels: list[Any] = []
    locations: dict[int, str] = {}
    for location, row in rows:
        where = f"{path}, {location}"
        for names, values in zip(columns, found, strict=True):
            values.append(_text(where, row, names, task.per_token))
        if test is None:
            labels.append(_labels(where, row, task, found[0][-1]))
            continue
        index = len(locations) if task.named else _index(where, row[0])
        if locations.setdefault(index, location) != location:
            raise UsageError(f"{where}: index {index} was already on {locations[index]}")
    if not found[0]:
        raise UsageError(f"{path}: the file has no examples")
    digest = digest or hashlib.sha256(json.dumps([found, labels]).encode()).hexdigest()
    return Examples(path, found, None if test else labels, list(locations) if test else None, digest)


def _text(where: str, row: Any, columns: tuple[str | int, ...], per_token: bool) -> str | list[str]:
    """The text of a row, its columns joined by a space, or its words."""
    cells = [_cell(where, row, column) for column in columns]
    for column, cell in zip(columns, cells, strict=True):
        if not per_token and not isinstance(cell, str):
            raise UsageError(f"{where}: column {column!r} has {brief(cell)}, which is not text")
        if per_token and not (isinstance(cell, list) and cell and all(isinstance(word, str) for word in cell)):
            raise UsageError(f"{where}: column {column!r} has {brief(cell)}, which is not a list of words")
    return cells[0] if per_token else " ".join(cells)


def _labels(where: str, row: Any, task: Task, words: Any) -> int | float | list[int]:
    """The label of a row, or of each of its words."""
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
    """A label's id, or its value for a real-valued task; typed files may hold booleans or ids."""
    if task.labels:
        word = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        are_numbers = any(label.lstrip("-").isdecimal() for label in task.labels)
        numbers = task.numbers or (() if are_numbers else task.labels)
        if type(value) is int and 0 <= value < len(numbers):
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
    r"""Yield (line number from 1, line) of a UTF-8 file; drop a byte order mark and blank lines at the end.

    Only ``\n`` or ``\r\n`` ends a line: texts contain other characters at which ``str.splitlines`` would split.
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
    """Rows of GLUE's TSV: tab-separated, quotes literal, one example per line; a test file always has a header."""
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
    elif (index := first[1].split("\t")[0]).isdecimal():
        raise UsageError(f"{path}: line 1 must be a header, but its index column holds {index!r}")
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
    """Refuse a file whose first line is an example, which would be lost silently as a header."""
    if len(header) < needed:
        raise UsageError(_too_few(path, 1, len(header), needed))
    word = header[label_column]
    if word in task.labels or (not task.labels and word.replace(".", "", 1).isdigit()):
        raise UsageError(f"{path}: line 1 must be a header, but its label column holds {word!r}")


def _too_few(path: Path, number: int, found: int, needed: int) -> str:
    return f"{path}, line {number}: {found} tab-separated columns where at least {needed} are needed"


def _csv_rows(path: Path, content: bytes) -> Rows:
    """Rows by the header's names. Quotes delimit cells in CSV files and are text in TSV files, as in GLUE's."""
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    lines = (f"{line}\n" for _, line in _lines(path, content))
    is_tsv = path.suffix == ".tsv"
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
    reader = csv.DictReader(lines, **dialect)
    try:
        names = reader.fieldnames or ()
        if len(set(names)) < len(names):
            raise UsageError(f"{path}: the header has a name twice: {', '.join(names)}")
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
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # fails at half a character
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not valid JSON in one line ({error})") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: {brief(row)} is not an object with named values")
        yield f"line {number}", row


def _parquet_rows(path: Path, content: bytes) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(pa.BufferReader(content)).iter_batches()
        yield from _numbered(row for batch in batches for row in batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # of the file, of a page in it, of a text
        raise UsageError(f"{path}: not a whole parquet file ({first_line(error)})") from error


def _class_names(content: bytes, column: str | int) -> tuple[str, ...]:
    """What the numbers in a column, or in its lists, stand for where ``datasets`` wrote the file and noted it."""
    import pyarrow as pa
    from pyarrow import parquet

    features: dict[Any, Any] = {}
    with contextlib.suppress(pa.ArrowException):  # which reading the rows will name
        metadata = parquet.read_schema(pa.BufferReader(content)).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(column, {})
    feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
    return tuple(feature.get("names", ()))


def _conll_rows(path: Path, content: bytes) -> Rows:
    """Sentences separated by blank lines, with one word per line and columns separated by white space.

    ``-DOCSTART-`` lines are skipped, as are CoNLL-U's comments and lines that don't start with a whole number.
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
                raise UsageError(f"{path}, line {number}: {len(parts)} columns, but {len(cells[0])} in the line before")
            first = first if cells else number
            cells.append(parts)


_FORMATS = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def has_split(dataset: str, path: str) -> bool:
    """Whether a local dataset has a split; one on the Hub is assumed to."""
    return not Path(dataset).is_dir() or any(Path(dataset).glob(f"{path}*.parquet"))


def _dataset_rows(dataset: str, path: str) -> Rows:
    """The rows of ``<configuration>/<split>``, loaded and cached by ``datasets``."""
    import datasets

    try:
        rows = datasets.load_dataset(dataset, data_files=f"{path}*.parquet", split="train")
    except Exception as error:  # of the network, the Hub or the disk
        raise UsageError(f"--dataset {dataset}: {path} can't be read ({first_line(error)})") from error
    yield from _numbered(rows)


def _numbered(rows: Iterable[Any]) -> Rows:
    return ((f"row {number}", row) for number, row in enumerate(rows))
