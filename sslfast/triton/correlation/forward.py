"""Forward kernels of `cross_frobenius`: tiles of the products, their squares, the diagonal.

One program a tile; of a symmetric product only the tiles on and above the diagonal, the others
being counted twice and stored transposed. Where one tile alone decides what becomes of it, the
squares are summed and the tile is stored right after the product. Else (two Grams that meet, a
contraction split over several programs, float16 whose scale is not known before the last tile)
tiles are left behind as float32 parts, and a second kernel does the same with their sums. Every
program has a slot for its sum: nothing is atomic but maxima, which depend on no order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.correlation.tiles import power_of, product_tile, tile_of


@triton.jit
def _store_product(
    kept, tile, rows, columns, num_rows, num_columns, stride, MIRROR: tl.constexpr, mirrored
):
    """A tile in the dtype of the product, with the zeros behind its last column."""
    tile = tile.to(kept.dtype.element_ty)
    at = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(kept + at, tile, mask=(rows < num_rows)[:, None] & (columns < stride)[None, :])
    if MIRROR:
        at = columns.to(tl.int64)[:, None] * stride + rows[None, :]
        inside = (columns < num_columns)[:, None] & (rows < num_rows)[None, :]
        tl.store(kept + at, tile.T, mask=inside & mirrored)


@triton.jit
def _finish(
    tile,
    other,
    rows,
    columns,
    off_diagonal,
    slot,
    sums,
    diagonal,
    kept,
    other_kept,
    scale,
    other_scale,
    first_row,
    num_rows,
    num_columns,
    stride,
    PRODUCTS: tl.constexpr,
    TRIANGLE: tl.constexpr,
    SPLIT_DIAGONAL: tl.constexpr,
    SUMS: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Sum of squares of a tile (of its products with the other Gram's), diagonal, storage."""
    # An infinite row times the zeros beyond the last is NaN, which is no element of the product.
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tile = tl.where(inside, tile, 0.0)
    other = tl.where(inside, other, 0.0) if PRODUCTS == 2 else tile
    if SPLIT_DIAGONAL:
        on_diagonal = (first_row + rows)[:, None] == columns[None, :]
        if SUMS:
            if not off_diagonal:
                here = tl.sum(tl.where(on_diagonal, tile, 0.0), 1)
                tl.store(diagonal + rows, here, mask=(rows < num_rows) & (rows < num_columns))
        tile = tl.where(on_diagonal, 0.0, tile)
    if SUMS:
        squares = tile * (other if PRODUCTS == 2 else tile)
        total = tl.sum(squares)
        if TRIANGLE:
            total = tl.where(off_diagonal, 2.0 * total, total)
        tl.store(sums + slot, total)
    if KEEP:
        tile = tile * scale if SCALED else tile
        _store_product(
            kept, tile, rows, columns, num_rows, num_columns, stride, TRIANGLE, off_diagonal
        )
        if PRODUCTS == 2:
            other = other * other_scale if SCALED else other
            _store_product(
                other_kept, other, rows, columns, num_rows, num_columns, stride, TRIANGLE,
                off_diagonal,
            )  # fmt: skip


