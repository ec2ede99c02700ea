"""Backward kernels of `similarity_logsumexp`.

With w_i = drow_i / total_i and v_j = dcol_j / total_j, both sums being those of exp2(x2 - c),

    G_ij = exp2(x2_ij - c) (w_i + v_j)

needs one exponential for both sides and no logarithm. Where a sum was redone with a shift of its
own (a flag on the device), a second launch takes the place of the first: whichever of the two is
not wanted leaves at once, and nothing is read back.

Up to 256 features the owner's rows, their gradient and a tile of G fit the registers of one
program; beyond, G is formed for some thousand queries at a time and the library multiplies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.similarity.tiles import (
    LOG2E,
    REDONE,
    add_parts,
    common_shift,
    load_offset,
    load_rows,
    load_vector,
    similarities,
    weight_of,
)

# Which launch a program belongs to.
ALWAYS, UNLESS_REDONE, IF_REDONE = (tl.constexpr(when) for when in range(3))


@triton.jit
def _wanted(header, WHEN: tl.constexpr):
    if WHEN == ALWAYS:
        return True
    redone = tl.load(header + REDONE) != 0
    if WHEN == IF_REDONE:
        return redone
    else:
        return redone == 0


@triton.jit
def _side(gradient, shifts, totals, index, length, power, HALF: tl.constexpr):
    """(BLOCK,) weight and shift of one side's sums; beyond the last they leave G at 0."""
    incoming = load_vector(gradient, index, length, 0.0)
    weight = weight_of(incoming, load_vector(totals, index, length, 1.0))
    if HALF:
        weight = weight * tl.load(power)
    return weight, load_vector(shifts, index, length, float("inf"))


