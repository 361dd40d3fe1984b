"""Operations of the kernels on tiles: find, load and store them, add the terms to their scores, draw dropout.

Legend and layouts: as in ``kernels``.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def plan_tiles(
    start, examples, plane, length,
    REACH: tl.constexpr, TERMS: tl.constexpr, SEGMENTS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """Find the tiles, ``OTHER`` wide, of the other side that are paired with the ``OWN`` positions from ``start`` on.

    All tiles begin at multiples of their width, so that none crosses the end of a row whose length is a multiple too.

    Returns:
        Start and number of the plain tiles on the left; start and number of the general tiles after them; number of the
        plain tiles on the right of these; and number of the general tiles at the end, 0 or 1.
    """
    first, end, plain = 0, length, True
    if SEGMENTS:
        own = start + tl.arange(0, OWN)
        inside = own < length
        first = tl.min(tl.load(examples + plane + own, mask=inside, other=length), 0)
        end = tl.max(tl.load(examples + 2 * plane + own, mask=inside, other=0), 0) + 1
        lowest = tl.min(tl.load(examples + own, mask=inside, other=2**30), 0)
        highest = tl.max(tl.load(examples + own, mask=inside, other=-(2**30)), 0)
        plain = (lowest == highest) & (lowest >= 0) & (first % OTHER == 0)
        first = first // OTHER * OTHER
    band, band_end = first, tl.where(plain, first, end)
    if TERMS and REACH > 0:  # with a reach of 0 all offsets have the same weight
        band = tl.where(plain, tl.maximum(first, (start - REACH + 1) // OTHER * OTHER), first)
        band_end = tl.where(plain, tl.minimum(end, start + OWN - 1 + REACH), end)
    general = tl.cdiv(band_end - band, OTHER)
    after = tl.maximum(end - band - general * OTHER, 0)
    return first, (band - first) // OTHER, band, general, after // OTHER, tl.where(after % OTHER > 0, 1, 0)


@triton.jit
def pointers_to(tensor, stride, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr):
    """Pointers to the first ``TILE`` positions of (B, S, H, d), at the row and head that ``tensor`` points to."""
    return tensor + tl.arange(0, TILE)[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_tile(
    tensor, start, stride, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Load ``TILE`` positions from ``start`` on, (TILE, BLOCK_D); zeros beyond the row (``WHOLE``: none are)."""
    pointers = pointers_to(tensor, stride, HEAD_SIZE, BLOCK_D, TILE) + start * stride
    if WHOLE and HEAD_SIZE == BLOCK_D:
        return tl.load(pointers)
    inside = tl.arange(0, BLOCK_D)[None, :] < HEAD_SIZE
    if not WHOLE:
        inside = inside & (start + tl.arange(0, TILE) < length)[:, None]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_tile(
    tensor, values, start, stride, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr
):
    """Store positions in the layout of ``load_tile``."""
    inside = (start + tl.arange(0, TILE) < length)[:, None] & (tl.arange(0, BLOCK_D) < HEAD_SIZE)[None, :]
    pointers = pointers_to(tensor, stride, HEAD_SIZE, BLOCK_D, TILE) + start * stride
    tl.store(pointers, values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def load_vector(ends, positions, THERE: tl.constexpr):
    """Load from one of the four vectors, at the row and head that ``ends`` points to; zeros if there is none."""
    if THERE:
        return tl.load(ends + positions)
    return tl.zeros(positions.shape, dtype=tl.float32)


@triton.jit
def general_score(
    product, i, j, query_left, query_right, key_left, key_right, band, examples, length, scale,
    REACH: tl.constexpr, PADDED: tl.constexpr, TERMS: tl.constexpr, SEGMENTS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The scores of a tile from its products; -inf where a pair may not attend.

    Queries ``i`` and their vectors are (I, 1), keys ``j`` and theirs (1, J); in a transposed tile (1, I) and (J, 1).
    """
    score = product * scale
    if TERMS:
        bias = tl.where(j > i, query_right + key_right, query_left + key_left)
        if REACH > 0:
            inner = tl.load(band + (i * (2 * PADDED) + PADDED + j))
            bias = tl.where((j - i + (REACH - 1)).to(tl.uint32) < 2 * REACH - 1, inner.to(tl.float32), bias)
        score += bias
    if SEGMENTS:
        example_i, example_j = tl.load(examples + i), tl.load(examples + j)
        score = tl.where(example_i == example_j, score, float("-inf"))
    if not WHOLE:
        score = tl.where((i < length) & (j < length), score, float("-inf"))
    return score


@triton.jit
def dropout_keys(seeds, matrix, DROPOUT: tl.constexpr):
    """Two random numbers for a row and head, for ``draw_kept``."""
    seed = tl.load(seeds) if DROPOUT else 0
    first, second, _, _ = tl.randint4x(seed, matrix)
    return first.to(tl.uint32), second.to(tl.uint32)


@triton.jit
def draw_kept(first_key, second_key, i, start_j, j, threshold):
    """Which probabilities of a tile dropout keeps, a function of the two random numbers, i and j alone.

    One hash serves a query and two adjacent keys, with 16 bits for each pair. It has two rounds of multiplication and
    xor-shift, as in lowbias32 (Wellons, "Prospecting for hash functions", 2018), with a random number XORed in before
    each. Unlike Philox, it needs no registers beyond those that hold the tile.

    Args:
        i: (I, 1) queries, or (1, I) in a transposed tile.
        start_j: the first key, an even number.
        j: (1, J) or (J, 1), counted from ``start_j``.
    """
    hashed = (i * 65536 + start_j // 2 + (j >> 1)).to(tl.uint32) ^ first_key
    hashed = hashed * 0x7FEB352D
    hashed = hashed ^ (hashed >> 15) ^ second_key
    hashed = hashed * 0x846CA68B
    hashed = hashed ^ (hashed >> 16)
    return ((hashed >> (16 * (j & 1)).to(tl.uint32)) & 0xFFFF) >= threshold.to(tl.uint32)


@triton.jit
def shift_queries(
    queries, key_kernel, side: tl.constexpr,
    REACH: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr, KEY_TERMS: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The queries for the tiles of a ``side``, numbered as in ``tile_start``.

    For plain tiles, a column of the keys' kernel is added; without a dot product, the queries are this column alone.
    """
    if side == 0 or not KEY_TERMS:
        return queries
    column: tl.constexpr = 2 * REACH if side == 1 else 0
    size = tl.arange(0, BLOCK_D)
    shift = tl.load(key_kernel + size * G + column, mask=size < HEAD_SIZE, other=0.0).to(tl.float32)[None, :]
    if DOT_PRODUCT:
        return (queries.to(tl.float32) + shift).to(queries.dtype)
    return (tl.zeros(queries.shape, dtype=tl.float32) + shift).to(queries.dtype)


@triton.jit
def load_kernel(kernel, G: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr):
    """Load the kernel (d, G) of the head that ``kernel`` points to, as (BLOCK_G, BLOCK_D)."""
    offset, size = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_D)[None, :]
    return tl.load(kernel + size * G + offset, mask=(offset < G) & (size < HEAD_SIZE), other=0.0)


@triton.jit
def gradients_by_offset(
    inner, inside, first, last, REACH: tl.constexpr, BLOCK_G: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Gradients of weights by offset (TILE, BLOCK_G): the inner ones, read from the band's, and the two outermost."""
    offset = tl.arange(0, BLOCK_G)[None, :]
    gradients = tl.zeros((TILE, BLOCK_G), dtype=tl.float32)
    if REACH > 0:
        gradients += tl.load(inner, mask=inside & (offset > 0) & (offset < 2 * REACH), other=0.0)
    return gradients + tl.where(offset == 0, first[:, None], 0.0) + tl.where(offset == 2 * REACH, last[:, None], 0.0)


@triton.jit
def store_by_offset(weights, values, positions, length, G: tl.constexpr, BLOCK_G: tl.constexpr):
    """Store values (.., BLOCK_G) of positions of a row and head, except beyond S or G."""
    offset = tl.arange(0, BLOCK_G)[None, :]
    inside = (positions < length)[:, None] & (offset < G)
    tl.store(weights + positions[:, None] * G + offset, values.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def tile_start(tile, side: tl.constexpr, first, left, band, general, right, OTHER: tl.constexpr):
    """The start of a tile among the general tiles (side 0), the plain ones on the left (1) or on the right (2)."""
    if side == 0:
        return band + (tile + tl.where(tile < general, 0, right)) * OTHER
    return (first if side == 1 else band + general * OTHER) + tile * OTHER
