"""Forward kernels of `similarity_logsumexp`: bound, sums, their logarithms, sums redone.

A program owns a group of row blocks and a split of the key blocks. It adds a tile's row sums up in
registers and its column sums in a slot of its own, so nothing is atomic, the order of additions is
fixed, and scratch is (groups + splits) numbers a row, whatever N and M. In the symmetric form both
groups and splits are the G groups of rows, and a program owns an unordered pair of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.similarity.tiles import (
    BIAS,
    KEY_SQUARE,
    LN2,
    QUERY_SQUARE,
    REDONE,
    SCALE,
    TINY,
    add_parts,
    common_shift,
    load_offset,
    load_rows,
    load_scale,
    load_vector,
    similarities,
)


@triton.jit
def _atomic_largest(word, values):
    """Raise a header word to the largest of `values`, which are >= 0 or NaN (left out)."""
    largest = tl.max(tl.where(values >= 0.0, values, 0.0), 0)
    tl.atomic_max(word, largest.to(tl.int32, bitcast=True))


@triton.jit
def _squares(matrix, rows, num_rows, dim, stride, BLOCK_D: tl.constexpr):
    total = tl.zeros_like(rows).to(tl.float32)
    for first in range(0, dim, BLOCK_D):
        tile = load_rows(matrix, rows, first + tl.arange(0, BLOCK_D), num_rows, stride)
        tile = tile.to(tl.float32)
        total += tl.sum(tile * tile, 1)
    return total


@triton.jit
def similarity_logsumexp_bound_kernel(
    queries,
    keys,
    scale,
    bias,
    header,
    num_rows,
    num_keys,
    dim,
    query_stride,
    key_stride,
    SYMMETRIC: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Largest squared norms, |scale| and bias, into the header."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(0) * BLOCK < num_rows:
        squares = _squares(queries, rows, num_rows, dim, query_stride, BLOCK_D)
        _atomic_largest(header + QUERY_SQUARE, squares)
        if SYMMETRIC:
            _atomic_largest(header + KEY_SQUARE, squares)
        if ROW_SCALE:
            _atomic_largest(header + SCALE, tl.abs(load_vector(scale, rows, num_rows, 0.0)))
    if not SYMMETRIC:
        if tl.program_id(0) * BLOCK < num_keys:
            squares = _squares(keys, rows, num_keys, dim, key_stride, BLOCK_D)
            _atomic_largest(header + KEY_SQUARE, squares)
            if HAS_BIAS:
                _atomic_largest(header + BIAS, load_vector(bias, rows, num_keys, 0.0))


@triton.jit
def _pair(program, groups):
    """The unordered pair (p <= s) of groups; the halves on the diagonal come last."""
    off_diagonal = groups * (groups - 1) // 2
    # floor is off by one at most, where the root is nearly whole
    s = ((1.0 + tl.sqrt(1.0 + 8.0 * program.to(tl.float32))) * 0.5).to(tl.int32)
    s = tl.where(s * (s - 1) // 2 > program, s - 1, s)
    s = tl.where((s + 1) * s // 2 <= program, s + 1, s)
    p = program - s * (s - 1) // 2
    diagonal = program >= off_diagonal
    return (
        tl.where(diagonal, program - off_diagonal, p),
        tl.where(diagonal, program - off_diagonal, s),
    )


@triton.jit
def similarity_logsumexp_fwd_kernel(
    queries,
    keys,
    scale,
    bias,
    query_ids,
    key_ids,
    header,
    row_parts,
    col_parts,
    mean_parts,
    exponentials,
    num_rows,
    num_keys,
    dim,
    query_stride,
    key_stride,
    exponential_stride,
    groups,
    group_blocks,
    split_blocks,
    SYMMETRIC: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    MEANS: tl.constexpr,
    KEEP: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of exp2(x2 - c): row_parts (splits, N), col_parts (groups, M).

    MEANS adds mean_parts (splits, N, D), the keys under these weights; KEEP stores the
    exponentials (N, stride).
    """
    TWO_SIDED: tl.constexpr = SYMMETRIC or COLUMNS
    if SYMMETRIC:
        group, split = _pair(tl.program_id(0), groups)
    else:
        group, split = tl.program_id(0) % groups, tl.program_id(0) // groups
    features = tl.arange(0, BLOCK_D)
    shift = common_shift(header, scale, ROW_SCALE)
    first_i = group * group_blocks
    last_i = tl.minimum(first_i + group_blocks, tl.cdiv(num_rows, BLOCK_M))
    last_j = tl.minimum((split + 1) * split_blocks, tl.cdiv(num_keys, BLOCK_N))
    for i in range(first_i, last_i):
        rows = i * BLOCK_M + tl.arange(0, BLOCK_M)
        factor = load_scale(scale, rows, num_rows, ROW_SCALE)
        if ROW_SCALE:
            factor = factor[:, None]
        if RESIDENT:
            query_tile = load_rows(queries, rows, features, num_rows, query_stride)
        else:
            query_tile = 0
        if HAS_IDS:
            row_ids = load_vector(query_ids, rows, num_rows, 0)
        row_acc = tl.zeros((BLOCK_M,), dtype=tl.float32)
        if MEANS:
            mean_acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        first_j = split * split_blocks
        if SYMMETRIC:
            first_j = tl.maximum(first_j, i)
        for j in range(first_j, last_j):
            columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
            s = similarities(
                queries, query_tile, rows, num_rows, query_stride, keys, columns, num_keys,
                key_stride, dim, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
            offset = load_offset(bias, columns, num_keys, HAS_BIAS) - shift
            x2 = s * factor + offset[None, :]
            if TWO_SIDED:
                x2 = tl.where((rows < num_rows)[:, None], x2, float("-inf"))
            e = tl.exp2(x2)
            if HAS_IDS:
                column_ids = load_vector(key_ids, columns, num_keys, 0)
                e = tl.where(row_ids[:, None] == column_ids[None, :], 0.0, e)
            row_acc += tl.sum(e, 1)
            if TWO_SIDED:
                # In the symmetric form a tile on the diagonal holds both orders of its pairs.
                col_sum = tl.sum(e, 0)
                if SYMMETRIC:
                    col_sum = tl.where(i == j, 0.0, col_sum)
                part = col_parts + group.to(tl.int64) * num_keys + columns
                before = tl.load(part, mask=(columns < num_keys) & (i > first_i), other=0.0)
                tl.store(part, before + col_sum, mask=columns < num_keys)
            if MEANS:
                key_tile = load_rows(keys, columns, features, num_keys, key_stride)
                weights = e.to(key_tile.dtype)
                mean_acc = tl.dot(weights, key_tile, mean_acc, input_precision=PRECISION)
            if KEEP:
                kept = e.to(exponentials.dtype.element_ty)
                inside = (rows < num_rows)[:, None] & (columns < num_keys)[None, :]
                at = rows.to(tl.int64)[:, None] * exponential_stride + columns[None, :]
                tl.store(exponentials + at, kept, mask=inside)
                if SYMMETRIC:
                    at = columns.to(tl.int64)[:, None] * exponential_stride + rows[None, :]
                    inside = (columns < num_keys)[:, None] & (rows < num_rows)[None, :]
                    tl.store(exponentials + at, kept.T, mask=inside & (i != j))
        row_part = split.to(tl.int64) * num_rows + rows
        tl.store(row_parts + row_part, row_acc, mask=rows < num_rows)
        if MEANS:
            inside = (rows < num_rows)[:, None]
            tl.store(
                mean_parts + row_part[:, None] * dim + features[None, :], mean_acc, mask=inside
            )
        if TWO_SIDED:
            # The next row block adds to the column sums that this one stored.
            tl.debug_barrier()


@triton.jit
def _store_sum(lse, shifts, totals, index, inside, shift, total):
    tl.store(lse + index, (shift + tl.log2(total)) * LN2, mask=inside)
    tl.store(shifts + index, shift, mask=inside)
    tl.store(totals + index, total, mask=inside)


@triton.jit
def similarity_logsumexp_sum_kernel(
    scale,
    header,
    parts,
    other_parts,
    mean_parts,
    lse,
    shifts,
    totals,
    means,
    length,
    dim,
    num_parts,
    group_blocks,
    SYMMETRIC: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    MEANS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds the parts (num_parts, length) in order; lse = c + log(total)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < length
    shift = common_shift(header, scale, ROW_SCALE)
    group = (tl.program_id(0) // group_blocks).to(tl.int64)
    if SYMMETRIC:
        # Group g owns rows of the pairs (g, s >= g) and columns of the pairs (p <= g, g).
        total = add_parts(parts, group, num_parts, length, index, inside)
        total += add_parts(other_parts, group * 0, group + 1, length, index, inside)
    else:
        total = add_parts(parts, group * 0, num_parts, length, index, inside)
    _store_sum(lse, shifts, totals, index, inside, shift + tl.zeros_like(total), total)
    if MEANS:
        features = tl.arange(0, BLOCK_D)[None, :]
        at = index.to(tl.int64)[:, None] * dim + features
        inside = inside[:, None]
        mean = add_parts(
            mean_parts, group * 0, num_parts, tl.cast(length, tl.int64) * dim, at, inside
        )
        tl.store(means + at, mean / total[:, None], mask=inside)


@triton.jit
def similarity_logsumexp_redo_kernel(
    owners,
    others,
    scale,
    bias,
    owner_ids,
    other_ids,
    header,
    lse,
    shifts,
    totals,
    means,
    num_owners,
    num_others,
    dim,
    owner_stride,
    other_stride,
    ROW_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    MEANS: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums too small for the common shift, again with the maximum tracked; else leaves at once."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tiny = load_vector(totals, rows, num_owners, 1e30) < num_others * TINY
    if tl.max(tiny.to(tl.int32), 0) > 0:
        features = tl.arange(0, BLOCK_D)
        factor = load_scale(scale, rows, num_owners, ROW_SCALE)
        if ROW_SCALE:
            factor = factor[:, None]
        if RESIDENT:
            owner_tile = load_rows(owners, rows, features, num_owners, owner_stride)
        else:
            owner_tile = 0
        if HAS_IDS:
            row_ids = load_vector(owner_ids, rows, num_owners, 0)
        largest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        if MEANS:
            mean_acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        for j in range(tl.cdiv(num_others, BLOCK_N)):
            columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
            s = similarities(
                owners, owner_tile, rows, num_owners, owner_stride, others, columns, num_others,
                other_stride, dim, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
            x2 = s * factor + load_offset(bias, columns, num_others, HAS_BIAS)[None, :]
            # An infinite row times the zeros beyond the last key is NaN, which is not its sum.
            x2 = tl.where((columns < num_others)[None, :], x2, float("-inf"))
            if HAS_IDS:
                column_ids = load_vector(other_ids, columns, num_others, 0)
                x2 = tl.where(row_ids[:, None] == column_ids[None, :], float("-inf"), x2)
            raised = tl.maximum(largest, tl.max(x2, 1))
            shift = tl.where(raised == float("-inf"), 0.0, raised)
            e = tl.exp2(x2 - shift[:, None])
            rescale = tl.exp2(largest - shift)
            total = total * rescale + tl.sum(e, 1)
            if MEANS:
                other_tile = load_rows(others, columns, features, num_others, other_stride)
                mean_acc = mean_acc * rescale[:, None]
                weights = e.to(other_tile.dtype)
                mean_acc = tl.dot(weights, other_tile, mean_acc, input_precision=PRECISION)
            largest = raised
        empty = largest == float("-inf")
        shift = tl.where(empty, 0.0, largest)
        infinite = largest == float("inf")
        total = tl.where(infinite, 1.0, total)
        redo = tiny & (rows < num_owners)
        _store_sum(lse, shifts, totals, rows, redo, shift, total)
        if MEANS:
            inside = redo[:, None]
            at = rows.to(tl.int64)[:, None] * dim + features[None, :]
            divisor = tl.where(empty, 1.0, total)
            tl.store(means + at, mean_acc / divisor[:, None], mask=inside)
        tl.atomic_max(header + REDONE, tl.max((redo & ~empty).to(tl.int32), 0))
