"""Text files of any size, plain or compressed, read as blocks of whole lines.

Where a block ends depends on the text alone, so neither the number of processes nor compression changes a result. A
block is ``BLOCK_BYTES`` long and runs on to the end of its last line. A line that runs on for more than
``MAX_REST_BYTES`` is cut there, after a space if it has one: memory stays bounded whatever the text.
"""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bert_convolutions.errors import UsageError

BLOCK_BYTES = 4 << 20
MAX_REST_BYTES = 4 << 20
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A text file as it was when the build began: path, size in bytes, time of change in ns."""

    path: str
    size: int
    mtime_ns: int

    @property
    def is_compressed(self) -> bool:
        """Whether the file must be decompressed while it is read."""
        return Path(self.path).suffix in _OPENERS


@dataclass(frozen=True)
class Block:
    """Whole lines of a text: bytes ``start`` to ``end`` of the (decompressed) source.

    ``text`` is given for compressed sources only; the bytes of a plain file are read by whoever needs them.
    ``position`` counts the bytes of the file on disk that were read so far, for progress.
    """

    source: Source
    start: int
    end: int
    position: int
    text: bytes | None = None


def find_sources(paths: list[str]) -> list[Source]:
    """Return the text files that the paths mean, in order; folders give all their files (not hidden ones), sorted.

    Raises:
        UsageError: a file is missing or empty, or a folder holds no text.
    """
    sources: list[Source] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = [
                _source(file) for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)
            ]
            found = [source for source in inside if source.size]
        elif path.is_file():
            found = [_source(path)]
        else:
            raise UsageError(f"{name}: no such file or folder; give UTF-8 text, one sentence a line")
        if not any(source.size for source in found):
            raise UsageError(f"{name}: {'no text in this folder' if path.is_dir() else 'the file is empty'}")
        sources += found
    if not sources:
        raise UsageError("no text files given")
    return sources


def blocks(source: Source) -> Iterator[Block]:
    """Yield a source's blocks in order.

    Raises:
        UsageError: the file cannot be decompressed.
    """
    try:
        if source.is_compressed:
            yield from _compressed_blocks(source)
        else:
            yield from _plain_blocks(source)
    except (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError, _zstd_error()) as error:
        raise UsageError(f"{source.path}: cannot be decompressed ({error}); is the file whole?") from error


def read_text(block: Block) -> str:
    """Return the text of a block.

    Raises:
        UsageError: not UTF-8; names the file, the line and the byte.
    """
    data = block.text
    if data is None:
        with Path(block.source.path).open("rb") as file:
            file.seek(block.start)
            data = file.read(block.end - block.start)
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


def _plain_blocks(source: Source) -> Iterator[Block]:
    with Path(source.path).open("rb") as file:
        start = 0
        while start < source.size:
            end = min(start + BLOCK_BYTES, source.size)
            file.seek(end)
            end += _end_of_line(file.readline(MAX_REST_BYTES))
            yield Block(source, start, end, end)
            start = end


def _compressed_blocks(source: Source) -> Iterator[Block]:
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
    """Return how much of ``rest`` still belongs to the block: a whole line, or what a line too long is cut to."""
    if len(rest) < MAX_REST_BYTES or rest.endswith(b"\n"):
        return len(rest)
    space = rest.rfind(b" ")
    if space >= 0:
        return space + 1
    last = len(rest) - 1
    while last > 0 and rest[last] & 0xC0 == 0x80:  # inside a character: cut before it begins
        last -= 1
    return last


def _open_zstd(file: BinaryIO) -> io.BufferedReader:
    import zstandard

    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True), 1 << 20)


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


_OPENERS: dict[str, Callable[[BinaryIO], io.BufferedIOBase]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 (the file below it is closed)
    ".zst": _open_zstd,
}


def _line_number(source: Source, position: int) -> int:
    """Count the lines up to a byte of the text, from 1."""
    lines = 1
    for block in blocks(source):
        data = block.text
        if data is None:
            with Path(source.path).open("rb") as file:
                file.seek(block.start)
                data = file.read(block.end - block.start)
        lines += data.count(b"\n", 0, max(position - block.start, 0))
        if block.end > position:
            break
    return lines


def _source(path: Path) -> Source:
    status = path.stat()
    return Source(str(path), status.st_size, status.st_mtime_ns)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
