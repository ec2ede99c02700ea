"""Backward kernels of `standardize`, by the formulas of `sslfast.ops.rows.standardize_gradient`."""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.rows.standardize_tiles import (
    columns_of,
    load_groups,
    load_tile,
    scale_of,
    steepness_of,
    store_tile,
    strip_of,
)


@triton.jit
def standardize_bwd_sums_kernel(
    dstandardized,  # (N, D), rows a dstride apart
    embeddings,  # (N, D), rows a stride apart
    mean,  # (D,) ACC
    variance,
    rest,  # (D,) with OWN
    dembeddings,  # (N, D) without OWN
    partial,  # (groups, 2, D) float64 with SUMS: of dy, and of z dy
    num_rows,
    dim,
    dstride,
    stride,
    group_rows,
    eps: tl.float64,
    OWN: tl.constexpr,
    SUMS: tl.constexpr,
    UNIT: tl.constexpr,
    ON_DEVIATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """Own statistics: sums. Given ones: the gradient of the rows, and sums where they learn."""
    group, columns, first, last = strip_of(dim, group_rows, num_rows, BLOCK_D)
    middle, left, scale = columns_of(
        mean, variance, rest, columns, dim, eps, OWN, UNIT, ON_DEVIATION
    )
    dy_acc = tl.zeros((ROWS, BLOCK_D), ACC)
    along_acc = tl.zeros((ROWS, BLOCK_D), ACC)
    for begin in range(first, last, ROWS):
        rows = begin + tl.arange(0, ROWS)
        dy = load_tile(dstandardized, rows, columns, last, dim, dstride, ACC)  # 0 below the last
        if SUMS:
            x = load_tile(embeddings, rows, columns, last, dim, stride, ACC)
            z = ((x - middle) - left) * scale
            dy_acc += dy
            along_acc += tl.where((rows < last)[:, None], z * dy, 0.0)
        if not OWN:
            store_tile(dembeddings, rows, columns, last, dim, dy * scale)
    if SUMS:
        to = partial + 2 * group.to(tl.int64) * dim + columns
        inside = columns < dim
        tl.store(to, tl.sum(dy_acc, 0).to(tl.float64), mask=inside)
        tl.store(to + dim, tl.sum(along_acc, 0).to(tl.float64), mask=inside)


@triton.jit
def standardize_bwd_columns_kernel(
    partial,  # (groups, 2, D) float64
    variance,  # (D,) ACC
    dmean,  # (D,) ACC with OWN
    dvariance,
    result,  # (4, D) ACC with OWN: what an element's gradient needs; else (2, D): dmean, dvariance
    dim,
    groups,
    count: tl.float64,
    freedom: tl.float64,
    eps: tl.float64,
    OWN: tl.constexpr,
    UNIT: tl.constexpr,
    ON_DEVIATION: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < dim
    dy = tl.zeros((COLUMNS,), tl.float64)
    along = tl.zeros((COLUMNS,), tl.float64)
    for begin in range(0, groups, GROUPS):
        index = begin + tl.arange(0, GROUPS)
        dy += tl.sum(load_groups(partial, 0, index, columns, groups, dim), 0)
        along += tl.sum(load_groups(partial, 1, index, columns, groups, dim), 0)
    spread = tl.load(variance + columns, mask=inside, other=1.0).to(tl.float64)
    along *= steepness_of(spread, eps, UNIT, ON_DEVIATION)
    element = result.dtype.element_ty
    if OWN:
        slope = tl.load(dvariance + columns, mask=inside, other=0.0).to(tl.float64)
        shift = tl.load(dmean + columns, mask=inside, other=0.0).to(tl.float64)
        tl.store(result + columns, (dy / count).to(element), mask=inside)
        tl.store(result + dim + columns, (along / freedom).to(element), mask=inside)
        tl.store(result + 2 * dim + columns, (2.0 * slope / freedom).to(element), mask=inside)
        tl.store(result + 3 * dim + columns, (shift / count).to(element), mask=inside)
    else:
        scale = scale_of(spread, eps, UNIT, ON_DEVIATION)
        tl.store(result + columns, (-scale * dy).to(element), mask=inside)
        tl.store(result + dim + columns, (-0.5 * along * scale * scale).to(element), mask=inside)


@triton.jit
def standardize_bwd_kernel(
    dstandardized,  # (N, D), rows a dstride apart
    embeddings,  # (N, D), rows a stride apart
    mean,  # (D,) ACC
    variance,
    rest,
    coefficients,  # (4, D) ACC
    dembeddings,  # (N, D)
    num_rows,
    dim,
    dstride,
    stride,
    group_rows,
    eps: tl.float64,
    UNIT: tl.constexpr,
    ON_DEVIATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """dx = scale (dy - its mean - z along) + (x - mean) slope + shift."""
    _, columns, first, last = strip_of(dim, group_rows, num_rows, BLOCK_D)
    middle, left, scale = columns_of(
        mean, variance, rest, columns, dim, eps, True, UNIT, ON_DEVIATION
    )
    inside = columns < dim
    line = coefficients + columns
    dy_mean = tl.load(line, mask=inside, other=0.0)[None, :]
    along = tl.load(line + dim, mask=inside, other=0.0)[None, :]
    slope = tl.load(line + 2 * dim, mask=inside, other=0.0)[None, :]
    shift = tl.load(line + 3 * dim, mask=inside, other=0.0)[None, :]
    for begin in range(first, last, ROWS):
        rows = begin + tl.arange(0, ROWS)
        dy = load_tile(dstandardized, rows, columns, last, dim, dstride, ACC)
        x = load_tile(embeddings, rows, columns, last, dim, stride, ACC)
        centred = (x - middle) - left
        radial = centred * scale * along
        dx = scale * ((dy - dy_mean) - radial) + (centred * slope + shift)
        store_tile(dembeddings, rows, columns, last, dim, dx)