@triton.jit
def _gradient(
    x2,
    weight,
    shift,
    other_weight,
    other_shift,
    common,
    OWNER_SUMS: tl.constexpr,
    OTHER_SUMS: tl.constexpr,
    COMMON: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) of G from exponents."""
    if COMMON:
        return _weighted(tl.exp2(x2 - common), weight, other_weight, OWNER_SUMS, OTHER_SUMS)
    if OWNER_SUMS:
        g = tl.exp2(x2 - shift[:, None]) * weight[:, None]
        if OTHER_SUMS:
            g += tl.exp2(x2 - other_shift[None, :]) * other_weight[None, :]
        return g
    else:
        return tl.exp2(x2 - other_shift[None, :]) * other_weight[None, :]


@triton.jit
def _weighted(e, weight, other_weight, OWNER_SUMS: tl.constexpr, OTHER_SUMS: tl.constexpr):
    """(BLOCK_M, BLOCK_N) of G from exponentials with the common shift."""
    if OWNER_SUMS and OTHER_SUMS:
        return e * (weight[:, None] + other_weight[None, :])
    if OWNER_SUMS:
        return e * weight[:, None]
    else:
        return e * other_weight[None, :]


@triton.jit
def similarity_logsumexp_bwd_kernel(
    owners,
    others,
    scale,
    bias,
    owner_ids,
    other_ids,
    header,
    owner_gradient,
    owner_shifts,
    owner_totals,
    other_gradient,
    other_shifts,
    other_totals,
    power,
    exponentials,
    parts,
    bias_parts,
    num_owners,
    num_others,
    dim,
    owner_stride,
    other_stride,
    exponential_stride,
    owner_blocks,
    split_blocks,
    WHEN: tl.constexpr,
    OWN_KEYS: tl.constexpr,
    OWNER_SUMS: tl.constexpr,
    OTHER_SUMS: tl.constexpr,
    COMMON: tl.constexpr,
    CACHED: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HALF: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """parts (splits, owners, D): sum over a split of the others of G times their rows.

    G is transposed where keys own the rows; with a scale a query it then takes that scale along.
    """
    if _wanted(header, WHEN):
        block, split = tl.program_id(0) % owner_blocks, tl.program_id(0) // owner_blocks
        rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
        features = tl.arange(0, BLOCK_D)
        owner_tile = load_rows(owners, rows, features, num_owners, owner_stride)
        common = 0.0
        if COMMON and not CACHED:
            common = common_shift(header, scale, ROW_SCALE)
        weight, shift = 0.0, 0.0
        if OWNER_SUMS:
            weight, shift = _side(
                owner_gradient, owner_shifts, owner_totals, rows, num_owners, power, HALF
            )
        if HAS_IDS and not CACHED:
            row_ids = load_vector(owner_ids, rows, num_owners, 0)
        if ROW_SCALE and not OWN_KEYS:
            factor = (load_vector(scale, rows, num_owners, 0.0) * LOG2E)[:, None]
        elif not ROW_SCALE:
            factor = tl.load(scale) * LOG2E
        if OWN_KEYS:
            row_offset = load_offset(bias, rows, num_owners, HAS_BIAS)
        acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        if NEED_BIAS:
            bias_acc = tl.zeros((BLOCK_M,), dtype=tl.float32)
        last_j = tl.minimum((split + 1) * split_blocks, tl.cdiv(num_others, BLOCK_N))
        for j in range(split * split_blocks, last_j):
            columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
            other_tile = load_rows(others, columns, features, num_others, other_stride)
            other_weight, other_shift = 0.0, 0.0
            if OTHER_SUMS:
                other_weight, other_shift = _side(
                    other_gradient, other_shifts, other_totals, columns, num_others, power, HALF
                )
            if ROW_SCALE and OWN_KEYS:
                query_scale = load_vector(scale, columns, num_others, 0.0)
                factor = (query_scale * LOG2E)[None, :]
            if CACHED:
                inside = (rows < num_owners)[:, None] & (columns < num_others)[None, :]
                if OWN_KEYS:
                    at = columns.to(tl.int64)[None, :] * exponential_stride + rows[:, None]
                else:
                    at = rows.to(tl.int64)[:, None] * exponential_stride + columns[None, :]
                e = tl.load(exponentials + at, mask=inside, other=0.0).to(tl.float32)
                g = _weighted(e, weight, other_weight, OWNER_SUMS, OTHER_SUMS)
            else:
                s = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
                x2 = tl.dot(owner_tile, other_tile.T, s, input_precision=PRECISION) * factor
                if OWN_KEYS:
                    # A key's own weight would meet the zeros beyond the last query, and half
                    # precision may hold it as infinite.
                    inside = (columns < num_others)[None, :]
                    x2 = tl.where(inside, x2 + row_offset[:, None], float("-inf"))
                else:
                    x2 += load_offset(bias, columns, num_others, HAS_BIAS)[None, :]
                g = _gradient(
                    x2, weight, shift, other_weight, other_shift, common,
                    OWNER_SUMS, OTHER_SUMS, COMMON,
                )  # fmt: skip
                # Last, since an excluded pair may exceed the sum that it is not part of.
                if HAS_IDS:
                    column_ids = load_vector(other_ids, columns, num_others, 0)
                    g = tl.where(row_ids[:, None] == column_ids[None, :], 0.0, g)
            if NEED_BIAS:
                bias_acc += tl.sum(g, 1)
            if ROW_SCALE and OWN_KEYS:
                g = g * query_scale[None, :]
            acc = tl.dot(g.to(other_tile.dtype), other_tile, acc, input_precision=PRECISION)
        row_part = split.to(tl.int64) * num_owners + rows
        inside = (rows < num_owners)[:, None]
        tl.store(parts + row_part[:, None] * dim + features[None, :], acc, mask=inside)
        if NEED_BIAS:
            tl.store(bias_parts + row_part, bias_acc, mask=rows < num_owners)


@triton.jit
def similarity_logsumexp_gradient_kernel(
    queries,
    keys,
    scale,
    bias,
    query_ids,
    key_ids,
    header,
    drows,
    row_shifts,
    row_totals,
    dcols,
    col_shifts,
    col_totals,
    power,
    exponentials,
    gradient,
    scaled_gradient,
    largest_scale,
    first_row,
    chunk_blocks,
    num_rows,
    num_keys,
    dim,
    query_stride,
    key_stride,
    exponential_stride,
    gradient_stride,
    WHEN: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    COMMON: tl.constexpr,
    CACHED: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HALF: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """G of the queries from `first_row` on, one tile a program, in the dtype of the rows.

    SCALED: also scale_i / largest_scale G_ij, which the gradient of keys takes.
    """
    if _wanted(header, WHEN):
        block, j = tl.program_id(0) % chunk_blocks, tl.program_id(0) // chunk_blocks
        chunk_rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
        rows = first_row + chunk_rows
        columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (rows < num_rows)[:, None] & (columns < num_keys)[None, :]
        weight, shift = _side(drows, row_shifts, row_totals, rows, num_rows, power, HALF)
        other_weight, other_shift = 0.0, 0.0
        if TWO_SIDED:
            other_weight, other_shift = _side(
                dcols, col_shifts, col_totals, columns, num_keys, power, HALF
            )
        if CACHED:
            at = rows.to(tl.int64)[:, None] * exponential_stride + columns[None, :]
            e = tl.load(exponentials + at, mask=inside, other=0.0).to(tl.float32)
            g = _weighted(e, weight, other_weight, True, TWO_SIDED)
        else:
            s = similarities(
                queries, 0, rows, num_rows, query_stride, keys, columns, num_keys, key_stride,
                dim, False, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
            if ROW_SCALE:
                x2 = s * (load_vector(scale, rows, num_rows, 0.0) * LOG2E)[:, None]
            else:
                x2 = s * (tl.load(scale) * LOG2E)
            x2 += load_offset(bias, columns, num_keys, HAS_BIAS)[None, :]
            common = 0.0
            if COMMON:
                common = common_shift(header, scale, ROW_SCALE)
            g = _gradient(
                x2, weight, shift, other_weight, other_shift, common, True, TWO_SIDED, COMMON
            )
            if HAS_IDS:
                row_ids = load_vector(query_ids, rows, num_rows, 0)
                column_ids = load_vector(key_ids, columns, num_keys, 0)
                g = tl.where(row_ids[:, None] == column_ids[None, :], 0.0, g)
        at = chunk_rows.to(tl.int64)[:, None] * gradient_stride + columns[None, :]
        tl.store(gradient + at, g.to(gradient.dtype.element_ty), mask=inside)
        if SCALED:
            part = load_vector(scale, rows, num_rows, 0.0) / tl.load(largest_scale)
            scaled = (g * part[:, None]).to(gradient.dtype.element_ty)
            tl.store(scaled_gradient + at, scaled, mask=inside)


@triton.jit
def similarity_logsumexp_finish_kernel(
    parts,
    rows,
    scale,
    unit,
    gradient,
    dots,
    length,
    dim,
    row_stride,
    num_parts,
    ROW_SCALE: tl.constexpr,
    SCALED: tl.constexpr,
    DOTS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds parts (num_parts, length, D) in order: gradient = scale sum, dots_i = <row_i, sum_i>.

    `unit` takes back the power of two that half precision was multiplied by (and, for the keys of
    queries with a scale each, the largest scale).
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dot = tl.zeros((BLOCK,), dtype=tl.float32)
    factor = tl.load(unit)
    if SCALED and not ROW_SCALE:
        factor = factor * tl.load(scale)
    for first in range(0, dim, BLOCK_D):
        features = first + tl.arange(0, BLOCK_D)
        inside = (index < length)[:, None]
        at = index.to(tl.int64)[:, None] * dim + features[None, :]
        total = add_parts(parts, 0, num_parts, tl.cast(length, tl.int64) * dim, at, inside)
        if DOTS:
            row = load_rows(rows, index, features, length, row_stride)
            dot += tl.sum(row.to(tl.float32) * total, 1)
        if GRADIENT:
            value = total * factor
            if SCALED and ROW_SCALE:
                value = value * load_vector(scale, index, length, 0.0)[:, None]
            tl.store(gradient + at, value.to(gradient.dtype.element_ty), mask=inside)
    if DOTS:
        tl.store(dots + index, dot * tl.load(unit), mask=index < length)
