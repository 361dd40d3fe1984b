"""How kernels are launched: how many queries and keys a program works on, and what is compiled once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Of one kernel.

    Attributes:
        queries, keys: I and J, powers of two of at least 16.
        warps: of 32 threads, that share a tile.
        stages: loads in flight.
        registers: that a thread may have; fewer let more programs run on a multiprocessor at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int = 255


# By bytes of an element and size of a head, filled up to 64 or 128: forward, backward by query and by key. Those of 2
# bytes and 64 are the fastest of some twenty on an H200, of packed rows of 128 with dropout and rows of 512 without:
# small tiles and few registers, for three or four programs on a multiprocessor. The others fit; none has been timed.
TILES = {
    (2, 64): (Tile(64, 32, 4, 3, 128), Tile(64, 16, 4, 3, 128), Tile(16, 64, 4, 3, 168)),
    (2, 128): (Tile(64, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 64, 8, 2)),
    (4, 64): (Tile(32, 16, 4, 2), Tile(32, 16, 4, 2), Tile(16, 16, 4, 2)),
    (4, 128): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
}


def padded_head_size(head_size: int) -> int:
    """64 or 128: up to which kernels fill a head with zeros."""
    return 64 if head_size <= 64 else 128


def choose_tiles(dtype: torch.dtype, head_size: int) -> tuple[Tile, Tile, Tile]:
    """Tiles of the three kernels."""
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
    """``kernel[grid](*tensors, *numbers, **constants())``, for a tenth of Triton's 60 microseconds on the way there.

    Triton makes a string of all arguments to find what it has compiled for them. Here that is found by what they differ
    in. The first launch of each is Triton's, and so are all of an interpreted kernel.

    Args:
        kernel: a function of Triton's.
        grid: programs.
        tensors, numbers: its arguments, in order.
        variant: what ``constants`` depend on, and numbers that the kernel is specialised to.
        constants: makes the rest of its arguments and Triton's options, by name.
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
