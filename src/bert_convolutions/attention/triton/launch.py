"""Kernel launches: how many queries and keys a program works on, and the cache of compiled kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Tile size and launch settings of one kernel.

    Attributes:
        queries, keys: I and J, powers of two of at least 16.
        warps: warps of 32 threads per tile.
        stages: loads in flight.
        registers: most registers per thread; with fewer, more programs run on a multiprocessor at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int = 255


# By bytes per element and padded head size: tiles of forward, backward by query and backward by key. Those for (2, 64)
# are the fastest of some twenty on an H200, for packed rows of 128 with dropout and rows of 512 without: small tiles,
# few registers, so that three or four programs fit on a multiprocessor. The others fit, but have not been timed.
TILES = {
    (2, 64): (Tile(64, 32, 4, 3, 128), Tile(64, 16, 4, 3, 128), Tile(16, 64, 4, 3, 168)),
    (2, 128): (Tile(64, 32, 8, 2), Tile(16, 32, 4, 2), Tile(32, 32, 8, 2)),
    (4, 64): (Tile(32, 16, 4, 2), Tile(32, 16, 4, 2), Tile(16, 16, 4, 2)),
    (4, 128): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
}


def padded_head_size(head_size: int) -> int:
    """64 or 128, to which kernels pad heads with zeros."""
    return 64 if head_size <= 64 else 128


def choose_tiles(dtype: torch.dtype, head_size: int) -> tuple[Tile, Tile, Tile]:
    """The tiles of the three kernels, in the order of ``TILES``."""
    return TILES[dtype.itemsize, padded_head_size(head_size)]


_COMPILED: dict[tuple, tuple[Any, list]] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[float, ...],
    variant: tuple,
    constants: Callable[[], dict[str, Any]],
) -> None:
    """Run ``kernel[grid](*tensors, *numbers, **constants())`` in a tenth of the 60 microseconds that Triton adds.

    Triton builds a string from all arguments to look up the compiled kernel. Here the key holds only what distinguishes
    variants. The first launch of each variant goes through Triton, as do all launches of an interpreted kernel.

    Args:
        kernel: a function compiled by Triton.
        grid: number of programs in each dimension.
        tensors, numbers: the kernel's first arguments, in order.
        variant: everything that ``constants`` depends on, and the numbers that the kernel is specialised to.
        constants: returns the remaining arguments and Triton's options, by name.
    """
    key = id(kernel), variant, tensors[0].device, *((each.dtype, each.data_ptr() % 16) for each in tensors)
    compiled, values = _COMPILED.get(key, (None, []))
    if compiled is not None:
        compiled[(*grid, 1)](*tensors, *numbers, *values)
        return
    named = constants()
    compiled = kernel[grid](*tensors, *numbers, **named)
    if compiled is not None:
        _COMPILED[key] = compiled, [named[name] for name in kernel.arg_names if name in named]
