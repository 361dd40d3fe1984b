"""How many queries and keys a program works on at a time."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Of one kernel.

    Attributes:
        queries, keys: I and J, powers of two of at least 16.
        near: keys of a tile that the band crosses, or queries in the backward by key; at least 16.
        warps: of 32 threads, that share a tile.
        stages: loads in flight.
    """

    queries: int
    keys: int
    near: int
    warps: int
    stages: int


# By bytes of an element and head size (rounded up to a power of two): forward, backward by query, backward by key.
TILES = {
    (2, 32): (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    (2, 64): (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 2), Tile(64, 64, 32, 4, 2)),
    (2, 128): (Tile(128, 64, 32, 8, 2), Tile(64, 64, 32, 8, 2), Tile(64, 64, 32, 8, 2)),
    (4, 32): (Tile(32, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2)),
    (4, 64): (Tile(32, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2)),
    (4, 128): (Tile(32, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
}


def padded_head_size(head_size: int) -> int:
    """The power of two that a head is filled up to with zeros, at least 32."""
    return max(32, 1 << (head_size - 1).bit_length())


def choose_tiles(dtype: torch.dtype, head_size: int) -> tuple[Tile, Tile, Tile]:
    """Tiles of the three kernels."""
    return TILES[dtype.itemsize, padded_head_size(head_size)]
