"""Reads text files of any size, plain or compressed, in blocks of whole lines.

A line ends only at a newline, a carriage return, or both, as in Python's text files.

A block has ``BLOCK_BYTES`` and the rest of its last line. To bound memory, that rest is cut after ``MAX_REST_BYTES``,
at a space if there is one. Block boundaries depend only on the text, so neither the number of processes nor
compression changes a result.
"""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.errors import CommandError, UsageError, brief, first_line
from bert_convolutions.files import refuse_pattern
from bert_convolutions.schemas import DatasetRecord, TextRecord
from bert_convolutions.terminal import make_bar, say

BLOCK_BYTES = 4 << 20
MAX_REST_BYTES = 4 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
Source = TextRecord | DatasetRecord


@dataclass(frozen=True)
class Block:
    """Whole lines of a text: the bytes ``start`` to ``end`` of the decompressed source."""

    source: Source
    start: int
    end: int
    position: int
    """Number of bytes read so far from the file on disk, or of a dataset's text."""
    text: bytes | None = None
    """None for a plain file, which is read when the text is needed."""


def find_sources(paths: list[str]) -> list[TextRecord]:
    """The text files at ``paths``, in order; a folder stands for all files in it that are not hidden, sorted.

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
            raise UsageError(f"{name}: no such file or folder; give UTF-8 text, one sentence per line")
        if not any(source.size for source in found):
            raise UsageError(f"{name}: {'no text in this folder' if path.is_dir() else 'the file is empty'}")
        sources += found
    if not sources:
        raise UsageError("no text files given")
    return sources


def find_dataset(options: BuildDatasetOptions) -> DatasetRecord | None:
    """The dataset that the options name, if any, with its revision if it is on the Hub.

    Raises:
        UsageError: it can't be opened, or lacks the text column.
    """
    name = options.dataset
    if name is None:
        return None
    from huggingface_hub import HfApi

    refuse_pattern(name, "--dataset")
    try:
        revision = None if Path(name).exists() else HfApi().dataset_info(name).sha
    except Exception as error:  # network errors, invalid names and others
        raise UsageError(f"--dataset {name}: neither here nor on the Hub ({first_line(error)})") from error
    kinds = {file.suffix for file in _files_in(Path(name)) if file.suffix in _BUILDERS} if Path(name).is_dir() else {}
    if len({_BUILDERS[kind] for kind in kinds}) > 1:
        say(f"{name} holds {', '.join(sorted(kinds))} files, and only one of these kinds is read")
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


def _rows(record: DatasetRecord, advice: str = "; run again to resume") -> Iterator[dict[str, Any]]:
    """The rows of a dataset, streamed.

    Raises:
        CommandError: it can't be read; what has been built so far is kept.
    """
    import datasets

    builder = None
    if Path(record.path).is_file():  # its last ending may be that of a compressed file
        builder = next((_BUILDERS[end] for end in Path(record.path.lower()).suffixes[::-1] if end in _BUILDERS), None)
        if builder is None:
            raise UsageError(f"--dataset {record.path}: its name ends in none of {', '.join(_BUILDERS)}")
    where = {"path": builder, "data_files": record.path} if builder else {"path": record.path}
    try:
        yield from datasets.load_dataset(
            **where, name=record.config, split=record.split, revision=record.revision, streaming=True
        )
    except Exception as error:  # of the network, the Hub or a file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CommandError(f"--dataset {record.path}: can't be read ({reason}){advice}") from error


def _row_texts(record: DatasetRecord) -> Iterator[bytes]:
    """The document of each row that has text: its non-blank lines, followed by a blank one."""
    for number, row in enumerate(_rows(record)):
        text = row[record.text_column]
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{record.path}, row {number}: {record.text_column} has {brief(text)}, which is not text")
        lines = [line for line in split_lines(text or "") if line and not line.isspace()]
        if lines:
            yield "\n".join([*lines, "", ""]).encode("utf-8", "replace")


_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
"""Builder of ``datasets`` by file name suffix."""


def refuse_changed(sources: list[TextRecord]) -> None:
    """Refuse texts that have changed since ``find_sources``, after they have been read.

    Raises:
        UsageError: names the first changed file.
    """
    for source in sources:
        found = _record(Path(source.path)) if Path(source.path).is_file() else None
        if found != source:
            now = f"it has {found.size:,} bytes, and had {source.size:,}" if found else "it is gone"
            raise UsageError(f"{source.path}: has changed while it was read ({now}); run again when it is complete")


def split_lines(text: str) -> list[str]:
    """The lines of a text without their line ends."""
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
        if isinstance(error, OSError) and error.errno:  # a disk error; those of gzip and Arrow have no errno
            raise
        raise UsageError(f"{source.path}: cannot be decompressed ({error}); is the file complete?") from error


def read_text(block: Block) -> str:
    """The text of a block.

    Raises:
        UsageError: it is not UTF-8 (names line and byte), or the file has become shorter.
    """
    data = _read_bytes(block)
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
    """Yield the non-blank lines of all files, with a progress bar labelled ``doing`` if that is given."""
    total = sum(source.size for source in sources)
    with make_bar(doing, total, "B", shown=doing is not None) as bar:
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
    """The length of the part of ``rest``, read up to a newline or ``MAX_REST_BYTES``, that belongs to the last line."""
    carriage_return = rest.find(b"\r")
    if 0 <= carriage_return < MAX_REST_BYTES - 1:
        return carriage_return + (2 if rest.startswith(b"\n", carriage_return + 1) else 1)
    if len(rest) < MAX_REST_BYTES or rest.endswith(b"\n"):
        return len(rest)
    rest = rest.removesuffix(b"\r")  # a newline may follow, and must not be separated from it
    space = rest.rfind(b" ")
    if space >= 0:
        return space + 1
    last = len(rest) - 1
    while last > 0 and rest[last] & 0xC0 == 0x80:  # inside a character: cut before it
        last -= 1
    return last


class _Chunks(io.RawIOBase):
    """A stream over non-empty chunks of bytes."""

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
    ".bz2": lambda file: bz2.BZ2File(file),
    ".xz": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 (the underlying file is closed)
    ".zst": _open_zstd,
}


def _line_number(source: Source, position: int) -> int:
    """The line number, from 1, of a byte position of the text."""
    lines = 1
    for block in blocks(source):
        data = _read_bytes(block)[: max(position - block.start, 0)]
        lines += data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
        if block.end > position:
            break
    return lines


def _read_bytes(block: Block) -> bytes:
    if block.text is not None:
        return block.text
    with Path(block.source.path).open("rb") as file:
        file.seek(block.start)
        return file.read(block.end - block.start)


def _record(path: Path) -> TextRecord:
    status = path.stat()
    return TextRecord(path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns)


def _files_in(folder: Path) -> list[Path]:
    """The files under a folder, sorted, without hidden ones and those in hidden folders."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: can't be read ({error.strerror}); make it readable or move it elsewhere")

    found: list[Path] = []
    for inside, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [file for name in names if not name.startswith(".") and (file := Path(inside, name)).is_file()]
    return sorted(found)
