"""How many queries and keys a program works on at a time."""

from dataclasses import dataclass

import torch


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
