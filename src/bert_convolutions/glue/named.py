"""Read the examples of tasks with named columns: CSV, TSV, JSONL, parquet, CoNLL's columns, or what ``datasets`` loads.

Imports neither torch nor transformers.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_convolutions.errors import UsageError, brief
from bert_convolutions.glue.reading import Examples, content_of, label_of, lines_of, refuse_empty, sha256_of
from bert_convolutions.glue.tasks import Task

Row = Any
"""Of a file with names a mapping; of CoNLL's a list of columns, each a list of a sentence's cells."""
_MOST_CHARACTERS = 1 << 30
"""Of a cell of a CSV file; Python's own limit is 131,072."""


def read_named(path: Path, task: Task, texts: tuple[tuple[str | int, ...], ...], *, labelled: bool) -> Examples:
    """Read a file, or a split of a data set, by the columns that a task names.

    Args:
        path: of the file; of a split ``<data set>/<configuration>/<split>``.
        task: what its labels are.
        texts: the columns of each text.
        labelled: whether labels are read; without them the examples get their numbers from 0 as indices.

    Raises:
        UsageError: there is no such file, or a row doesn't fit the task; names the line or row, and the column.
    """
    if task.dataset is None:
        content = content_of(path)
        rows, digest = _FORMATS.get(path.suffix, _conll_rows)(path, content), sha256_of(content)
    else:
        rows, digest = _dataset_rows(task.dataset, str(path.relative_to(Path(task.dataset)))), ""
    found: tuple[list[Any], ...] = tuple([] for _ in texts)
    labels: list[Any] = []
    for where, row in rows:
        where = f"{path}, {where}"
        for columns, values in zip(texts, found, strict=True):
            cells = [_cell(where, row, column) for column in columns]
            if task.per_token:
                values.append(_words(where, columns[0], cells[0]))
            else:
                values.append(" ".join(_text(where, *pair) for pair in zip(columns, cells, strict=True)))
        if not labelled:
            continue
        value = _cell(where, row, task.label_column)
        if not task.per_token:
            labels.append(label_of(where, value, task))
            continue
        if not isinstance(value, list) or len(value) != len(found[0][-1]):
            raise UsageError(f"{where}: column {task.label_column!r} has not one label for each of the words")
        labels.append([int(label_of(where, word, task)) for word in value])
    refuse_empty(path, len(found[0]))
    digest = digest or hashlib.sha256(json.dumps([found, labels]).encode()).hexdigest()
    return Examples(path, found, labels if labelled else None, None if labelled else [*range(len(found[0]))], digest)


def _cell(where: str, row: Row, column: str | int) -> Any:
    if isinstance(row, Mapping):
        if column in row:
            return row[column]
        raise UsageError(f"{where}: there is no column {column!r}; there are {', '.join(map(str, row))}")
    if isinstance(column, int) and column < len(row):
        return row[column]
    raise UsageError(f"{where}: there is no column {column!r}; CoNLL's are numbers, here from 0 to {len(row) - 1}")


def _text(where: str, column: str | int, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: column {column!r} has {brief(value)}, which is not text")
    return value


def _words(where: str, column: str | int, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise UsageError(f"{where}: column {column!r} has {brief(value)}, which is not a list of words")
    return value


def _csv_rows(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    """Cells by the header's names. In a CSV file quotes are quotes; in a TSV file they are text, as in GLUE's."""
    csv.field_size_limit(_MOST_CHARACTERS)
    lines = (f"{line}\n" for _, line in lines_of(path, content))
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


def _json_rows(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    for number, line in lines_of(path, content):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: {brief(row)} is not an object with named values")
        if row:
            yield f"line {number}", row


def _parquet_rows(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(pa.BufferReader(content)).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows))
    except pa.ArrowException as error:
        raise UsageError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error


def _conll_rows(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    """Sentences between blank lines, a word a line, its columns parted by white space.

    ``-DOCSTART-`` is no word; in CoNLL-U neither are comments, nor what has no whole number in front.
    """
    first = 0
    cells: list[list[str]] = []
    for number, line in (*lines_of(path, content), (0, "")):
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


_FORMATS = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}


def has_split(dataset: str, path: str) -> bool:
    """Whether a local data set has a split; one of the hub is taken to."""
    return not Path(dataset).is_dir() or any(Path(dataset).glob(f"{path}*.parquet"))


def _dataset_rows(dataset: str, path: str) -> Iterator[tuple[str, Row]]:
    """The rows of ``<configuration>/<split>``, by ``datasets``, which keeps what it has fetched."""
    import datasets

    try:
        rows = datasets.load_dataset(dataset, data_files=f"{path}*.parquet", split="train")
    except Exception as error:  # of the network, of the hub, of the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--dataset {dataset}: {path} can't be read ({reason})") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows))
