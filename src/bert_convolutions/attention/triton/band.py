"""The convolution terms as the kernels read them: a band of weights near the diagonal, and four vectors beyond it.

Weights by offset, (H, B S, G): of queries, by_query[h, i, n + r] for the key i + r; of keys, by_key[h, j, n - r] for
the query j - r. Offsets beyond the reach have the outermost ones. So a pair nearer than n gets

    band[i, r] = by_query[i, n + r] + by_key[i + r, n - r]

and a pair further apart one number of each, ``ends``: query_left, query_right, key_left and key_right.

The band of a row and head begins at a multiple of ``size``. In it band[i, r] lies at (2p + 1) i + p + r, where p is n
rounded up to a multiple of 8. For i and j that is 2p i + p + j: as in a matrix whose rows are 2p long, so that a tile
of it is read in vectors of 16 bytes. What lies there at other offsets is of other rows, or was never written.

Legend: B rows, S sequence, H heads, n reach, G at least 2n+1, W a power of two of at least 2n+1.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32
PARTS, TOKENS = 22, 64
"""Parts in which a kernel's gradient is summed, and positions at a time."""
SPARE = 256
"""Elements after the last row and head, and numbers after the last vector, that tiles may read and nobody uses."""


@dataclass(frozen=True)
class BandShape:
    """Where the band of each row and head lies.

    Attributes:
        rows, heads, length: B, H, S.
        reach: n.
    """

    rows: int
    heads: int
    length: int
    reach: int

    @property
    def padded(self) -> int:
        """p: n rounded up to a multiple of 8."""
        return -(-self.reach // 8) * 8

    @property
    def size(self) -> int:
        """Elements from one row and head to the next."""
        return -(-self.length * (2 * self.padded + 1) // 16) * 16 + SPARE

    def new_band(self, like: Tensor, zeros: bool = False) -> Tensor:
        """(B H size + spare) of the type of ``like``; empty with a reach of 0."""
        elements = self.rows * self.heads * self.size + SPARE * 2 * self.padded if self.reach else 0
        return like.new_zeros(elements) if zeros else like.new_empty(elements)

    def new_ends(self, like: Tensor) -> Tensor:
        """(4 B H S + spare) float32."""
        return like.new_empty(4 * self.rows * self.heads * self.length + SPARE, dtype=torch.float32)


@triton.jit(do_not_specialize=("rows", "length"))
def fold(
    by_query, by_key, fixed, band, ends, rows, heads, length, size,
    REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr,
    QUERY: tl.constexpr, KEY: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Band and ends of ``TILE`` positions of a row and head, of weights by offset; ``fixed`` (H, G) is the queries'."""
    start, matrix = tl.program_id(0) * TILE, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    weights = (head * rows + row).to(tl.int64) * length * G
    i, offset = start + tl.arange(0, TILE)[:, None], tl.arange(0, W)[None, :]
    inner = (i < length) & (offset > 0) & (offset < 2 * REACH)
    weight = tl.zeros((TILE, W), dtype=tl.float32)
    one, there = start + tl.arange(0, TILE), start + tl.arange(0, TILE) < length
    left = tl.zeros((TILE,), dtype=tl.float32)
    right, key_left, key_right = left, left, left
    if QUERY:
        by_query += weights
        weight += tl.load(by_query + i * G + offset, mask=inner, other=0.0)
        left += tl.load(by_query + one * G, mask=there, other=0.0)
        right += tl.load(by_query + one * G + 2 * REACH, mask=there, other=0.0)
    if FIXED:
        fixed += head * G
        weight += tl.load(fixed + offset, mask=offset < G, other=0.0)
        left += tl.load(fixed)
        right += tl.load(fixed + 2 * REACH)
    if KEY:
        by_key += weights
        j = i + offset - REACH
        weight += tl.load(by_key + j * G + 2 * REACH - offset, mask=inner & (j >= 0) & (j < length), other=0.0)
        key_left += tl.load(by_key + one * G + 2 * REACH, mask=there, other=0.0)
        key_right += tl.load(by_key + one * G, mask=there, other=0.0)
    if REACH > 0:
        here = band + matrix.to(tl.int64) * size + i * (2 * PADDED + 1) + (PADDED - REACH) + offset
        tl.store(here, weight.to(band.dtype.element_ty), mask=inner)
    plane = rows.to(tl.int64) * heads * length
    ends += matrix.to(tl.int64) * length + one
    tl.store(ends, left, mask=there)
    tl.store(ends + plane, right, mask=there)
    tl.store(ends + 2 * plane, key_left, mask=there)
    tl.store(ends + 3 * plane, key_right, mask=there)


@triton.jit(do_not_specialize=("positions", "each"))
def kernel_gradient(
    projection, by_weights, parts, positions, heads, each,
    HEAD_SIZE: tl.constexpr, G: tl.constexpr, BLOCK_D: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a head and ``each`` of all B S positions, the product of projections (B S, H, d) and gradients (H, B S, G).

    It is one part of a kernel's gradient, ``parts`` (.., H, d, G) float32. cuBLAS gives a head to one multiprocessor.
    """
    head, part = tl.program_id(0), tl.program_id(1)
    size, offset = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, W)[None, :]
    summed = tl.zeros((BLOCK_D, W), dtype=tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, positions), TILE):
        position = (start + tl.arange(0, TILE)[:, None]).to(tl.int64)
        inside = position < positions
        projected = tl.load(
            projection + (position * heads + head) * HEAD_SIZE + size, mask=inside & (size < HEAD_SIZE), other=0.0
        )
        gradients = tl.load(
            by_weights + (head.to(tl.int64) * positions + position) * G + offset, mask=inside & (offset < G), other=0.0
        )
        summed = tl.dot(tl.trans(projected), gradients, summed, input_precision=PRECISION)
    row = tl.arange(0, BLOCK_D)[:, None]
    here = parts + ((part * heads + head) * HEAD_SIZE + row) * G + offset
    tl.store(here, summed, mask=(row < HEAD_SIZE) & (offset < G))
