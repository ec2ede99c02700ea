"""Backward kernel of `cross_frobenius`: a product with what the forward pass kept, finished."""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.correlation.tiles import product_tile, rectangle_tile


@triton.jit
def _store_gradient(
    tile,
    rows,
    columns,
    factor,
    other,
    ddiagonal,
    diagonal,
    gradient,
    num_rows,
    num_columns,
    other_stride,
    gradient_stride,
    SIDES: tl.constexpr,
    SPLIT_DIAGONAL: tl.constexpr,
    GRAM: tl.constexpr,
):
    """Adds weight other to a tile, rows as (BLOCK_M, 1)."""
    inside = (rows < num_rows) & (columns < num_columns)[None, :]
    if SPLIT_DIAGONAL:
        here = columns < num_columns
        weight = SIDES * tl.load(ddiagonal + columns, mask=here, other=0.0)
        if GRAM:
            weight -= factor * tl.load(diagonal + columns, mask=here, other=0.0)
        met = tl.load(other + rows * other_stride + columns[None, :], mask=inside, other=0.0)
        tile += weight[None, :] * met.to(tl.float32)
    value = tile.to(gradient.dtype.element_ty)
    tl.store(gradient + rows * gradient_stride + columns[None, :], value, mask=inside)


@triton.jit
def cross_frobenius_bwd_kernel(
    left,
    right,
    other,
    dtotal,
    ddiagonal,
    diagonal,
    unit,
    gradient,
    num_rows,
    num_columns,
    depth,
    padded_depth,
    right_length,
    left_stride,
    right_stride,
    other_stride,
    gradient_stride,
    row_blocks,
    column_blocks,
    SIDES: tl.constexpr,
    SPLIT_DIAGONAL: tl.constexpr,
    GRAM: tl.constexpr,
    SCALED: tl.constexpr,
    RIGHT_STRIDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """gradient = SIDES (2 dtotal left right^T + weight other), weight a number a column.

    On the direct route the product has no diagonal, and the weight is ddiagonal; Grams have it,
    and the weight takes it away: ddiagonal - 2 dtotal diagonal. SCALED: times `unit`.
    """
    i, j = rectangle_tile(tl.program_id(0), row_blocks, column_blocks)
    rows = i * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = product_tile(
        left, right, rows, columns, 0, padded_depth, depth, num_rows, right_length,
        left_stride, right_stride, False, RIGHT_STRIDED, BLOCK_M, BLOCK_N, BLOCK_K, 0, PRECISION,
    )  # fmt: skip
    factor = 2.0 * SIDES * tl.load(dtotal)
    scale = factor * tl.load(unit) if SCALED else factor
    rows = rows.to(tl.int64)[:, None]
    if BLOCK_N > 128:
        near, far = tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        columns = j * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        _store_gradient(
            near * scale, rows, columns, factor, other, ddiagonal, diagonal, gradient, num_rows,
            num_columns, other_stride, gradient_stride, SIDES, SPLIT_DIAGONAL, GRAM,
        )  # fmt: skip
        _store_gradient(
            far * scale, rows, columns + BLOCK_N // 2, factor, other, ddiagonal, diagonal,
            gradient, num_rows, num_columns, other_stride, gradient_stride,
            SIDES, SPLIT_DIAGONAL, GRAM,
        )  # fmt: skip
    else:
        _store_gradient(
            tile * scale, rows, columns, factor, other, ddiagonal, diagonal, gradient, num_rows,
            num_columns, other_stride, gradient_stride, SIDES, SPLIT_DIAGONAL, GRAM,
        )  # fmt: skip
