"""Attention with a band, as Triton kernels: forward, and backward in two passes, one by query and one by key.

For a query i and a key j at the offset r = j - i, with reach n, the score is

    q_i . k_j / sqrt(d)  +  band[i, n-1 + r]                       -n < r < n    inside the band
                         +  query_left[i]  + key_left[j]           r <= -n       keys on the left
                         +  query_right[i] + key_right[j]          r >= n        keys on the right

A tile of scores outside the band is plain attention but for two vectors that are added. Tiles that the band crosses
read it at an address that is linear in i and j: ``band[i, n-1 + j-i]`` is element i (2n-2) + n-1 + j. In backward each
element of the band belongs to one pair, whose gradient is stored as it is; the four vectors get the sums of rows and
columns, which the program that owns the row or column keeps in registers. There are no atomics, so gradients are the
same each time. Programs find where the examples of their queries (or keys) begin and end, and leave out other tiles.

Legend: B rows, S sequence, H heads, d head size, n reach, I and J queries and keys of a tile. Layouts: queries, keys,
values, context and their gradients (B, S, H, d); band (B, H, S, 2n-1); ends (4, B, H, S), the four vectors in the order
above, ``apart`` = B H S elements from one to the next; examples (3, B, S), what ``Segments.spans`` gives; log_sum_exp
and delta, the row sums of context x its gradient, (B, H, S) float32.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NOT_SPECIALIZED = ("apart", "heads", "length", "threshold")  # so that one compilation serves all batches
RANDOM_ROUNDS = tl.constexpr(7)  # of Philox: the fewest that pass BigCrush (Salmon et al. 2011, table 2)


@triton.jit
def _find_tiles(
    start, examples, apart, length,
    REACH: tl.constexpr, TERMS: tl.constexpr, SEGMENTS: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """Which positions of the other side the ``OWN`` positions from ``start`` on meet.

    Returns:
        Where the band begins and ends; the numbers of tiles before it, in it, and before and after it. Tiles in it are
        ``NEAR`` wide, others ``OTHER``; those before it end where it begins, so that the first may begin before 0.
    """
    first, end = 0, length
    if SEGMENTS:
        own = start + tl.arange(0, OWN)
        first = tl.min(tl.load(examples + apart + own, mask=own < length, other=length), 0)
        end = tl.max(tl.load(examples + 2 * apart + own, mask=own < length, other=0), 0) + 1
    band_start = first // 16 * 16
    band_end = band_start
    if TERMS and REACH > 0:  # a reach of 0 has one weight, whichever side a pair counts to
        band_start = tl.maximum(band_start, tl.maximum(start - REACH + 1, 0) // 16 * 16)
        band_end = tl.minimum(end, start + OWN - 1 + REACH)
    near = tl.cdiv(band_end - band_start, NEAR)
    band_end = band_start + near * NEAR
    before = tl.cdiv(tl.maximum(band_start - first, 0), OTHER)
    return band_start, band_end, before, near, before + tl.cdiv(tl.maximum(end - band_end, 0), OTHER)


@triton.jit
def _inside(positions, length):
    """Whether they are from 0 on and before ``length``."""
    return positions.to(tl.uint32) < length.to(tl.uint32)


@triton.jit
def _load(tensor, positions, heads, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Positions of (B, S, H, d), at the row and head that ``tensor`` points to: (.., BLOCK_D), zeros outside."""
    column = tl.arange(0, BLOCK_D)
    inside = _inside(positions, length)[:, None] & (column < HEAD_SIZE)[None, :]
    return tl.load(tensor + positions[:, None] * (heads * HEAD_SIZE) + column[None, :], mask=inside, other=0.0)


