"""Forward kernels of `standardize`: moments of groups of rows, their merging, the rows."""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.rows.standardize_tiles import (
    columns_of,
    load_groups,
    load_tile,
    store_tile,
    strip_of,
)


@triton.jit
def standardize_fwd_moments_kernel(
    embeddings,  # (N, D), rows a stride apart
    partial,  # (groups, 2, D) float64: mean above that of row 0, sum of squared deviations
    num_rows,
    dim,
    stride,
    group_rows,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    group, columns, first, last = strip_of(dim, group_rows, num_rows, BLOCK_D)
    slots = tl.arange(0, ROWS)
    tile = load_tile(embeddings, first + slots, columns, last, dim, stride, ACC)
    # the mean of the first tile, exact where the column is constant: x - anchor is small
    lead = tl.load(embeddings + first * stride + columns, mask=columns < dim, other=0.0).to(ACC)
    known = (first + slots < last)[:, None]
    count = tl.minimum(last - first, ROWS).to(ACC)
    anchor = lead + tl.sum(tl.where(known, tile - lead[None, :], 0.0), 0) / count  # (BLOCK_D,)
    mean_acc = tl.zeros((ROWS, BLOCK_D), ACC)
    square_acc = tl.zeros((ROWS, BLOCK_D), ACC)
    seen = tl.zeros((1, 1), ACC)
    for begin in range(first, last, ROWS):
        rows = begin + slots
        tile = load_tile(embeddings, rows, columns, last, dim, stride, ACC) - anchor[None, :]
        seen += 1.0
        delta = tl.where((rows < last)[:, None], tile - mean_acc, 0.0)
        mean_acc += delta * (1.0 / seen)  # Welford 1962, in every slot
        square_acc += delta * tl.where((rows < last)[:, None], tile - mean_acc, 0.0)
    # slots have seen as many rows, the last of them perhaps one less
    counts = ((last - first - slots + ROWS - 1) // ROWS).to(ACC)[:, None]  # (ROWS, 1)
    total = (last - first).to(ACC)
    mean = tl.sum(mean_acc * counts, 0) / total  # (BLOCK_D,)
    apart = tl.where(counts > 0, mean_acc - mean[None, :], 0.0)
    rest = tl.sum(apart * counts, 0) / total
    square = tl.sum(square_acc + apart * apart * counts, 0) - total * rest * rest
    zero = tl.load(embeddings + columns, mask=columns < dim, other=0.0).to(tl.float64)
    mean64 = (anchor.to(tl.float64) - zero) + (mean.to(tl.float64) + rest.to(tl.float64))
    to = partial + 2 * group.to(tl.int64) * dim + columns
    tl.store(to, mean64, mask=columns < dim)
    tl.store(to + dim, square.to(tl.float64), mask=columns < dim)


@triton.jit
def standardize_fwd_columns_kernel(
    embeddings,  # (N, D): its row 0
    partial,  # (groups, 2, D) float64
    mean,  # (D,) ACC
    variance,  # (D,) ACC
    rest,  # (D,) ACC: what rounding the mean left
    dim,
    groups,
    num_rows: tl.float64,
    group_rows: tl.float64,
    freedom: tl.float64,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < dim
    mean_acc = tl.zeros((COLUMNS,), tl.float64)
    square_acc = tl.zeros((COLUMNS,), tl.float64)
    seen = tl.zeros((1,), tl.float64)
    for begin in range(0, groups, GROUPS):
        index = begin + tl.arange(0, GROUPS)
        counts = tl.minimum(
            tl.maximum(num_rows - index.to(tl.float64) * group_rows, 0.0), group_rows
        )
        means = load_groups(partial, 0, index, columns, groups, dim)  # (GROUPS, COLUMNS)
        squares = load_groups(partial, 1, index, columns, groups, dim)
        count = tl.sum(counts, 0)
        mean_of_these = tl.sum(means * counts[:, None], 0) / count  # (COLUMNS,)
        apart = means - mean_of_these[None, :]
        square = tl.sum(squares + apart * apart * counts[:, None], 0)
        delta = mean_of_these - mean_acc
        share = count / (seen + count)
        mean_acc += delta * share
        square_acc += square + delta * delta * (seen * share)  # Chan et al. 1979
        seen += count
    zero = tl.load(embeddings + columns, mask=inside, other=0.0).to(tl.float64)
    middle = (zero + mean_acc).to(mean.dtype.element_ty)
    left = (zero - middle.to(tl.float64)) + mean_acc
    tl.store(mean + columns, middle, mask=inside)
    tl.store(rest + columns, left.to(rest.dtype.element_ty), mask=inside)
    spread = square_acc / freedom
    tl.store(variance + columns, spread.to(variance.dtype.element_ty), mask=inside)


@triton.jit
def standardize_fwd_kernel(
    embeddings,  # (N, D), rows a stride apart
    mean,  # (D,) ACC
    variance,
    rest,  # (D,) with OWN
    standardized,  # (N, D)
    num_rows,
    dim,
    stride,
    group_rows,
    eps: tl.float64,
    OWN: tl.constexpr,
    UNIT: tl.constexpr,
    ON_DEVIATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    _, columns, first, last = strip_of(dim, group_rows, num_rows, BLOCK_D)
    middle, left, scale = columns_of(
        mean, variance, rest, columns, dim, eps, OWN, UNIT, ON_DEVIATION
    )
    for begin in range(first, last, ROWS):
        rows = begin + tl.arange(0, ROWS)
        x = load_tile(embeddings, rows, columns, last, dim, stride, ACC)
        store_tile(standardized, rows, columns, last, dim, ((x - middle) - left) * scale)
