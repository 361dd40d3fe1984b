"""Attention with convolution terms, as Triton kernels: forward, and backward in two passes, by query and by key.

For a query i and a key j at the offset r = j - i, with reach n, the score is

    q_i . k_j / sqrt(d)  +  band[i, r]                        -n < r < n    inside the band
                         +  query_left[i]  + key_left[j]      r <= -n       keys on the left
                         +  query_right[i] + key_right[j]     r >= n        keys on the right

where key_left[j] is the product of k_j and a column of the key's kernel, which can be added to the query instead:

    q_i . k_j / sqrt(d) + query_left[i] + key_left[j]  =  (q_i + Ck[:, 2n]) . k_j / sqrt(d) + query_left[i]

Tiles of scores are of two kinds. *Plain* tiles lie outside the band and inside one example. They are attention with
shifted queries, where each query's constant is subtracted from its maximum, and cost what attention without terms does.
*General* tiles may contain any pairs: weights are read from the band, and pairs of different examples are masked out.
They load a whole tile of the band, at addresses linear in i and j, and select the pairs inside the band; the other
elements belong to other rows. Tiles without a pair of one example are skipped: programs read where the examples of
their queries (or keys) begin and end.

In backward, each element of the band belongs to one pair, whose gradient is stored directly. The gradients of the
outermost weights are sums over rows and columns, accumulated in registers by the program that owns the row or column.
It then assembles the gradients of its weights by offset and multiplies them by the kernel. There are no atomics, so
gradients are deterministic.

Scores, band and vectors are divided by log 2, since exponentials are powers of 2; gradients are not.

Legend: B rows, S sequence, H heads, d head size, n reach, G 2n+1 padded with zeros, I queries and J keys per tile.
Layouts: queries, keys, values, context and their gradients (B, S, H, d); band: see ``band``; ends (4, B, H, S) float32:
query_left, query_right, key_left, key_right; query_kernel and key_kernel (H, d, G); gradients of weights by offset
(H, B, S, G); examples (3, B, S), from ``Segments.spans``; log_sum_exp (B, H, S) float32; row_statistics (4, B, H, S)
float32: the row sums of context x its gradient, log_sum_exp, and log_sum_exp minus query_left and minus query_right.
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

NOT_SPECIALIZED = ("rows", "length", "threshold")  # one compilation serves all batches


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward(
    query, key, value, band, ends, query_kernel, key_kernel, examples, seeds, context, log_sum_exp,
    rows, heads, length, band_size, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
    TERMS: tl.constexpr, QUERY_WEIGHTS: tl.constexpr, QUERY_TERMS: tl.constexpr, KEY_TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Compute softmax(scores) with dropout, times the values, for I queries of one row and head."""
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
    peak = tl.full((I,), -1e30, dtype=tl.float32)  # finite: the first tiles may hold no key of a query's example
    first, left, near, general, right, last = plan_tiles(
        start_i, examples, rows * length, length, REACH, TERMS, SEGMENTS, I, J
    )
    for side in tl.static_range(3):
        shifted = shift_queries(queries, key_kernel, side, REACH, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
        constant = query_left if side == 1 else query_right
        for tile in range(general + last if side == 0 else (left if side == 1 else right)):
            start_j = tile_start(tile, side, first, left, near, general, right, J)
            keys = load_tile(key, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            score = tl.zeros((I, J), dtype=tl.float32)
            if DOT_PRODUCT or (KEY_TERMS and side > 0):
                score = tl.dot(shifted, tl.trans(keys), input_precision=PRECISION)
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
    query, key, value, band, ends, query_kernel, key_kernel, examples, seeds, context, log_sum_exp, grad_context,
    row_statistics, grad_query, grad_band, grad_weights,
    rows, heads, length, band_size, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
    TERMS: tl.constexpr, QUERY_WEIGHTS: tl.constexpr, QUERY_TERMS: tl.constexpr, KEY_TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Compute ``row_statistics`` and the gradients of I queries, their rows of the band and their weights by offset."""
    start_i, matrix = tl.program_id(0) * I, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    stride, plane = heads * HEAD_SIZE, rows.to(tl.int64) * heads * length
    here, vector = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE, matrix.to(tl.int64) * length
    key, value, row_statistics = key + here, value + here, row_statistics + vector
    band, grad_band = band + matrix.to(tl.int64) * band_size, grad_band + matrix.to(tl.int64) * band_size
    query_kernel, key_kernel = query_kernel + head * HEAD_SIZE * G, key_kernel + head * HEAD_SIZE * G
    ends += vector
    examples += row.to(tl.int64) * length
    scale = scaling / LN_2
    first_key, second_key = dropout_keys(seeds, matrix, DROPOUT)
    i = start_i + tl.arange(0, I)
    queries = load_tile(query + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    incoming = load_tile(grad_context + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    outgoing = load_tile(context + here, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE)
    delta = tl.sum(outgoing.to(tl.float32) * incoming.to(tl.float32), 1)
    normaliser = tl.load(log_sum_exp + vector + i, mask=i < length, other=float("inf"))
    query_left = load_vector(ends, i, TERMS)
    query_right = load_vector(ends + plane, i, TERMS)
    tl.store(row_statistics + i, delta, mask=i < length)
    tl.store(row_statistics + plane + i, normaliser, mask=i < length)
    tl.store(row_statistics + 2 * plane + i, normaliser - query_left, mask=i < length)
    tl.store(row_statistics + 3 * plane + i, normaliser - query_right, mask=i < length)
    summed = tl.zeros((I, BLOCK_D), dtype=tl.float32)
    grad_left = tl.zeros((I,), dtype=tl.float32)
    grad_right = tl.zeros((I,), dtype=tl.float32)
    first, left, near, general, right, last = plan_tiles(
        start_i, examples, rows * length, length, REACH, TERMS, SEGMENTS, I, J
    )
    for side in tl.static_range(3):
        shifted = shift_queries(queries, key_kernel, side, REACH, G, DOT_PRODUCT, KEY_TERMS, HEAD_SIZE, BLOCK_D)
        subtracted = normaliser
        if side > 0:
            subtracted = normaliser - (query_left if side == 1 else query_right)
        for tile in range(general + last if side == 0 else (left if side == 1 else right)):
            start_j = tile_start(tile, side, first, left, near, general, right, J)
            j = start_j + tl.arange(0, J)
            keys = load_tile(key, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            score = tl.zeros((I, J), dtype=tl.float32)
            if DOT_PRODUCT or (KEY_TERMS and side > 0):
                score = tl.dot(shifted, tl.trans(keys), input_precision=PRECISION)
            if side == 0:
                key_left = load_vector(ends + 2 * plane, j, TERMS)
                key_right = load_vector(ends + 3 * plane, j, TERMS)
                score = general_score(
                    score, i[:, None], j[None, :], query_left[:, None], query_right[:, None], key_left[None, :],
                    key_right[None, :], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                probability = tl.exp2(score - subtracted[:, None])
            else:
                probability = tl.exp2(score * scale - subtracted[:, None])
            values = load_tile(value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J, WHOLE or side > 0)
            grad_probability = tl.dot(incoming, tl.trans(values), input_precision=PRECISION)
            if DROPOUT:
                kept = draw_kept(first_key, second_key, i[:, None], start_j, tl.arange(0, J)[None, :], threshold)
                grad_probability = tl.where(kept, grad_probability * rescale, 0.0)
            grad_score = probability * (grad_probability - delta[:, None])
            if DOT_PRODUCT:
                summed = tl.dot(grad_score.to(keys.dtype), keys, summed, input_precision=PRECISION)
            if TERMS:
                if side == 0:
                    offset = j[None, :] - i[:, None]
                    grad_left += tl.sum(tl.where(offset <= -REACH, grad_score, 0.0), 1)
                    grad_right += tl.sum(tl.where(offset >= tl.maximum(REACH, 1), grad_score, 0.0), 1)
                    if REACH > 0:
                        within = (offset < REACH) & (offset > -REACH) & (i < length)[:, None]
                        band_entry = grad_band + (i[:, None] * (2 * PADDED) + PADDED + j[None, :])
                        tl.store(band_entry, grad_score.to(grad_band.dtype.element_ty), mask=within)
                elif side == 1:
                    grad_left += tl.sum(grad_score, 1)
                else:
                    grad_right += tl.sum(grad_score, 1)
    if QUERY_WEIGHTS:
        tl.debug_barrier()  # before reading what other threads have stored of these rows
        offset = tl.arange(0, BLOCK_G)[None, :]
        rows_of_band = grad_band + i[:, None] * (2 * PADDED + 1) + (PADDED - REACH) + offset
        gradients = gradients_by_offset(rows_of_band, (i < length)[:, None], grad_left, grad_right, REACH, BLOCK_G, I)
        grad_weights += (head * rows + row).to(tl.int64) * length * G
        store_by_offset(grad_weights, gradients, i, length, G, BLOCK_G)
        if QUERY_TERMS:
            columns = load_kernel(query_kernel, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
            summed = tl.dot(gradients.to(columns.dtype), columns, summed, input_precision=PRECISION)
    if DOT_PRODUCT or QUERY_TERMS:
        store_tile(grad_query + here, summed * scaling, start_i, stride, length, HEAD_SIZE, BLOCK_D, I)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def backward_key(
    query, key, value, band, ends, query_kernel, key_kernel, examples, seeds, grad_context, row_statistics, grad_band,
    grad_key, grad_value, grad_weights,
    rows, heads, length, band_size, scaling, threshold, rescale,
    HEAD_SIZE: tl.constexpr, REACH: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, DOT_PRODUCT: tl.constexpr,
    TERMS: tl.constexpr, QUERY_WEIGHTS: tl.constexpr, QUERY_TERMS: tl.constexpr, KEY_TERMS: tl.constexpr,
    SEGMENTS: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of J keys, their values and their weights by offset. Tiles are transposed."""
    start_j, matrix = tl.program_id(0) * J, tl.program_id(1)
    row, head = matrix // heads, matrix % heads
    stride, plane = heads * HEAD_SIZE, rows.to(tl.int64) * heads * length
    here, vector = (row.to(tl.int64) * length * heads + head) * HEAD_SIZE, matrix.to(tl.int64) * length
    query, grad_context, row_statistics = query + here, grad_context + here, row_statistics + vector
    band, grad_band = band + matrix.to(tl.int64) * band_size, grad_band + matrix.to(tl.int64) * band_size
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
    grad_left = tl.zeros((J,), dtype=tl.float32)
    grad_right = tl.zeros((J,), dtype=tl.float32)
    first, left, near, general, right, last = plan_tiles(
        start_j, examples, rows * length, length, REACH, TERMS, SEGMENTS, J, I
    )
    for side in tl.static_range(3):
        constant = key_right if side == 1 else key_left  # queries on the left have the keys on their right
        subtracted = row_statistics + (1 if side == 0 else (3 if side == 1 else 2)) * plane
        for tile in range(general + last if side == 0 else (left if side == 1 else right)):
            start_i = tile_start(tile, side, first, left, near, general, right, I)
            i = start_i + tl.arange(0, I)
            queries = load_tile(query, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE or side > 0)
            score = tl.zeros((J, I), dtype=tl.float32)
            if DOT_PRODUCT:
                score = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            if side == 0:
                normaliser, delta = tl.load(subtracted + i), tl.load(row_statistics + i)
                if not WHOLE:  # so that positions beyond the row don't contribute
                    normaliser = tl.where(i < length, normaliser, float("inf"))
                    delta = tl.where(i < length, delta, 0.0)
                query_left = load_vector(ends, i, TERMS)
                query_right = load_vector(ends + plane, i, TERMS)
                score = general_score(
                    score, i[None, :], j[:, None], query_left[None, :], query_right[None, :], key_left[:, None],
                    key_right[:, None], band, examples, length, scale, REACH, PADDED, TERMS, SEGMENTS, WHOLE,
                )  # fmt: skip
                probability = tl.exp2(score - normaliser[None, :])
            else:
                normaliser, delta = tl.load(subtracted + i), tl.load(row_statistics + i)
                probability = tl.exp2((score * scale + constant[:, None]) - normaliser[None, :])
            incoming = load_tile(grad_context, start_i, stride, length, HEAD_SIZE, BLOCK_D, I, WHOLE or side > 0)
            grad_probability = tl.dot(values, tl.trans(incoming), input_precision=PRECISION)
            dropped = probability
            if DROPOUT:
                kept = draw_kept(first_key, second_key, i[None, :], start_j, tl.arange(0, J)[:, None], threshold)
                dropped = tl.where(kept, probability * rescale, 0.0)
                grad_probability = tl.where(kept, grad_probability * rescale, 0.0)
            summed_value = tl.dot(dropped.to(incoming.dtype), incoming, summed_value, input_precision=PRECISION)
            grad_score = probability * (grad_probability - delta[None, :])
            if DOT_PRODUCT:
                summed_key = tl.dot(grad_score.to(queries.dtype), queries, summed_key, input_precision=PRECISION)
            if KEY_TERMS:
                if side == 0:
                    offset = j[:, None] - i[None, :]
                    grad_left += tl.sum(tl.where(offset <= -REACH, grad_score, 0.0), 1)
                    grad_right += tl.sum(tl.where(offset >= tl.maximum(REACH, 1), grad_score, 0.0), 1)
                elif side == 1:
                    grad_right += tl.sum(grad_score, 1)
                else:
                    grad_left += tl.sum(grad_score, 1)
    store_tile(grad_value + here, summed_value, start_j, stride, length, HEAD_SIZE, BLOCK_D, J)
    if KEY_TERMS:
        met = j[:, None] + tl.arange(0, BLOCK_G)[None, :] - REACH  # the query to which a key's weight by offset applies
        columns_of_band = grad_band + met * (2 * PADDED) + PADDED + j[:, None]
        gradients = gradients_by_offset(
            columns_of_band, (met >= 0) & (met < length), grad_right, grad_left, REACH, BLOCK_G, J
        )
        grad_weights += (head * rows + row).to(tl.int64) * length * G
        store_by_offset(grad_weights, gradients, j, length, G, BLOCK_G)
        columns = load_kernel(key_kernel, G, HEAD_SIZE, BLOCK_D, BLOCK_G)
        summed_key = tl.dot(gradients.to(columns.dtype), columns, summed_key, input_precision=PRECISION)
    if DOT_PRODUCT or KEY_TERMS:
        store_tile(grad_key + here, summed_key * scaling, start_j, stride, length, HEAD_SIZE, BLOCK_D, J)
