"""The work files of a build, named arrays in safetensors files that are read in parts, and copying rows of arrays."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from bert_convolutions.errors import UsageError
from bert_convolutions.files import whole_file

_CHUNK_VALUES = 1 << 20
"""Number of values that ``take_rows`` copies at a time, which bounds the memory of their indices."""


def write_arrays(path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write named arrays and JSON ``facts`` into one file."""
    with whole_file(path) as file:
        file.write(safetensors.numpy.save(arrays, {"facts": json.dumps(facts)}))


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Callable[..., np.ndarray]]:
    """Open a file of ``write_arrays``; yields ``read(name)`` and ``read(name, first, last)``, which excludes ``last``.

    Raises:
        UsageError: the file is damaged.
    """
    with _report_damage(path), safetensors.safe_open(path, "numpy") as file:

        def read(name: str, first: int | None = None, last: int | None = None) -> np.ndarray:
            part = file.get_slice(name)
            if first is None or not part.get_shape()[0]:  # safetensors can't slice an empty array
                return file.get_tensor(name)
            return part[first:last] if first != last else part[:0]  # nor take nothing from the end

        yield read


def read_facts(path: Path) -> Any:
    """The facts of a file of ``write_arrays``.

    Raises:
        UsageError: the file is damaged.
    """
    with _report_damage(path), safetensors.safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["facts"])


@contextlib.contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise UsageError(f"{path}: the work file is damaged or missing ({error}); run build-dataset again") from error


def take_rows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the rows of flat ``values`` that begin at ``starts`` and have ``lengths``."""
    ends = np.cumsum(lengths)
    copied = np.empty(int(ends[-1]) if ends.size else 0, dtype=values.dtype)
    row = begin = 0
    while row < ends.size:
        stop = max(int(np.searchsorted(ends, begin + _CHUNK_VALUES, side="right")), row + 1)
        rows, end = slice(row, stop), int(ends[stop - 1])
        shifts = starts[rows] - (ends[rows] - lengths[rows])
        copied[begin:end] = values[np.repeat(shifts, lengths[rows]) + np.arange(begin, end)]
        row, begin = stop, end
    return copied
