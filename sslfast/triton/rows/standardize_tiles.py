"""What the kernels of `standardize` share: strips of columns, tiles, scales."""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton._rounding import quotient, root


@triton.jit
def load_tile(matrix, rows, columns, last, dim, stride, ACC: tl.constexpr):
    """(ROWS, BLOCK_D) widened; 0 outside the group and the matrix."""
    inside = (rows < last)[:, None] & (columns < dim)[None, :]
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(matrix + offsets, mask=inside, other=0.0).to(ACC)


@triton.jit
def store_tile(matrix, rows, columns, last, dim, values):
    inside = (rows < last)[:, None] & (columns < dim)[None, :]
    offsets = rows.to(tl.int64)[:, None] * dim + columns[None, :]
    tl.store(matrix + offsets, values.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def strip_of(dim, group_rows, num_rows, BLOCK_D: tl.constexpr):
    """Group, columns (BLOCK_D,), first row and end of the group; neighbours share their rows."""
    strips = tl.cdiv(dim, BLOCK_D)
    group = tl.program_id(0) // strips
    columns = tl.program_id(0) % strips * BLOCK_D + tl.arange(0, BLOCK_D)
    first = group.to(tl.int64) * group_rows
    return group, columns, first, tl.minimum(first + group_rows, num_rows)


@triton.jit
def divisor_of(variance, eps, ON_DEVIATION: tl.constexpr):
    least = tl.full(variance.shape, eps, variance.dtype)
    if ON_DEVIATION:
        divisor = root(variance) + least
    else:
        divisor = root(variance + least)
    return divisor


@triton.jit
def scale_of(variance, eps, UNIT: tl.constexpr, ON_DEVIATION: tl.constexpr):
    """1 / divisor, and 0 where that would be infinite."""
    one = tl.full(variance.shape, 1.0, variance.dtype)
    if UNIT:
        divisor = divisor_of(variance, eps, ON_DEVIATION)
        zero = divisor == 0
        one = tl.where(zero, 0.0, quotient(one, tl.where(zero, one, divisor)))
    return one


@triton.jit
def steepness_of(variance, eps, UNIT: tl.constexpr, ON_DEVIATION: tl.constexpr):
    """q of dscale/dvariance = -q scale^3 / 2, as in the contract's gradient."""
    one = tl.full(variance.shape, 1.0, variance.dtype)
    if not UNIT:
        one = tl.zeros_like(one)
    elif ON_DEVIATION:
        deviation = root(variance)
        zero = deviation == 0
        divisor = divisor_of(variance, eps, True)
        q = quotient(divisor, tl.where(zero, one, deviation))
        one = tl.where(zero, 0.0, q)
    return one


@triton.jit
def columns_of(
    mean, variance, rest, columns, dim, eps,
    OWN: tl.constexpr, UNIT: tl.constexpr, ON_DEVIATION: tl.constexpr,
):  # fmt: skip
    """(1, BLOCK_D) each: mean, what its rounding left, scale."""
    inside = columns < dim
    middle = tl.load(mean + columns, mask=inside, other=0.0)
    left = tl.zeros_like(middle)
    if OWN:
        left = tl.load(rest + columns, mask=inside, other=0.0)
    scale = scale_of(tl.load(variance + columns, mask=inside, other=1.0), eps, UNIT, ON_DEVIATION)
    return middle[None, :], left[None, :], scale[None, :]


@triton.jit
def load_groups(partial, line: tl.constexpr, groups, columns, num_groups, dim):
    """(GROUPS, COLUMNS) of one of the two lines of sums that each group has left, else 0."""
    inside = (groups < num_groups)[:, None] & (columns < dim)[None, :]
    lines = 2 * groups.to(tl.int64)[:, None] + line
    return tl.load(partial + lines * dim + columns[None, :], mask=inside, other=0.0)
