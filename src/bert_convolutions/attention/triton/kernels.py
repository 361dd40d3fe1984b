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
end.

In backward each element of the band belongs to one pair, whose gradient is stored as it is; far weights get the sums of
rows and columns, which the program that owns the row or column keeps in registers. It then puts the gradients of its
weights by offset together and multiplies them by the kernel. There are no atomics, so gradients are the same each time.

Scores, band and vectors are in units of log 2, gradients in the usual ones.

Legend: B rows, S sequence, H heads, d head size, n reach, G at least 2n+1 with zeros to fill up, I and J queries and
keys of a tile. Layouts: queries, keys, values, context and their gradients (B, S, H, d); band: as ``band.BandShape``
says; ends (4, B, H, S) float32, the four vectors in the order above; query_kernel and key_kernel (H, d, G); gradients
of weights by offset (H, B, S, G); examples (3, B, S), what ``Segments.spans`` gives; log_sum_exp (B, H, S) float32;
by_row (4, B, H, S) float32: the row sums of context x its gradient, log_sum_exp, and that less query_left and less
query_right.
"""

import triton
import triton.language as tl

from bert_convolutions.attention.triton.tiles import (
    LN_2,
    draw_kept,
    dropout_keys,
    general_score,
    gradients_by_offset,
    load_kernel,
    load_tile,
    load_vector,
    plan_tiles,
    shift_queries,
    store_by_offset,
    store_tile,
    tile_start,
)

NOT_SPECIALIZED = ("rows", "length", "threshold")  # so that one compilation serves all batches


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
    first_key, second_key = dropout_keys(seeds, matrix, DROPOUT)
    i = start_i + tl.arange(0, I)
    queries = load_tile(query + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    query_left = load_vector(ends, i, TERMS)
    query_right = load_vector(ends + plane, i, TERMS)
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    total = tl.zeros((I,), dtype=tl.float32)
    peak = tl.full((I,), -1e30, dtype=tl.float32)  # finite, for rows whose first tiles hold no key of theirs
    first, left, near, general, right, last = plan_tiles(
        start_i, examples, rows * length, length, REACH, TERMS, SEGMENTS, I, J
    )
    for side in tl.static_range(3):
        seen = shift_queries(queries, key_kernel, side, REACH, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
        constant = query_left if side == 1 else query_right
        for tile in range(general + last if side == 0 else (left if side == 1 else right)):
            start_j = tile_start(tile, side, first, left, near, general, right, J)
            keys = load_tile(key, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            score = tl.zeros((I, J), dtype=tl.float32)
            if DOT_PRODUCT or (KEY_TERMS and side > 0):
                score = tl.dot(seen, tl.trans(keys), input_precision=PRECISION)
            if side == 0:
                j = start_j + tl.arange(0, J)
                key_left = load_vector(ends + 2 * plane, j, TERMS)
                key_right = load_vector(ends + 3 * plane, j, TERMS)
                score = general_score(
                    score, i[:, None], j[None, :], query_left[:, None], query_right[:, None], key_left[None, :],
                    key_right[None, :], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                higher = tl.maximum(peak, tl.max(score, 1))
                probability = tl.exp2(score - higher[:, None])
            else:
                higher = tl.maximum(peak, tl.max(score, 1) * scale + constant)
                probability = tl.exp2(score * scale - (higher - constant)[:, None])
            values = load_tile(value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.sum(probability, 1)
            if DROPOUT:
                kept = draw_kept(first_key, second_key, i[:, None], start_j, tl.arange(0, J)[None, :], threshold)
                probability = tl.where(kept, probability, 0.0)
            summed = summed * shrink[:, None]
            summed = tl.dot(probability.to(values.dtype), values, summed, input_precision=PRECISION)
            peak = higher
    store_tile(context + here, summed * (rescale / total)[:, None], start_i, stride, length, HEAD_SIZE, BLOCK_D, I)
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
    first_key, second_key = dropout_keys(seeds, matrix, DROPOUT)
    i = start_i + tl.arange(0, I)
    queries = load_tile(query + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    incoming = load_tile(by_context + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    outgoing = load_tile(context + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    level = tl.sum(outgoing.to(tl.float32) * incoming.to(tl.float32), 1)
    normaliser = tl.load(log_sum_exp + vector + i, mask=i < length, other=float("inf"))
    query_left = load_vector(ends, i, TERMS)
    query_right = load_vector(ends + plane, i, TERMS)
    tl.store(by_row + i, level, mask=i < length)
    tl.store(by_row + plane + i, normaliser, mask=i < length)
    tl.store(by_row + 2 * plane + i, normaliser - query_left, mask=i < length)
    tl.store(by_row + 3 * plane + i, normaliser - query_right, mask=i < length)
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    by_left = tl.zeros((I,), dtype=tl.float32)
    by_right = tl.zeros((I,), dtype=tl.float32)
    first, left, near, general, right, last = plan_tiles(
        start_i, examples, rows * length, length, REACH, TERMS, SEGMENTS, I, J
    )
    for side in tl.static_range(3):
        seen = shift_queries(queries, key_kernel, side, REACH, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
        taken_off = normaliser
        if side > 0:
            taken_off = normaliser - (query_left if side == 1 else query_right)
        for tile in range(general + last if side == 0 else (left if side == 1 else right)):
            start_j = tile_start(tile, side, first, left, near, general, right, J)
            j = start_j + tl.arange(0, J)
            keys = load_tile(key, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            score = tl.zeros((I, J), dtype=tl.float32)
            if DOT_PRODUCT or (KEY_TERMS and side > 0):
                score = tl.dot(seen, tl.trans(keys), input_precision=PRECISION)
            if side == 0:
                key_left = load_vector(ends + 2 * plane, j, TERMS)
                key_right = load_vector(ends + 3 * plane, j, TERMS)
                score = general_score(
                    score, i[:, None], j[None, :], query_left[:, None], query_right[:, None], key_left[None, :],
                    key_right[None, :], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                probability = tl.exp2(score - taken_off[:, None])
            else:
                probability = tl.exp2(score * scale - taken_off[:, None])
            values = load_tile(value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            by_probability = tl.dot(incoming, tl.trans(values), input_precision=PRECISION)
            if DROPOUT:
                kept = draw_kept(first_key, second_key, i[:, None], start_j, tl.arange(0, J)[None, :], threshold)
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
        gradients = gradients_by_offset(rows_of_band, (i < length)[:, None], by_left, by_right, REACH, BLOCK_G, I)
        by_weights += (head * rows + row).to(tl.int64) * length * G
        store_by_offset(by_weights, gradients, i, length, G, BLOCK_G)
        if QUERY_TERMS:
            columns = load_kernel(query_kernel, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
            summed = tl.dot(gradients.to(columns.dtype), columns, summed, input_precision=PRECISION)
    if DOT_PRODUCT or QUERY_TERMS:
        store_tile(by_query + here, summed * scaling, start_i, stride, length, HEAD_SIZE, BLOCK_D, I)


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
    first_key, second_key = dropout_keys(seeds, matrix, DROPOUT)
    j = start_j + tl.arange(0, J)
    keys = load_tile(key + here, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE)
    values = load_tile(value + here, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE)
    key_left = load_vector(ends + 2 * plane, j, TERMS)
    key_right = load_vector(ends + 3 * plane, j, TERMS)
    summed_key = tl.zeros((J, BLOCK_D), dtype=tl.float32)
    summed_value = tl.zeros((J, BLOCK_D), dtype=tl.float32)
    by_left = tl.zeros((J,), dtype=tl.float32)
    by_right = tl.zeros((J,), dtype=tl.float32)
    first, left, near, general, right, last = plan_tiles(
        start_j, examples, rows * length, length, REACH, TERMS, SEGMENTS, J, I
    )
    for side in tl.static_range(3):
        constant = key_right if side == 1 else key_left  # queries on the left have the keys on their right
        taken_off = by_row + (1 if side == 0 else (3 if side == 1 else 2)) * plane
        for tile in range(general + last if side == 0 else (left if side == 1 else right)):
            start_i = tile_start(tile, side, first, left, near, general, right, I)
            i = start_i + tl.arange(0, I)
            queries = load_tile(query, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE or side > 0)
            score = tl.zeros((J, I), dtype=tl.float32)
            if DOT_PRODUCT:
                score = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            if side == 0:
                normaliser, level = tl.load(taken_off + i), tl.load(by_row + i)
                if not WHOLE:  # so that no others count
                    normaliser = tl.where(i < length, normaliser, float("inf"))
                    level = tl.where(i < length, level, 0.0)
                query_left = load_vector(ends, i, TERMS)
                query_right = load_vector(ends + plane, i, TERMS)
                score = general_score(
                    score, i[None, :], j[:, None], query_left[None, :], query_right[None, :], key_left[:, None],
                    key_right[:, None], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                probability = tl.exp2(score - normaliser[None, :])
            else:
                normaliser, level = tl.load(taken_off + i), tl.load(by_row + i)
                probability = tl.exp2((score * scale + constant[:, None]) - normaliser[None, :])
            incoming = load_tile(by_context, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE or side > 0)
            by_probability = tl.dot(values, tl.trans(incoming), input_precision=PRECISION)
            dropped = probability
            if DROPOUT:
                kept = draw_kept(first_key, second_key, i[None, :], start_j, tl.arange(0, J)[:, None], threshold)
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
    store_tile(by_value + here, summed_value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J)
    if KEY_TERMS:
        met = j[:, None] + tl.arange(0, BLOCK_G)[None, :] - REACH  # the query that meets a key's weight of an offset
        columns_of_band = by_band + met * (2 * PADDED) + PADDED + j[:, None]
        gradients = gradients_by_offset(
            columns_of_band, (met >= 0) & (met < length), by_right, by_left, REACH, BLOCK_G, J
        )
        by_weights += (head * rows + row).to(tl.int64) * length * G
        store_by_offset(by_weights, gradients, j, length, G, BLOCK_G)
        columns = load_kernel(key_kernel, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
        summed_key = tl.dot(gradients.to(columns.dtype), columns, summed_key, input_precision=PRECISION)
    if DOT_PRODUCT or KEY_TERMS:
        store_tile(by_key + here, summed_key * scaling, start_j, stride, length, HEAD_SIZE, BLOCK_D, J)
