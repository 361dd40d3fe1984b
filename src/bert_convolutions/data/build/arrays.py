"""Named arrays in one file, read in parts, and rows of different lengths copied."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bert_convolutions.files import whole_file

_ALIGNMENT = 64


def write_arrays(path: Path, arrays: dict[str, np.ndarray], **facts: Any) -> None:
    """Write named one-dimensional arrays, and some JSON facts, into one file (see ``ArrayFile``)."""
    header: dict[str, Any] = {"facts": facts, "arrays": {}}
    position = 0
    for name, array in arrays.items():
        header["arrays"][name] = [array.dtype.str, array.size, position]
        position += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(len(encoded) + 1) % _ALIGNMENT) + b"\n"
    with whole_file(path) as file:
        file.write(encoded)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
            file.write(b"\0" * (-array.nbytes % _ALIGNMENT))


class ArrayFile:
    """A file that ``write_arrays`` made, read in parts; a context manager.

    It is read and not memory-mapped: the pages of many mapped files would count as memory of the process.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        header = json.loads(self._file.readline())
        self.facts: dict[str, Any] = header["facts"]
        self._arrays: dict[str, tuple[str, int, int]] = header["arrays"]
        self._start = self._file.tell()

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the elements ``first`` to ``last`` (exclusive; None: the end) of an array."""
        dtype, size, position = self._arrays[name]
        self._file.seek(self._start + position + first * np.dtype(dtype).itemsize)
        return np.fromfile(self._file, dtype, (size if last is None else last) - first)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a file that ``write_arrays`` made."""
    with ArrayFile(path) as file:
        return file.facts


def take_rows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, *, chunk: int = 1 << 20) -> np.ndarray:
    """Copy rows of different lengths, one after another.

    Args:
        values: flat array with the rows in it.
        starts: where each row begins.
        lengths: how long it is.
        chunk: values moved at a time, which bounds the memory of their indices.
    """
    ends = np.cumsum(lengths)
    taken = np.empty(int(ends[-1]) if ends.size else 0, dtype=values.dtype)
    row = begin = 0
    while row < ends.size:
        stop = max(int(np.searchsorted(ends, begin + chunk, side="right")), row + 1)
        rows, end = slice(row, stop), int(ends[stop - 1])
        shifts = starts[rows] - (ends[rows] - lengths[rows])
        taken[begin:end] = values[np.repeat(shifts, lengths[rows]) + np.arange(begin, end)]
        row, begin = stop, end
    return taken
