"""The convolution terms as the kernels read them: a band of weights near the diagonal, and four vectors beyond it.

Weights by offset are the product of a side's projection and its kernel: query_weights[i, n + r] for the key i + r,
including the fixed terms, and key_weights[j, n - r] for the query j - r. Offsets beyond the reach share the outermost
weights. A pair nearer than n therefore has the weight

    band[i, r] = query_weights[i, n + r] + key_weights[i + r, n - r]

and a pair further apart has one outermost weight of each side, stored in ``ends``: query_left or query_right, and
key_left or key_right.

The band of a row and head begins at a multiple of ``size``. It holds band[i, r] at (2p + 1) i + p + r, where p is n
rounded up to a multiple of 8. In terms of i and j this is 2p i + p + j, as in a matrix with rows of length 2p, so that
a tile is read in vectors of 16 bytes. Elements at other offsets belong to other rows or were never written.

Legend: B rows, S sequence, H heads, d head size, n reach, G 2n+1 rounded up to a multiple of 8.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bert_convolutions.attention.triton.tiles import LN_2, load_kernel, load_tile, store_by_offset

TILE = {2: 32, 4: 16}
"""Positions per program of ``weigh_keys`` and ``fold``, by bytes per element: 32 of float32 would spill registers."""
PARTS, TOKENS = 22, 64
"""Parts in which a kernel's gradient is summed, and positions per step of a part; half as many beyond a reach of 31."""
SPARE = 256
"""Elements after each band and after the last vector that tiles may read, but don't use."""


