"""Text files of any size, plain or compressed, read as blocks of whole lines.

A line ends at a newline, a carriage return, or both, as where Python iterates over a text file, and nowhere else.

Where a block ends depends on the text alone, so neither the number of processes nor compression changes a result. A
block is ``BLOCK_BYTES`` long and runs on to the end of its last line. A line that runs on for more than
``MAX_REST_BYTES`` is cut there, after a space if it has one: memory stays bounded whatever the text.
"""

import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.errors import CommandError, UsageError, brief, first_line
from bert_convolutions.schemas import DatasetRecord, TextRecord

BLOCK_BYTES = 4 << 20
MAX_REST_BYTES = 4 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
Source = TextRecord | DatasetRecord


@dataclass(frozen=True)
class Block:
    """Whole lines of a text: bytes ``start`` to ``end`` of the (decompressed) source."""

    source: Source
    start: int
    end: int
    position: int
    """How many bytes of the file on disk, or of a data set's text, have been read so far."""
    text: bytes | None = None
    """Left out for a plain file, whose bytes are read by whoever needs them."""


def find_sources(paths: list[str]) -> list[TextRecord]:
    """Return the text files that the paths mean, in order; folders give all their files (not hidden ones), sorted.

    Raises:
        UsageError: a file is missing or empty, or a folder holds no text or can't be read.
    """
    sources: list[TextRecord] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found = [source for file in _files_in(path) if (source := _record(file)).size]
        elif path.is_file():
            found = [_record(path)]
        else:
            raise UsageError(f"{name}: no such file or folder; give UTF-8 text, one sentence a line")
        if not any(source.size for source in found):
            raise UsageError(f"{name}: {'no text in this folder' if path.is_dir() else 'the file is empty'}")
        sources += found
    if not sources:
        raise UsageError("no text files given")
    return sources


def find_dataset(options: BuildDatasetOptions) -> DatasetRecord | None:
    """Return what the options say of a data set, if they do, and its revision where it is on the hub.

    Raises:
        UsageError: it can't be had, or has no such column.
    """
    name = options.dataset
    if name is None:
        return None
    from huggingface_hub import HfApi

    try:
        revision = None if Path(name).exists() else HfApi().dataset_info(name).sha
    except Exception as error:  # of the network, of the name, or of what is said there
        raise UsageError(f"--dataset {name}: neither here nor on the hub ({first_line(error)})") from error
    record = DatasetRecord(
        path=name,
        config=options.dataset_config,
        split=options.dataset_split,
        text_column=options.text_column,
        revision=revision,
    )
    try:
        first = next(_rows(record, advice=""), None)
    except CommandError as error:
        raise UsageError(str(error)) from error
    if first is None or record.text_column not in first:
        found = "no rows" if first is None else f"no column {record.text_column!r}, but {', '.join(first)}"
        raise UsageError(f"--dataset {name}: {found}; see --dataset_split and --text_column")
    return record


def _rows(record: DatasetRecord, advice: str = "; run again to go on from here") -> Iterator[dict[str, Any]]:
    """The rows of a data set, a few at a time in memory.

    Raises:
        CommandError: it can't be read on; what has been built of it stays.
    """
    import datasets

    builder = _BUILDERS.get(Path(record.path.removesuffix(".gz")).suffix) if Path(record.path).is_file() else None
    where = {"path": builder, "data_files": record.path} if builder else {"path": record.path}
    try:
        yield from datasets.load_dataset(
            **where, name=record.config, split=record.split, revision=record.revision, streaming=True
        )
    except Exception as error:  # of the network, of the hub, of a file
        raise CommandError(f"--dataset {record.path}: can't be read ({first_line(error)}){advice}") from error


def _row_texts(record: DatasetRecord) -> Iterator[bytes]:
    """Each row with text is a document: its lines that are not blank, and a blank one after them."""
    for number, row in enumerate(_rows(record)):
        text = row[record.text_column]
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{record.path}, row {number}: {record.text_column} has {brief(text)}, which is not text")
        lines = [line for line in split_lines(text or "") if line and not line.isspace()]
        if lines:
            yield "\n".join([*lines, "", ""]).encode("utf-8", "replace")


_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
"""Of ``datasets``, for a file of this kind."""


def refuse_changed(sources: list[TextRecord]) -> None:
    """Refuse texts that have changed since ``find_sources`` saw them, now that they have been read.

    Raises:
        UsageError: names the first of them.
    """
    for source in sources:
        found = _record(Path(source.path)) if Path(source.path).is_file() else None
        if found != source:
            now = f"it has {found.size:,} bytes, and had {source.size:,}" if found else "it is gone"
            raise UsageError(f"{source.path}: has changed while it was read ({now}); run again when it is whole")