@triton.jit
def cross_frobenius_fwd_kernel(
    left,
    right,
    parts,
    largest,
    sums,
    diagonal,
    kept,
    first_row,
    num_rows,
    num_columns,
    kept_stride,
    depth,
    other_depth,
    split_depth,
    left_length,
    right_length,
    left_stride,
    right_stride,
    row_blocks,
    column_blocks,
    first_tile,
    tiles,
    PRODUCTS: tl.constexpr,
    TRIANGLE: tl.constexpr,
    STRIDED: tl.constexpr,
    IN_PARTS: tl.constexpr,
    SPLIT_DIAGONAL: tl.constexpr,
    SUMS: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tiles from `first_tile` on of left right^T; of left left^T and right right^T if 2 PRODUCTS.

    IN_PARTS stores parts (splits, PRODUCTS, tiles, BLOCK, BLOCK), SCALED also the largest |part|
    of each product; else the tile is finished.
    """
    index = first_tile + tl.program_id(0) % tiles
    place = tl.program_id(0) // tiles
    split = place // PRODUCTS
    i, j = tile_of(index, row_blocks, column_blocks, TRIANGLE)
    rows = i * BLOCK + tl.arange(0, BLOCK)
    columns = j * BLOCK + tl.arange(0, BLOCK)
    if PRODUCTS == 2:
        if place % 2 == 1:
            left, left_stride, depth = right, right_stride, other_depth
        right, right_stride = left, left_stride
    first = split * split_depth
    last = tl.minimum(first + split_depth, depth)
    tile = product_tile(
        left, right, rows, columns, first, last, depth, left_length, right_length,
        left_stride, right_stride, STRIDED, STRIDED, BLOCK, BLOCK, BLOCK_K, CHAIN, PRECISION,
    )  # fmt: skip
    if IN_PARTS:
        local = tl.arange(0, BLOCK)
        at = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCK)
        at = at + local[:, None] * BLOCK + local[None, :]
        tl.store(parts + at, tile)
        if SCALED:
            # NaN has no order; a product that has one keeps it, whatever the scale
            size = tl.max(tl.where(tile == tile, tl.abs(tile), 0.0))
            tl.atomic_max(largest + place % PRODUCTS, size.to(tl.int32, bitcast=True))
    else:
        _finish(
            tile, tile, rows, columns, i != j, index, sums, diagonal, kept, kept, 1.0, 1.0,
            first_row, num_rows, num_columns, kept_stride,
            1, TRIANGLE, SPLIT_DIAGONAL, SUMS, KEEP, False,
        )  # fmt: skip


@triton.jit
def _sum_parts(parts, splits, step, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """(ROWS, BLOCK): the parts of a tile, `step` tiles apart, in order."""
    parts += tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for _ in tl.range(0, splits, loop_unroll_factor=4):
        total += tl.load(parts)
        parts += tl.cast(step, tl.int64) * (BLOCK * BLOCK)
    return total


@triton.jit
def cross_frobenius_combine_kernel(
    parts,
    largest,
    sums,
    diagonal,
    kept,
    other_kept,
    units,
    first_row,
    num_rows,
    num_columns,
    kept_stride,
    row_blocks,
    column_blocks,
    first_tile,
    tiles,
    splits,
    spare,
    PRODUCTS: tl.constexpr,
    TRIANGLE: tl.constexpr,
    SPLIT_DIAGONAL: tl.constexpr,
    SUMS: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sums parts (splits, PRODUCTS, tiles, BLOCK, BLOCK) and finishes ROWS rows of a tile.

    SCALED: products are stored times a power of two that no element exceeds float16 with, found
    from the largest part, of which there are at most 2^spare; `units` (2, 4) has its inverse.
    """
    PIECES: tl.constexpr = BLOCK // ROWS
    index, piece = tl.program_id(0) // PIECES, tl.program_id(0) % PIECES
    i, j = tile_of(first_tile + index, row_blocks, column_blocks, TRIANGLE)
    rows = i * BLOCK + piece * ROWS + tl.arange(0, ROWS)
    columns = j * BLOCK + tl.arange(0, BLOCK)
    parts += (index * BLOCK + piece * ROWS).to(tl.int64) * BLOCK
    step = tiles * PRODUCTS
    tile = _sum_parts(parts, splits, step, BLOCK, ROWS)
    other = tile
    if PRODUCTS == 2:
        parts += tl.cast(tiles, tl.int64) * (BLOCK * BLOCK)
        other = _sum_parts(parts, splits, step, BLOCK, ROWS)
    scale, other_scale = 1.0, 1.0
    if SCALED:
        first = tl.program_id(0) == 0
        scale, unit = power_of(tl.load(largest), spare)
        tl.store(units, unit, mask=first)
        if PRODUCTS == 2:
            other_scale, unit = power_of(tl.load(largest + 1), spare)
            tl.store(units + 4, unit, mask=first)
    slot = first_tile * PIECES + tl.program_id(0)
    _finish(
        tile, other, rows, columns, i != j, slot, sums, diagonal, kept, other_kept, scale,
        other_scale, first_row, num_rows, num_columns, kept_stride,
        PRODUCTS, TRIANGLE, SPLIT_DIAGONAL, SUMS, KEEP, SCALED,
    )  # fmt: skip


@triton.jit
def cross_frobenius_diagonal_kernel(
    a,
    b,
    diagonal,
    sums,
    num_rows,
    dim,
    a_stride,
    b_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dots of the columns of a and b, (D,), and the sum of squares of each BLOCK_D of them."""
    features = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (features < dim)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for first in range(0, num_rows, BLOCK_N):
        rows = first + tl.arange(0, BLOCK_N)
        here = (rows < num_rows)[:, None] & inside
        row = rows.to(tl.int64)[:, None]
        x = tl.load(a + row * a_stride + features[None, :], mask=here, other=0.0)
        y = tl.load(b + row * b_stride + features[None, :], mask=here, other=0.0)
        acc += x.to(tl.float32) * y.to(tl.float32)
    dots = tl.sum(acc, 0)
    tl.store(diagonal + features, dots, mask=features < dim)
    tl.store(sums + tl.program_id(0), tl.sum(dots * dots, 0))


@triton.jit
def cross_frobenius_total_kernel(sums, total, num_tiles, num_sums, BLOCK: tl.constexpr):
    """The sums of all tiles less those of the diagonal that follow them, in one program."""
    acc = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, num_sums, BLOCK):
        at = first + tl.arange(0, BLOCK)
        part = tl.load(sums + at, mask=at < num_sums, other=0.0).to(tl.float64)
        acc += tl.where(at < num_tiles, part, -part)
    tl.store(total, tl.sum(acc, 0).to(tl.float32))
