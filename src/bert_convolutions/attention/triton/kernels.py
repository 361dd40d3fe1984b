"""Attention with convolution terms, as Triton kernels: forward, and backward in two passes, by query and by key.

For a query i and a key j at the offset r = j - i, with reach n, the score is

    q_i . k_j / sqrt(d)  +  band[i, r]                        -n < r < n    inside the band
                         +  query_left[i]  + key_left[j]      r <= -n       keys on the left
                         +  query_right[i] + key_right[j]     r >= n        keys on the right

and key_left[j] is k_j times a column of the key's kernel, so that it can as well be added to the query:

    q_i . k_j / sqrt(d) + query_left[i] + key_left[j]  =  (q_i + Ck[:, 2n]) . k_j / sqrt(d) + query_left[i]

Tiles of scores are of two kinds. *Plain* ones lie outside the band and inside one example: they are attention on
shifted queries, with a constant of each query that is taken off its maximum, and cost what attention without terms
does.
*General* ones may hold anything: weights are read from the band, pairs of different examples masked out. Of the band
they read a whole tile, at an address that is linear in i and j, and choose; what they read beside it is of other rows.
Tiles without a pair of one example are left out: programs read where the examples of their queries (or keys) begin and
end. In backward each element of the band belongs to one pair, whose gradient is stored as it is; far weights get the
sums of rows and columns, which the program that owns the row or column keeps in registers. It then puts the gradients of its
weights by offset together and multiplies them by the kernel. There are no atomics, so gradients are the same each time.

Scores, band and vectors are in units of log 2, gradients in the usual ones.

Legend: B rows, S sequence, H heads, d head size, n reach, G at least 2n+1 with zeros to fill up, I and J queries and
keys of a tile. Layouts: queries, keys, values, context and their gradients (B, S, H, d); band: ``engine.Band``; ends
(4, B, H, S) float32, the four vectors in the order above; query_kernel and key_kernel
(H, d, G); gradients of weights by offset (H, B, S, G); examples (3, B, S), what
``Segments.spans`` gives; log_sum_exp (B, H, S) float32; by_row (4, B, H, S) float32: the row sums of context x its
gradient, log_sum_exp, and that less query_left and less query_right.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
NOT_SPECIALIZED = ("rows", "length", "threshold")  # so that one compilation serves all batches


@triton.jit
def _plan(
    start, examples, plane, length,
    REACH: tl.constexpr, TERMS: tl.constexpr, SEGMENTS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """Which positions of the other side the ``OWN`` positions from ``start`` on meet, as tiles ``OTHER`` wide.

    All tiles begin at multiples of their width, so that none crosses the end of a row whose length is one.

    Returns:
        Where the first plain tile begins, how many follow one another from there on; where the general tiles begin, and
        how many; the number of plain tiles after these, and how many general ones come last of all, 0 or 1.
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
    if TERMS and REACH > 0:  # a reach of 0 has one weight, whichever side a pair counts to
        band = tl.where(plain, tl.maximum(first, (start - REACH + 1) // OTHER * OTHER), first)
        band_end = tl.where(plain, tl.minimum(end, start + OWN - 1 + REACH), end)
    general = tl.cdiv(band_end - band, OTHER)
    after = tl.maximum(end - band - general * OTHER, 0)
    return first, (band - first) // OTHER, band, general, after // OTHER, tl.where(after % OTHER > 0, 1, 0)


@triton.jit
def _pointers(tensor, stride, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr):
    """To the first ``TILE`` positions of (B, S, H, d), at the row and head that ``tensor`` points to."""
    return tensor + tl.arange(0, TILE)[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def _load(
    tensor, start, stride, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """``TILE`` positions from ``start`` on: (TILE, BLOCK_D), zeros beyond the row, which a whole tile doesn't cross."""
    pointers = _pointers(tensor, stride, HEAD_SIZE, BLOCK_D, TILE) + start * stride
    if WHOLE and HEAD_SIZE == BLOCK_D:
        return tl.load(pointers)
    inside = tl.arange(0, BLOCK_D)[None, :] < HEAD_SIZE
    if not WHOLE:
        inside = inside & (start + tl.arange(0, TILE) < length)[:, None]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _store(tensor, values, start, stride, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr):
    """Write positions as ``_load`` reads them."""
    inside = (start + tl.arange(0, TILE) < length)[:, None] & (tl.arange(0, BLOCK_D) < HEAD_SIZE)[None, :]
    pointers = _pointers(tensor, stride, HEAD_SIZE, BLOCK_D, TILE) + start * stride
    tl.store(pointers, values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def _vector(ends, positions, THERE: tl.constexpr):
    """One of the four vectors, at the row and head that ``ends`` points to; zeros where there is none."""
    if THERE:
        return tl.load(ends + positions)
    return tl.zeros(positions.shape, dtype=tl.float32)


@triton.jit
def _general_score(
    product, i, j, query_left, query_right, key_left, key_right, band, examples, length, scale,
    REACH: tl.constexpr, PADDED: tl.constexpr, TERMS: tl.constexpr, SEGMENTS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The scores of a tile from its products; -inf where a pair may not attend.

    Queries ``i`` and their vectors are (I, 1), keys ``j`` and theirs (1, J); or of a transposed tile (1, I) and (J, 1).
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
def _dropout_keys(seeds, matrix, DROPOUT: tl.constexpr):
    """Two random numbers of a row and head, for ``_kept``."""
    seed = tl.load(seeds) if DROPOUT else 0
    first, second, _, _ = tl.randint4x(seed, matrix)
    return first.to(tl.uint32), second.to(tl.uint32)


@triton.jit
def _kept(first_key, second_key, i, start_j, j, threshold):
    """Which probabilities of a tile dropout keeps: a function of the keys, i and j alone.

    A hash of a query and two neighbouring keys has 16 bits for each of the two: two rounds of multiplying and folding,
    as in lowbias32 (Wellons, "Prospecting for hash functions", 2018), between which a key is added. Unlike Philox, it
    needs no more than the registers that hold the tile.

    Args:
        i: (I, 1) queries; or (1, I) of a transposed tile.
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
def _shifted(queries, key_kernel, column: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
             KEY_TERMS: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Queries plus a column of the keys' kernel; without a dot product, that column alone."""
    if not KEY_TERMS:
        return queries
    size = tl.arange(0, BLOCK_D)
    shift = tl.load(key_kernel + size * G + column, mask=size < HEAD_SIZE, other=0.0).to(tl.float32)[None, :]
    if DOT_PRODUCT:
        return (queries.to(tl.float32) + shift).to(queries.dtype)
    return (tl.zeros(queries.shape, dtype=tl.float32) + shift).to(queries.dtype)


@triton.jit
def _kernel(kernel, G: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr):
    """A kernel (d, G) of the head that ``kernel`` points to, as (BLOCK_G, BLOCK_D)."""
    offset, size = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_D)[None, :]
    return tl.load(kernel + size * G + offset, mask=(offset < G) & (size < HEAD_SIZE), other=0.0)


@triton.jit
def _gradients_by_offset(
    inner, inside, first, last, REACH: tl.constexpr, BLOCK_G: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The gradients of weights by offset (TILE, BLOCK_G): inner ones, read from the band's, and the two outermost."""
    offset = tl.arange(0, BLOCK_G)[None, :]
    gradients = tl.zeros((TILE, BLOCK_G), dtype=tl.float32)
    if REACH > 0:
        gradients += tl.load(inner, mask=inside & (offset > 0) & (offset < 2 * REACH), other=0.0)
    return gradients + tl.where(offset == 0, first[:, None], 0.0) + tl.where(offset == 2 * REACH, last[:, None], 0.0)


@triton.jit
def _store_by_offset(weights, values, positions, length, G: tl.constexpr, BLOCK_G: tl.constexpr):
    """Write (.., BLOCK_G) of some positions of a row and head, as far as there are positions and offsets."""
    offset = tl.arange(0, BLOCK_G)[None, :]
    inside = (positions < length)[:, None] & (offset < G)
    tl.store(weights + positions[:, None] * G + offset, values.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def _start(tile, side: tl.constexpr, first, left, band, general, right, OTHER: tl.constexpr):
    """Where a tile begins: of the general ones (0), of the plain ones on the left (1), on the right (2)."""
    if side == 0:
        return band + (tile + tl.where(tile < general, 0, right)) * OTHER
    return (first if side == 1 else band + general * OTHER) + tile * OTHER


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward(
    query, key, value, band, ends, query_kernel, key_kernel, examples, seeds, context, log_sum_exp,
    rows, heads, length, band_size, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
    TERMS: tl.constexpr, QUERY_WEIGHTS: tl.constexpr, QUERY_TERMS: tl.constexpr, KEY_TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """softmax(scores) with dropout, times the values, for I queries of one row and head."""
    start_i, matrix = tl.program_id(0) * I, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    stride, plane = heads * HEAD_SIZE, rows.to(tl.int64) * heads * length
    here, vector = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE, matrix.to(tl.int64) * length
    key, value = key + here, value + here
    band, ends, key_kernel = band + matrix.to(tl.int64) * band_size, ends + vector, key_kernel + head * HEAD_SIZE * G
    examples += row.to(tl.int64) * length
    scale = scaling / LN_2
    first_key, second_key = _dropout_keys(seeds, matrix, DROPOUT)
    i = start_i + tl.arange(0, I)
    queries = _load(query + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    query_left = _vector(ends, i, TERMS)
    query_right = _vector(ends + plane, i, TERMS)
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    total = tl.zeros((I,), dtype=tl.float32)
    peak = tl.full((I,), -1e30, dtype=tl.float32)  # finite, for rows whose first tiles hold no key of theirs
    first, left, near, general, right, last = _plan(
        start_i, examples, rows * length, length, REACH, TERMS, SEGMENTS, I, J
    )
    for side in tl.static_range(3):
        tiles, constant, seen = general + last, query_left, queries
        if side == 1:
            tiles, seen = left, _shifted(queries, key_kernel, 2 * REACH, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
        if side == 2:
            tiles, seen = right, _shifted(queries, key_kernel, 0, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
            constant = query_right
        for tile in range(tiles):
            start_j = _start(tile, side, first, left, near, general, right, J)
            keys = _load(key, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            score = tl.zeros((I, J), dtype=tl.float32)
            if DOT_PRODUCT or (KEY_TERMS and side > 0):
                score = tl.dot(seen, tl.trans(keys), input_precision=PRECISION)
            if side == 0:
                j = start_j + tl.arange(0, J)
                key_left = _vector(ends + 2 * plane, j, TERMS)
                key_right = _vector(ends + 3 * plane, j, TERMS)
                score = _general_score(
                    score, i[:, None], j[None, :], query_left[:, None], query_right[:, None], key_left[None, :],
                    key_right[None, :], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                higher = tl.maximum(peak, tl.max(score, 1))
                probability = tl.exp2(score - higher[:, None])
            else:
                higher = tl.maximum(peak, tl.max(score, 1) * scale + constant)
                probability = tl.exp2(score * scale - (higher - constant)[:, None])
            values = _load(value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(probability, 1)
            if DROPOUT:
                kept = _kept(first_key, second_key, i[:, None], start_j, tl.arange(0, J)[None, :], threshold)
                probability = tl.where(kept, probability, 0.0)
            summed = summed * shrink[:, None]
            summed = tl.dot(probability.to(values.dtype), values, summed, input_precision=PRECISION)
            peak = higher
    _store(context + here, summed * (rescale / total)[:, None], start_i, stride, length, HEAD_SIZE, BLOCK_D, I)
    tl.store(log_sum_exp + vector + i, peak + tl.log2(total), mask=i < length)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def backward_query(
    query, key, value, band, ends, query_kernel, key_kernel, examples, seeds, context, log_sum_exp, by_context,
    by_row, by_query, by_band, by_weights,
    rows, heads, length, band_size, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
    TERMS: tl.constexpr, QUERY_WEIGHTS: tl.constexpr, QUERY_TERMS: tl.constexpr, KEY_TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """``by_row``, and the gradients of I queries, their rows of the band and their weights by offset."""
    start_i, matrix = tl.program_id(0) * I, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    stride, plane = heads * HEAD_SIZE, rows.to(tl.int64) * heads * length
    here, vector = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE, matrix.to(tl.int64) * length
    key, value, by_row = key + here, value + here, by_row + vector
    band, by_band = band + matrix.to(tl.int64) * band_size, by_band + matrix.to(tl.int64) * band_size
    query_kernel, key_kernel = query_kernel + head * HEAD_SIZE * G, key_kernel + head * HEAD_SIZE * G
    ends += vector
    examples += row.to(tl.int64) * length
    scale = scaling / LN_2
    first_key, second_key = _dropout_keys(seeds, matrix, DROPOUT)
    i = start_i + tl.arange(0, I)
    queries = _load(query + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    incoming = _load(by_context + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    outgoing = _load(context + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    level = tl.sum(outgoing.to(tl.float32) * incoming.to(tl.float32), 1)
    normaliser = tl.load(log_sum_exp + vector + i, mask=i < length, other=float("inf"))
    query_left = _vector(ends, i, TERMS)
    query_right = _vector(ends + plane, i, TERMS)
    tl.store(by_row + i, level, mask=i < length)
    tl.store(by_row + plane + i, normaliser, mask=i < length)
    tl.store(by_row + 2 * plane + i, normaliser - query_left, mask=i < length)
    tl.store(by_row + 3 * plane + i, normaliser - query_right, mask=i < length)
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    by_left = tl.zeros((I,), dtype=tl.float32)
    by_right = tl.zeros((I,), dtype=tl.float32)
    first, left, near, general, right, last = _plan(
        start_i, examples, rows * length, length, REACH, TERMS, SEGMENTS, I, J
    )
    for side in tl.static_range(3):
        tiles, taken_off, seen = general + last, normaliser, queries
        if side == 1:
            tiles, seen = left, _shifted(queries, key_kernel, 2 * REACH, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
            taken_off = normaliser - query_left
        if side == 2:
            tiles, seen = right, _shifted(queries, key_kernel, 0, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
            taken_off = normaliser - query_right
        for tile in range(tiles):
            start_j = _start(tile, side, first, left, near, general, right, J)
            j = start_j + tl.arange(0, J)
            keys = _load(key, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            score = tl.zeros((I, J), dtype=tl.float32)
            if DOT_PRODUCT or (KEY_TERMS and side > 0):
                score = tl.dot(seen, tl.trans(keys), input_precision=PRECISION)
            if side == 0:
                key_left = _vector(ends + 2 * plane, j, TERMS)
                key_right = _vector(ends + 3 * plane, j, TERMS)
                score = _general_score(
                    score, i[:, None], j[None, :], query_left[:, None], query_right[:, None], key_left[None, :],
                    key_right[None, :], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                probability = tl.exp2(score - taken_off[:, None])
            else:
                probability = tl.exp2(score * scale - taken_off[:, None])
            values = _load(value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            by_probability = tl.dot(incoming, tl.trans(values), input_precision=PRECISION)
            if DROPOUT:
                kept = _kept(first_key, second_key, i[:, None], start_j, tl.arange(0, J)[None, :], threshold)
                by_probability = tl.where(kept, by_probability * rescale, 0.0)
            by_score = probability * (by_probability - level[:, None])
            if DOT_PRODUCT:
                summed = tl.dot(by_score.to(keys.dtype), keys, summed, input_precision=PRECISION)
            if TERMS:
                if side == 0:
                    offset = j[None, :] - i[:, None]
                    by_left += tl.sum(tl.where(offset <= -REACH, by_score, 0.0), 1)
                    by_right += tl.sum(tl.where(offset >= tl.maximum(REACH, 1), by_score, 0.0), 1)
                    if REACH > 0:
                        within = (offset < REACH) & (offset > -REACH) & (i < length)[:, None]
                        by_offset = by_band + (i[:, None] * (2 * PADDED) + PADDED + j[None, :])
                        tl.store(by_offset, by_score.to(by_band.dtype.element_ty), mask=within)
                elif side == 1:
                    by_left += tl.sum(by_score, 1)
                else:
                    by_right += tl.sum(by_score, 1)
    if QUERY_WEIGHTS:
        tl.debug_barrier()  # what other threads have stored of these rows is read
        offset = tl.arange(0, BLOCK_G)[None, :]
        rows_of_band = by_band + i[:, None] * (2 * PADDED + 1) + (PADDED - REACH) + offset
        gradients = _gradients_by_offset(rows_of_band, (i < length)[:, None], by_left, by_right, REACH, BLOCK_G, I)
        by_weights += (head * rows + row).to(tl.int64) * length * G
        _store_by_offset(by_weights, gradients, i, length, G, BLOCK_G)
        if QUERY_TERMS:
            columns = _kernel(query_kernel, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
            summed = tl.dot(gradients.to(columns.dtype), columns, summed, input_precision=PRECISION)
    if DOT_PRODUCT or QUERY_TERMS:
        _store(by_query + here, summed * scaling, start_i, stride, length, HEAD_SIZE, BLOCK_D, I)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def backward_key(
    query, key, value, band, ends, query_kernel, key_kernel, examples, seeds, by_context, by_row, by_band,
    by_key, by_value, by_weights,
    rows, heads, length, band_size, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
    TERMS: tl.constexpr, QUERY_WEIGHTS: tl.constexpr, QUERY_TERMS: tl.constexpr, KEY_TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Gradients of J keys, their values and their weights by offset. Tiles are transposed."""
    start_j, matrix = tl.program_id(0) * J, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    stride, plane = heads * HEAD_SIZE, rows.to(tl.int64) * heads * length
    here, vector = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE, matrix.to(tl.int64) * length
    query, by_context, by_row = query + here, by_context + here, by_row + vector
    band, by_band = band + matrix.to(tl.int64) * band_size, by_band + matrix.to(tl.int64) * band_size
    ends, key_kernel = ends + vector, key_kernel + head * HEAD_SIZE * G
    examples += row.to(tl.int64) * length
    scale = scaling / LN_2
    first_key, second_key = _dropout_keys(seeds, matrix, DROPOUT)
    j = start_j + tl.arange(0, J)
    keys = _load(key + here, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE)
    values = _load(value + here, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE)
    key_left = _vector(ends + 2 * plane, j, TERMS)
    key_right = _vector(ends + 3 * plane, j, TERMS)
    summed_key = tl.zeros((J, BLOCK_D), dtype=tl.float32)
    summed_value = tl.zeros((J, BLOCK_D), dtype=tl.float32)
    by_left = tl.zeros((J,), dtype=tl.float32)
    by_right = tl.zeros((J,), dtype=tl.float32)
    first, left, near, general, right, last = _plan(
        start_j, examples, rows * length, length, REACH, TERMS, SEGMENTS, J, I
    )
    for side in tl.static_range(3):
        tiles, constant, taken_off = general + last, key_left, by_row + plane
        if side == 1:  # queries on the left have the keys on their right
            tiles, constant, taken_off = left, key_right, by_row + 3 * plane
        if side == 2:
            tiles, taken_off = right, by_row + 2 * plane
        for tile in range(tiles):
            start_i = _start(tile, side, first, left, near, general, right, I)
            i = start_i + tl.arange(0, I)
            queries = _load(query, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE or side > 0)
            score = tl.zeros((J, I), dtype=tl.float32)
            if DOT_PRODUCT:
                score = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            if side == 0:
                normaliser, level = tl.load(taken_off + i), tl.load(by_row + i)
                if not WHOLE:  # so that no others count
                    normaliser = tl.where(i < length, normaliser, float("inf"))
                    level = tl.where(i < length, level, 0.0)
                query_left = _vector(ends, i, TERMS)
                query_right = _vector(ends + plane, i, TERMS)
                score = _general_score(
                    score, i[None, :], j[:, None], query_left[None, :], query_right[None, :], key_left[:, None],
                    key_right[:, None], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                probability = tl.exp2(score - normaliser[None, :])
            else:
                normaliser, level = tl.load(taken_off + i), tl.load(by_row + i)
                probability = tl.exp2((score * scale + constant[:, None]) - normaliser[None, :])
            incoming = _load(by_context, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE or side > 0)
            by_probability = tl.dot(values, tl.trans(incoming), input_precision=PRECISION)
            dropped = probability
            if DROPOUT:
                kept = _kept(first_key, second_key, i[None, :], start_j, tl.arange(0, J)[:, None], threshold)
                dropped = tl.where(kept, probability * rescale, 0.0)
                by_probability = tl.where(kept, by_probability * rescale, 0.0)
            summed_value = tl.dot(dropped.to(incoming.dtype), incoming, summed_value, input_precision=PRECISION)
            by_score = probability * (by_probability - level[None, :])
            if DOT_PRODUCT:
                summed_key = tl.dot(by_score.to(queries.dtype), queries, summed_key, input_precision=PRECISION)
            if KEY_TERMS:
                if side == 0:
                    offset = j[:, None] - i[None, :]
                    by_left += tl.sum(tl.where(offset <= -REACH, by_score, 0.0), 1)
                    by_right += tl.sum(tl.where(offset >= tl.maximum(REACH, 1), by_score, 0.0), 1)
                elif side == 1:
                    by_right += tl.sum(by_score, 1)
                else:
                    by_left += tl.sum(by_score, 1)
    _store(by_value + here, summed_value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J)
    if KEY_TERMS:
        met = (
            j[:, None] + tl.arange(0, BLOCK_G)[None, :] - REACH
        )  # the query for which a key has its weight of an offset
        columns_of_band = by_band + met * (2 * PADDED) + PADDED + j[:, None]
        gradients = _gradients_by_offset(
            columns_of_band, (met >= 0) & (met < length), by_right, by_left, REACH, BLOCK_G, J
        )
        by_weights += (head * rows + row).to(tl.int64) * length * G
        _store_by_offset(by_weights, gradients, j, length, G, BLOCK_G)
        columns = _kernel(key_kernel, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
        summed_key = tl.dot(gradients.to(columns.dtype), columns, summed_key, input_precision=PRECISION)
    if DOT_PRODUCT or KEY_TERMS:
        _store(by_key + here, summed_key * scaling, start_j, stride, length, HEAD_SIZE, BLOCK_D, J)