def split_lines(text: str) -> list[str]:
    """Return the lines of a text without their ends."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def blocks(source: Source) -> Iterator[Block]:
    """Yield a source's blocks in order.

    Raises:
        UsageError: the file cannot be decompressed.
    """
    try:
        if isinstance(source, DatasetRecord):
            yield from _stream_blocks(source, io.BufferedReader(_Chunks(_row_texts(source)), 1 << 20))
        elif opener := _OPENERS.get(Path(source.path).suffix):
            with Path(source.path).open("rb") as file:
                yield from _stream_blocks(source, opener(file), file.tell)
        else:
            yield from _plain_blocks(source)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; gzip's and Arrow's have no number
            raise
        raise UsageError(f"{source.path}: cannot be decompressed ({error}); is the file whole?") from error


def read_text(block: Block) -> str:
    """Return the text of a block.

    Raises:
        UsageError: not UTF-8, names the line and the byte; or the file has become shorter.
    """
    data = _bytes_of(block)
    if len(data) < block.end - block.start:
        refuse_changed([block.source] if isinstance(block.source, TextRecord) else [])
    offset = block.start
    if block.start == 0 and data.startswith(_UTF8_MARK):
        data, offset = data[len(_UTF8_MARK) :], len(_UTF8_MARK)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise UsageError(
            f"{block.source.path}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset {position}, "
            f"line {_line_number(block.source, position)}; convert the file, for example with iconv"
        ) from error


def text_lines(sources: list[TextRecord], doing: str | None = None) -> Iterator[str]:
    """Yield the lines of all files that are not blank, with progress under the name of what is done, if it has one."""
    total = sum(source.size for source in sources)
    with tqdm(total=total, desc=doing, unit="B", unit_scale=True, mininterval=1.0, disable=doing is None) as bar:
        for source in sources:
            before = 0
            for block in blocks(source):
                for line in split_lines(read_text(block)):
                    if line and not line.isspace():
                        yield line
                bar.update(block.position - before)
                before = block.position


def _plain_blocks(source: TextRecord) -> Iterator[Block]:
    with Path(source.path).open("rb") as file:
        start = 0
        while start < source.size:
            end = min(start + BLOCK_BYTES, source.size)
            file.seek(end)
            end += _end_of_line(file.readline(MAX_REST_BYTES))
            yield Block(source, start, end, end)
            start = end


def _stream_blocks(
    source: Source, stream: io.BufferedIOBase, position: Callable[[], int] | None = None
) -> Iterator[Block]:
    start, carried = 0, b""
    while data := carried + stream.read(BLOCK_BYTES - len(carried)):
        rest = stream.readline(MAX_REST_BYTES) if len(data) == BLOCK_BYTES else b""
        length = _end_of_line(rest)
        data, carried = data + rest[:length], rest[length:]
        yield Block(source, start, start + len(data), position() if position else start + len(data), data)
        start += len(data)


def _end_of_line(rest: bytes) -> int:
    """How much of ``rest``, which goes up to a newline or ``MAX_REST_BYTES``, still belongs to the last line."""
    carriage_return = rest.find(b"\r")
    if 0 <= carriage_return < MAX_REST_BYTES - 1:
        return carriage_return + (2 if rest.startswith(b"\n", carriage_return + 1) else 1)
    if len(rest) < MAX_REST_BYTES or rest.endswith(b"\n"):
        return len(rest)
    rest = rest.removesuffix(b"\r")  # a newline may follow it, and a line's two ends stay together
    space = rest.rfind(b" ")
    if space >= 0:
        return space + 1
    last = len(rest) - 1
    while last > 0 and rest[last] & 0xC0 == 0x80:  # inside a character: cut before it begins
        last -= 1
    return last


class _Chunks(io.RawIOBase):
    """A stream of pieces of bytes, none of them empty."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._chunks, b"")
        length = min(len(buffer), len(self._rest))
        buffer[:length], self._rest = self._rest[:length], self._rest[length:]
        return length


def _open_zstd(file: BinaryIO) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), 1 << 20)


_OPENERS: dict[str, Callable[[BinaryIO], io.BufferedIOBase]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 (the file below it is closed)
    ".zst": _open_zstd,
}


def _line_number(source: Source, position: int) -> int:
    """Count the lines up to a byte of the text, from 1."""
    lines = 1
    for block in blocks(source):
        data = _bytes_of(block)[: max(position - block.start, 0)]
        lines += data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
        if block.end > position:
            break
    return lines


def _bytes_of(block: Block) -> bytes:
    if block.text is not None:
        return block.text
    with Path(block.source.path).open("rb") as file:
        file.seek(block.start)
        return file.read(block.end - block.start)


def _record(path: Path) -> TextRecord:
    status = path.stat()
    return TextRecord(path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns)


def _files_in(folder: Path) -> list[Path]:
    """The files under a folder, sorted, but for hidden ones and those in hidden folders."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: can't be read ({error.strerror}); make it readable or move it elsewhere")

    found: list[Path] = []
    for inside, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [file for name in names if not name.startswith(".") and (file := Path(inside, name)).is_file()]
    return sorted(found)
