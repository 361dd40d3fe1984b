"""The original's *iterable* file: one example per line, token ids separated by single spaces.

An index of the lines is built once, in a pass that also checks every id, so that training never fails on a bad line
after hours. A line ends at a newline, a carriage return, or both.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from bert_convolutions.data.store import ExampleStore, WatchedFile, change_stamp
from bert_convolutions.errors import UsageError
from bert_convolutions.files import whole_file

_CHUNK_BYTES = 4 << 20
_LINE_BYTES, _DIGEST_BYTES = 16, 32
_ALLOWED = b"0123456789 \r\n"
_NEWLINE, _RETURN, _SPACE = b"\n\r "
_MAX_DIGITS = 9


class IdsStore(ExampleStore):
    """Examples of an ids file, one per non-blank line.

    The index is kept in ``cache_dir`` and rebuilt when the file's size or modification time changes.

    Raises:
        UsageError: names the file and line of something that is not an id below ``vocabulary_size``.
    """

    def __init__(self, path: str | Path, *, vocabulary_size: int, cache_dir: str | Path) -> None:
        self._path = Path(path)
        status = change_stamp(self._path)
        _, size, modified, _ = status
        if not size:
            raise UsageError(f"{path}: the file is empty")
        identity = f"{self._path.resolve()}|{size}|{modified}|{vocabulary_size}|2"
        index = Path(cache_dir) / f"lines-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.lines"
        if not index.exists():
            index.parent.mkdir(parents=True, exist_ok=True)
            write_line_index(self._path, index, vocabulary_size)
        self._lines = WatchedFile(index, None, change_stamp(index))
        lines_size = index.stat().st_size - _DIGEST_BYTES
        self._num_lines = lines_size // _LINE_BYTES
        self.fingerprint = self._lines.read(lines_size, _DIGEST_BYTES).hex()
        self._text = WatchedFile(self._path, self.fingerprint, status)
        self.description = f"{path} ({len(self):,} examples)"

    def __len__(self) -> int:
        return self._num_lines

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        start, end = np.frombuffer(self._lines.read(_LINE_BYTES * index, _LINE_BYTES), np.int64).tolist()
        return np.array(self._text.read(start, end - start).split(), dtype=np.int64)


def write_line_index(path: Path, index_path: Path, vocabulary_size: int) -> None:
    """Check an ids file and write the start and end of its non-blank lines, raw int64 (lines, 2).

    The file's SHA-256 follows, in 32 bytes. Memory is bounded by the longest line.

    Raises:
        UsageError: names the file and line of the first error.
    """
    position = line_number = num_lines = 0
    carried, digest = b"", hashlib.sha256()
    with path.open("rb") as file, whole_file(index_path) as index:
        while data := file.read(_CHUNK_BYTES):
            digest.update(data)
            data = carried + data
            # A carriage return at the very end may be followed by its newline.
            cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
            if not cut and len(data) > 16 * _CHUNK_BYTES:
                raise UsageError(f"{path}, line {line_number + 1}: longer than 64 MiB; is it a file of token ids?")
            carried = data[cut:]
            lines, ends = _check_lines(path, data[:cut], position, line_number, vocabulary_size)
            index.write(lines.tobytes())
            num_lines += len(lines)
            line_number += ends
            position += cut
        lines, _ = _check_lines(path, carried + b"\n", position, line_number, vocabulary_size)
        index.write(lines.tobytes() + digest.digest())
        if not num_lines + len(lines):
            raise UsageError(f"{path}: no example in the file")


def _check_lines(
    path: Path, data: bytes, position: int, line_number: int, vocabulary_size: int
) -> tuple[np.ndarray, int]:
    """Check whole lines of the file; return the start and end of the non-blank ones and the number of all lines.

    The starts and ends are int64 (lines, 2), counted from the beginning of the file.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    is_newline = raw == _NEWLINE
    ends = np.flatnonzero(is_newline | ((raw == _RETURN) & ~np.append(is_newline[1:], False)))
    edges = np.flatnonzero(np.diff(raw > _SPACE, prepend=False, append=False))  # where words begin and end
    has_others = data.translate(None, _ALLOWED) or (edges[1::2] - edges[::2]).max(initial=0) > _MAX_DIGITS
    if has_others or np.fromstring(data, np.int64, sep=" ").max(initial=0) >= vocabulary_size:
        for word in re.finditer(rb"[^ \r\n]+", data):
            if not word[0].isdigit() or len(word[0]) > _MAX_DIGITS or int(word[0]) >= vocabulary_size:
                raise UsageError(
                    f"{path}, line {line_number + int(np.searchsorted(ends, word.start())) + 1}: "
                    f"{word[0][:40].decode('utf-8', 'replace')!r} is not a token id between 0 and "
                    f"{vocabulary_size - 1}; give one example per line, ids separated by single spaces"
                )
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: ends.size]
    is_filled = np.diff(np.searchsorted(edges[::2], np.append(begins, len(data)))) > 0
    return np.stack([begins, ends], axis=1)[is_filled] + position, ends.size