@triton.jit
def _store(tensor, values, positions, heads, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write positions as ``_load`` reads them."""
    column = tl.arange(0, BLOCK_D)
    inside = _inside(positions, length)[:, None] & (column < HEAD_SIZE)[None, :]
    pointers = tensor + positions[:, None] * (heads * HEAD_SIZE) + column[None, :]
    tl.store(pointers, values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def _score(
    product, i, j, on_left, band, ends, apart, examples, length, scaling,
    REACH: tl.constexpr, TERMS: tl.constexpr, SEGMENTS: tl.constexpr, IN_BAND: tl.constexpr,
):  # fmt: skip
    """The scores of a tile from its products; -inf where a pair may not attend.

    ``i`` and ``j`` are (I, 1) and (1, J), or of a transposed tile (1, I) and (J, 1).
    """
    score = product * scaling
    in_i, in_j = _inside(i, length), _inside(j, length)
    if TERMS:
        if IN_BAND:
            left = tl.load(ends + i, mask=in_i, other=0.0)
            left += tl.load(ends + 2 * apart + j, mask=in_j, other=0.0)
            right = tl.load(ends + apart + i, mask=in_i, other=0.0)
            right += tl.load(ends + 3 * apart + j, mask=in_j, other=0.0)
            within = (j - i < REACH) & (i - j < REACH)
            by_offset = band + (i * (2 * REACH - 2) + (REACH - 1) + j)
            inner = tl.load(by_offset, mask=within & in_i, other=0.0).to(tl.float32)
            score += tl.where(within, inner, tl.where(j > i, right, left))
        else:
            side = ends + tl.where(on_left, 0, apart)
            score += tl.load(side + i, mask=in_i, other=0.0)
            score += tl.load(side + 2 * apart + j, mask=in_j, other=0.0)
    if SEGMENTS:
        example_i = tl.load(examples + i, mask=in_i, other=0)
        example_j = tl.load(examples + j, mask=in_j, other=0)
        return tl.where((example_i == example_j) & in_j, score, float("-inf"))
    return tl.where(in_j, score, float("-inf"))


@triton.jit
def _kept(seed, matrix, start_i, start_j, threshold, I: tl.constexpr, J: tl.constexpr):
    """Which probabilities of a tile dropout keeps: (I, J), a function of seed, matrix (row and head), i and j alone.

    Philox turns four counters into eight numbers of 16 bits, which serve eight neighbouring keys.
    """
    nothing = tl.zeros((I, J // 8), dtype=tl.int32)
    i = start_i + tl.arange(0, I)[:, None] + nothing
    j = start_j // 8 + tl.arange(0, J // 8)[None, :] + nothing
    a, b, c, d = tl.philox(seed, j, i, matrix + nothing, nothing, RANDOM_ROUNDS)
    words = tl.join(tl.join(a, b), tl.join(c, d))
    kept = tl.join((words & 0xFFFF).to(tl.int32) >= threshold, (words >> 16).to(tl.int32) >= threshold)
    return tl.reshape(kept, (I, J))


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward(
    query, key, value, band, ends, examples, seeds, context, log_sum_exp,
    apart, heads, length, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, DOT_PRODUCT: tl.constexpr, TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, I: tl.constexpr, J: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """softmax(scores) with dropout, times the values, for I queries of one row and head."""
    start_i, matrix = tl.program_id(0) * I, tl.program_id(1)
    row = matrix // heads
    head = (row.to(tl.int64) * length * heads + matrix % heads) * HEAD_SIZE
    vector = matrix.to(tl.int64) * length
    key, value, examples = key + head, value + head, examples + row.to(tl.int64) * length
    band, ends = band + vector * (2 * REACH - 1), ends + vector
    i = start_i + tl.arange(0, I)
    seed = tl.load(seeds) if DROPOUT else 0
    queries = _load(query + head, i, heads, length, HEAD_SIZE, BLOCK_D)
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    total = tl.zeros((I,), dtype=tl.float32)
    peak = tl.full((I,), -1e30, dtype=tl.float32)  # finite, for rows whose first tiles hold no key of theirs
    band_start, band_end, left, near, far = _find_tiles(
        start_i, examples, apart // heads, length, REACH, TERMS, SEGMENTS, I, J, NEAR
    )
    for in_band in tl.static_range(2 if TERMS and REACH > 0 else 1):
        for tile in range(near if in_band else far):
            on_left = tile < left
            start_j = band_start + tile * NEAR
            if not in_band:
                start_j = tl.where(on_left, band_start - (tile + 1) * J, band_end + (tile - left) * J)
            j = start_j + tl.arange(0, NEAR if in_band else J)
            product = tl.zeros((I, j.shape[0]), dtype=tl.float32)
            if DOT_PRODUCT:
                keys = _load(key, j, heads, length, HEAD_SIZE, BLOCK_D)
                product = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            values = _load(value, j, heads, length, HEAD_SIZE, BLOCK_D)
            score = _score(
                product, i[:, None], j[None, :], on_left, band, ends, apart, examples, length, scaling,
                REACH, TERMS, SEGMENTS, in_band,
            )  # fmt: skip
            higher = tl.maximum(peak, tl.max(score, 1))
            probability = tl.exp2((score - higher[:, None]) * LOG2_E)
            shrink = tl.exp2((peak - higher) * LOG2_E)
            total = total * shrink + tl.sum(probability, 1)
            if DROPOUT:
                kept = _kept(seed, matrix, start_i, start_j, threshold, I, j.shape[0])
                probability = tl.where(kept, probability, 0.0)
            summed = summed * shrink[:, None]
            summed = tl.dot(probability.to(values.dtype), values, summed, input_precision=PRECISION)
            peak = higher
    _store(context + head, summed * (rescale / total)[:, None], i, heads, length, HEAD_SIZE, BLOCK_D)
    tl.store(log_sum_exp + vector + i, peak + tl.log(total), mask=i < length)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def backward_query(
    query, key, value, band, ends, examples, seeds, context, log_sum_exp, by_context,
    delta, by_query, by_band, by_ends,
    apart, heads, length, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, DOT_PRODUCT: tl.constexpr, TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, I: tl.constexpr, J: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """Delta, and gradients of what belongs to I queries: themselves, their rows of the band, the first two ``ends``."""
    start_i, matrix = tl.program_id(0) * I, tl.program_id(1)
    row = matrix // heads
    head = (row.to(tl.int64) * length * heads + matrix % heads) * HEAD_SIZE
    vector = matrix.to(tl.int64) * length
    key, value, examples = key + head, value + head, examples + row.to(tl.int64) * length
    band, by_band, ends = band + vector * (2 * REACH - 1), by_band + vector * (2 * REACH - 1), ends + vector
    i = start_i + tl.arange(0, I)
    seed = tl.load(seeds) if DROPOUT else 0
    queries = _load(query + head, i, heads, length, HEAD_SIZE, BLOCK_D)
    incoming = _load(by_context + head, i, heads, length, HEAD_SIZE, BLOCK_D)
    outgoing = _load(context + head, i, heads, length, HEAD_SIZE, BLOCK_D)
    level = tl.sum(outgoing.to(tl.float32) * incoming.to(tl.float32), 1)
    tl.store(delta + vector + i, level, mask=i < length)
    normaliser = tl.load(log_sum_exp + vector + i, mask=i < length, other=float("inf"))
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    by_left = tl.zeros((I,), dtype=tl.float32)
    by_right = tl.zeros((I,), dtype=tl.float32)
    band_start, band_end, left, near, far = _find_tiles(
        start_i, examples, apart // heads, length, REACH, TERMS, SEGMENTS, I, J, NEAR
    )
    for in_band in tl.static_range(2 if TERMS and REACH > 0 else 1):
        for tile in range(near if in_band else far):
            on_left = tile < left
            start_j = band_start + tile * NEAR
            if not in_band:
                start_j = tl.where(on_left, band_start - (tile + 1) * J, band_end + (tile - left) * J)
            j = start_j + tl.arange(0, NEAR if in_band else J)
            keys = _load(key, j, heads, length, HEAD_SIZE, BLOCK_D)
            product = tl.zeros((I, j.shape[0]), dtype=tl.float32)
            if DOT_PRODUCT:
                product = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            score = _score(
                product, i[:, None], j[None, :], on_left, band, ends, apart, examples, length, scaling,
                REACH, TERMS, SEGMENTS, in_band,
            )  # fmt: skip
            probability = tl.exp2((score - normaliser[:, None]) * LOG2_E)
            values = _load(value, j, heads, length, HEAD_SIZE, BLOCK_D)
            by_probability = tl.dot(incoming, tl.trans(values), input_precision=PRECISION)
            if DROPOUT:
                kept = _kept(seed, matrix, start_i, start_j, threshold, I, j.shape[0])
                by_probability = tl.where(kept, by_probability * rescale, 0.0)
            by_score = probability * (by_probability - level[:, None])
            if DOT_PRODUCT:
                summed = tl.dot(by_score.to(keys.dtype), keys, summed, input_precision=PRECISION)
            if TERMS:
                if not in_band:
                    sums = tl.sum(by_score, 1)
                    by_left += tl.where(on_left, sums, 0.0)
                    by_right += tl.where(on_left, 0.0, sums)
                else:
                    offset = j[None, :] - i[:, None]
                    by_left += tl.sum(tl.where(offset <= -REACH, by_score, 0.0), 1)
                    by_right += tl.sum(tl.where(offset >= REACH, by_score, 0.0), 1)
                    within = (offset < REACH) & (offset > -REACH) & (i < length)[:, None]
                    by_offset = by_band + (i[:, None] * (2 * REACH - 2) + (REACH - 1) + j[None, :])
                    tl.store(by_offset, by_score.to(by_band.dtype.element_ty), mask=within)
    if DOT_PRODUCT:
        _store(by_query + head, summed * scaling, i, heads, length, HEAD_SIZE, BLOCK_D)
    if TERMS:
        by_ends += vector + i
        tl.store(by_ends, by_left.to(by_ends.dtype.element_ty), mask=i < length)
        tl.store(by_ends + apart, by_right.to(by_ends.dtype.element_ty), mask=i < length)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def backward_key(
    query, key, value, band, ends, examples, seeds, log_sum_exp, by_context, delta,
    by_key, by_value, by_ends,
    apart, heads, length, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, DOT_PRODUCT: tl.constexpr, TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, I: tl.constexpr, J: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """Gradients of what belongs to J keys: themselves, their values and the last two ``ends``. Tiles are transposed."""
    start_j, matrix = tl.program_id(0) * J, tl.program_id(1)
    row = matrix // heads
    head = (row.to(tl.int64) * length * heads + matrix % heads) * HEAD_SIZE
    vector = matrix.to(tl.int64) * length
    query, by_context, examples = query + head, by_context + head, examples + row.to(tl.int64) * length
    band, ends, log_sum_exp, delta = (
        band + vector * (2 * REACH - 1),
        ends + vector,
        log_sum_exp + vector,
        delta + vector,
    )
    j = start_j + tl.arange(0, J)
    seed = tl.load(seeds) if DROPOUT else 0
    keys = _load(key + head, j, heads, length, HEAD_SIZE, BLOCK_D)
    values = _load(value + head, j, heads, length, HEAD_SIZE, BLOCK_D)
    summed_key = tl.zeros((J, BLOCK_D), dtype=tl.float32)
    summed_value = tl.zeros((J, BLOCK_D), dtype=tl.float32)
    by_left = tl.zeros((J,), dtype=tl.float32)
    by_right = tl.zeros((J,), dtype=tl.float32)
    band_start, band_end, before, near, far = _find_tiles(
        start_j, examples, apart // heads, length, REACH, TERMS, SEGMENTS, J, I, NEAR
    )
    for in_band in tl.static_range(2 if TERMS and REACH > 0 else 1):
        for tile in range(near if in_band else far):
            on_left = tile >= before  # the keys, of queries after the band
            start_i = band_start + tile * NEAR
            if not in_band:
                start_i = tl.where(on_left, band_end + (tile - before) * I, band_start - (tile + 1) * I)
            i = start_i + tl.arange(0, NEAR if in_band else I)
            queries = _load(query, i, heads, length, HEAD_SIZE, BLOCK_D)
            product = tl.zeros((J, i.shape[0]), dtype=tl.float32)
            if DOT_PRODUCT:
                product = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            score = _score(
                product, i[None, :], j[:, None], on_left, band, ends, apart, examples, length, scaling,
                REACH, TERMS, SEGMENTS, in_band,
            )  # fmt: skip
            normaliser = tl.load(log_sum_exp + i, mask=_inside(i, length), other=float("inf"))  # so no others count
            probability = tl.exp2((score - normaliser[None, :]) * LOG2_E)
            incoming = _load(by_context, i, heads, length, HEAD_SIZE, BLOCK_D)
            by_probability = tl.dot(values, tl.trans(incoming), input_precision=PRECISION)
            dropped = probability
            if DROPOUT:
                kept = tl.trans(_kept(seed, matrix, start_i, start_j, threshold, i.shape[0], J))
                dropped = tl.where(kept, probability * rescale, 0.0)
                by_probability = tl.where(kept, by_probability * rescale, 0.0)
            summed_value = tl.dot(dropped.to(incoming.dtype), incoming, summed_value, input_precision=PRECISION)
            level = tl.load(delta + i, mask=_inside(i, length), other=0.0)
            by_score = probability * (by_probability - level[None, :])
            if DOT_PRODUCT:
                summed_key = tl.dot(by_score.to(queries.dtype), queries, summed_key, input_precision=PRECISION)
            if TERMS:
                if not in_band:
                    sums = tl.sum(by_score, 1)
                    by_left += tl.where(on_left, sums, 0.0)
                    by_right += tl.where(on_left, 0.0, sums)
                else:
                    offset = j[:, None] - i[None, :]
                    by_left += tl.sum(tl.where(offset <= -REACH, by_score, 0.0), 1)
                    by_right += tl.sum(tl.where(offset >= REACH, by_score, 0.0), 1)
    _store(by_value + head, summed_value, j, heads, length, HEAD_SIZE, BLOCK_D)
    if DOT_PRODUCT:
        _store(by_key + head, summed_key * scaling, j, heads, length, HEAD_SIZE, BLOCK_D)
    if TERMS:
        by_ends += vector + j
        tl.store(by_ends + 2 * apart, by_left.to(by_ends.dtype.element_ty), mask=j < length)
        tl.store(by_ends + 3 * apart, by_right.to(by_ends.dtype.element_ty), mask=j < length)
