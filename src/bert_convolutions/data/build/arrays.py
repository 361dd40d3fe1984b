"""The work files of a build: named arrays in one safetensors file, read in parts; and rows of arrays moved about."""

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

_AT_A_TIME = 1 << 20
"""Values that ``take_rows`` moves at a time, which bounds the memory of their indices."""


def write_arrays(path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write named arrays, and some JSON facts, into one file."""
    with whole_file(path) as file:
        file.write(safetensors.numpy.save(arrays, {"facts": json.dumps(facts)}))


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Callable[..., np.ndarray]]:
    """Open a file that ``write_arrays`` made; gives ``read(name)`` and ``read(name, first, last)``, last excluded.

    Raises:
        UsageError: it is damaged.
    """
    with _named_if_damaged(path), safetensors.safe_open(path, "numpy") as file:

        def read(name: str, first: int | None = None, last: int | None = None) -> np.ndarray:
            part = file.get_slice(name)
            is_whole = first is None or not part.get_shape()[0]  # safetensors can't slice an empty array
            return file.get_tensor(name) if is_whole else part[first:last]

        yield read


def read_facts(path: Path) -> Any:
    """Return the facts of a file that ``write_arrays`` made.

    Raises:
        UsageError: it is damaged.
    """
    with _named_if_damaged(path), safetensors.safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["facts"])


@contextlib.contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise UsageError(f"{path}: the work file is damaged or gone ({error}); run build-dataset again") from error


def take_rows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Copy the rows that begin at ``starts`` in flat ``values`` and have ``lengths``, one after another."""
    ends = np.cumsum(lengths)
    taken = np.empty(int(ends[-1]) if ends.size else 0, dtype=values.dtype)
    row = begin = 0
    while row < ends.size:
        stop = max(int(np.searchsorted(ends, begin + _AT_A_TIME, side="right")), row + 1)
        rows, end = slice(row, stop), int(ends[stop - 1])
        shifts = starts[rows] - (ends[rows] - lengths[rows])
        taken[begin:end] = values[np.repeat(shifts, lengths[rows]) + np.arange(begin, end)]
        row, begin = stop, end
    return taken
