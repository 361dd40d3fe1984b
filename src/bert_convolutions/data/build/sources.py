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

from bert_convolutions.errors import UsageError
from bert_convolutions.schemas import TextRecord

BLOCK_BYTES = 4 << 20
MAX_REST_BYTES = 4 << 20
_ZSTD_BYTES = 1 << 12  # compressed, at a time: even what is a thousand times as large fits memory then
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """Whole lines of a text: bytes ``start`` to ``end`` of the (decompressed) source.

    ``text`` is given for compressed sources only; the bytes of a plain file are read by whoever needs them.
    ``position`` counts the bytes of the file on disk that were read so far, for progress.
    """

    source: TextRecord
    start: int
    end: int
    position: int
    text: bytes | None = None


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


def blocks(source: TextRecord) -> Iterator[Block]:
    """Yield a source's blocks in order.

    Raises:
        UsageError: the file cannot be decompressed.
    """
    try:
        if Path(source.path).suffix in _OPENERS:
            yield from _compressed_blocks(source)
        else:
            yield from _plain_blocks(source)
    except (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError, _zstd_error()) as error:
        raise UsageError(f"{source.path}: cannot be decompressed ({error}); is the file whole?") from error


def read_text(block: Block) -> str:
    """Return the text of a block.

    Raises:
        UsageError: not UTF-8, names the line and the byte; or the file has become shorter.
    """
    data = _bytes_of(block)
    if len(data) < block.end - block.start:
        refuse_changed([block.source])
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


def _plain_blocks(source: TextRecord) -> Iterator[Block]:
    with Path(source.path).open("rb") as file:
        start = 0
        while start < source.size:
            end = min(start + BLOCK_BYTES, source.size)
            file.seek(end)
            end += _end_of_line(file.readline(MAX_REST_BYTES))
            yield Block(source, start, end, end)
            start = end


def _compressed_blocks(source: TextRecord) -> Iterator[Block]:
    with Path(source.path).open("rb") as file:
        stream = _OPENERS[Path(source.path).suffix](file)
        start, carried = 0, b""
        while data := carried + stream.read(BLOCK_BYTES - len(carried)):
            rest = stream.readline(MAX_REST_BYTES) if len(data) == BLOCK_BYTES else b""
            length = _end_of_line(rest)
            data, carried = data + rest[:length], rest[length:]
            yield Block(source, start, start + len(data), file.tell(), data)
            start += len(data)


def _end_of_line(rest: bytes) -> int:
    """Return how much of ``rest`` still belongs to the block: a whole line, or what a line too long is cut to.

    Args:
        rest: what follows, up to a newline or ``MAX_REST_BYTES``.
    """
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


class _ZstdStream(io.RawIOBase):
    """The frames of a Zstandard file one after the other; the package's own reader takes a cut-off one for whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._compressed, self._text = file, b"", b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._text:
            self._compressed = self._compressed or self._file.read(_ZSTD_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._text = self._frame.decompress(self._compressed)
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        length = min(len(buffer), len(self._text))
        buffer[:length], self._text = self._text[:length], self._text[length:]
        return length


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


_OPENERS: dict[str, Callable[[BinaryIO], io.BufferedIOBase]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 (the file below it is closed)
    ".zst": lambda file: io.BufferedReader(_ZstdStream(file), 1 << 20),
}


def _line_number(source: TextRecord, position: int) -> int:
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