@dataclass(frozen=True)
class BandShape:
    """The layout of the bands of all rows and heads in memory.

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
    def width(self) -> int:
        """G: weights by offset stored per position, 2n+1 rounded up to a multiple of 8."""
        return -(-(2 * max(self.reach, 0) + 1) // 8) * 8

    @property
    def size(self) -> int:
        """Elements from one band to the next."""
        return -(-self.length * (2 * self.padded + 1) // 16) * 16 + SPARE

    def new_band(self, like: Tensor, zeros: bool = False) -> Tensor:
        """Allocate the bands (B H size + spare), of the dtype of ``like``; empty if n < 1."""
        elements = self.rows * self.heads * self.size + SPARE * 2 * self.padded if self.reach > 0 else 0
        return like.new_zeros(elements) if zeros else like.new_empty(elements)

    def new_weights(self, like: Tensor) -> Tensor:
        """Allocate weights by offset, or their gradients, (H, B S, G) of the dtype of ``like``."""
        return like.new_empty((self.heads, self.rows * self.length, self.width))

    def new_ends(self, like: Tensor) -> Tensor:
        """Allocate the four vectors (4 B H S + spare), float32."""
        return like.new_empty(4 * self.rows * self.heads * self.length + SPARE, dtype=torch.float32)


@triton.jit
def fill_kernels(
    query_kernel, key_kernel, filled, heads,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, G: tl.constexpr, QUERY_STRIDE: tl.constexpr, KEY_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Copy a head's kernel of one side to ``filled`` (2, H, d, G), padded with zeros for matrix products.

    A side's kernel is (d, 2n+1), shared by the heads, if its stride is 0; absent if it is -1; else (H, d, 2n+1).
    """
    head, side = tl.program_id(0), tl.program_id(1)
    size, offset = tl.arange(0, BLOCK_D)[:, None], tl.arange(0, BLOCK_G)[None, :]
    inside = (size < HEAD_SIZE) & (offset < 2 * REACH + 1)
    here, place = size * (2 * REACH + 1) + offset, filled + ((side * heads + head) * HEAD_SIZE + size) * G + offset
    there = (size < HEAD_SIZE) & (offset < G)
    if QUERY_STRIDE >= 0 and side == 0:
        weights = tl.load(query_kernel + head * QUERY_STRIDE + here, mask=inside, other=0.0)
        tl.store(place, weights.to(filled.dtype.element_ty), mask=there)
    if KEY_STRIDE >= 0 and side == 1:
        weights = tl.load(key_kernel + head * KEY_STRIDE + here, mask=inside, other=0.0)
        tl.store(place, weights.to(filled.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=("rows", "length"))
def weigh_keys(
    key, kernel, key_weights, rows, heads, length, scaling,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute the weights by offset (H, B S, G) of ``TILE`` keys of a row and head; ``kernel`` is (H, d, G)."""
    start, matrix = tl.program_id(0) * TILE, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    here = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE
    keys = load_tile(key + here, start, heads * HEAD_SIZE, length, HEAD_SIZE, BLOCK_D, TILE, False)
    columns = load_kernel(kernel + head * HEAD_SIZE * G, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
    weights = tl.dot(keys, tl.trans(columns), input_precision=PRECISION) * (scaling / LN_2)
    key_weights += (head * rows + row).to(tl.int64) * length * G
    store_by_offset(key_weights, weights, start + tl.arange(0, TILE), length, G, BLOCK_G)


@triton.jit(do_not_specialize=("rows", "length"))
def fold(
    query, kernel, fixed, key_weights, band, ends, rows, heads, length, size, scaling,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr,
    QUERY: tl.constexpr, KEY: tl.constexpr, FIXED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute band and ends of ``TILE`` positions of a row and head from the queries' weights and ``key_weights``.

    ``fixed`` is (H, 2n+1) float32, added to the queries' weights.
    """
    start, matrix = tl.program_id(0) * TILE, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    i, offset = start + tl.arange(0, TILE)[:, None], tl.arange(0, BLOCK_G)[None, :]
    one, there = start + tl.arange(0, TILE), start + tl.arange(0, TILE) < length
    weight = tl.zeros((TILE, BLOCK_G), dtype=tl.float32)
    key_left = tl.zeros((TILE,), dtype=tl.float32)
    key_right = key_left
    if QUERY:
        here = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE
        queries = load_tile(query + here, start, heads * HEAD_SIZE, length, HEAD_SIZE, BLOCK_D, TILE, False)
        columns = load_kernel(kernel + head * HEAD_SIZE * G, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
        weight = tl.dot(queries, tl.trans(columns), input_precision=PRECISION) * (scaling / LN_2)
    if FIXED:
        weight += tl.load(fixed + head * (2 * REACH + 1) + offset, mask=offset <= 2 * REACH, other=0.0) / LN_2
    left = tl.sum(tl.where(offset == 0, weight, 0.0), 1)
    right = tl.sum(tl.where(offset == 2 * REACH, weight, 0.0), 1)
    inner = (i < length) & (offset > 0) & (offset < 2 * REACH)
    if KEY:
        key_weights += (head * rows + row).to(tl.int64) * length * G
        j = i + offset - REACH
        weight += tl.load(key_weights + j * G + 2 * REACH - offset, mask=inner & (j >= 0) & (j < length), other=0.0)
        key_left += tl.load(key_weights + one * G + 2 * REACH, mask=there, other=0.0)
        key_right += tl.load(key_weights + one * G, mask=there, other=0.0)
    if REACH > 0:
        in_band = band + matrix.to(tl.int64) * size + i * (2 * PADDED + 1) + (PADDED - REACH) + offset
        tl.store(in_band, weight.to(band.dtype.element_ty), mask=inner)
    plane = rows.to(tl.int64) * heads * length
    ends += matrix.to(tl.int64) * length + one
    tl.store(ends, left, mask=there)
    tl.store(ends + plane, right, mask=there)
    tl.store(ends + 2 * plane, key_left, mask=there)
    tl.store(ends + 3 * plane, key_right, mask=there)


@triton.jit(do_not_specialize=("positions", "each"))
def kernel_gradient(
    projection, grad_weight, parts, positions, heads, each, scaling,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, G: tl.constexpr, DYNAMIC: tl.constexpr, FIXED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute a part of a kernel's gradient, for one head and ``each`` of all B S positions.

    It is the product of projections (B S, H, d) and the gradients of their weights by offset (H, B S, G), d rows; with
    ``FIXED``, one more row is the sum of the latter. ``parts`` is (.., H, rows, 2n+1) float32. cuBLAS would run a whole
    head on one multiprocessor.
    """
    head, part = tl.program_id(0), tl.program_id(1)
    size, offset = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_G)[None, :]
    product = tl.zeros((BLOCK_D, BLOCK_G), dtype=tl.float32)
    summed = tl.zeros((BLOCK_G,), dtype=tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, positions), TILE):
        position = (start + tl.arange(0, TILE)[:, None]).to(tl.int64)
        inside = position < positions
        gradients = tl.load(
            grad_weight + (head.to(tl.int64) * positions + position) * G + offset, mask=inside & (offset < G), other=0.0
        )
        if DYNAMIC:
            projected = tl.load(
                projection + (position * heads + head) * HEAD_SIZE + size, mask=inside & (size < HEAD_SIZE), other=0.0
            )
            product = tl.dot(tl.trans(projected), gradients, product, input_precision=PRECISION)
        if FIXED:
            summed += tl.sum(gradients.to(tl.float32), 0)
    width: tl.constexpr = 2 * REACH + 1
    parts += (part * heads + head) * (HEAD_SIZE * DYNAMIC + FIXED) * width
    if DYNAMIC:
        row = tl.arange(0, BLOCK_D)[:, None]
        tl.store(parts + row * width + offset, product * scaling, mask=(row < HEAD_SIZE) & (offset < width))
    if FIXED:
        alone = tl.arange(0, BLOCK_G)
        tl.store(parts + HEAD_SIZE * DYNAMIC * width + alone, summed, mask=alone < width)
