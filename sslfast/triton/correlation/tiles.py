"""What the kernels of `cross_frobenius` share: which tile, its product, its scale in float16.

A product has the rows of `left` times the rows of `right`, or, where an operand is ``STRIDED``,
its columns: the contraction then runs over the rows of the matrix. Contiguous contractions are
padded with zeros to a multiple of the block, so that they have no ragged end.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(8)  # row blocks whose tiles run together and share columns in the L2 cache


@triton.jit
def triangle_tile(index, row_blocks):
    """(I <= J) number `index` of the tiles on and above the diagonal."""
    # floor is off by one at most, where the root is nearly whole
    j = ((tl.sqrt(1.0 + 8.0 * index.to(tl.float32)) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > index, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= index, j + 1, j)
    return index - j * (j + 1) // 2, j


@triton.jit
def rectangle_tile(index, row_blocks, column_blocks):
    """(I, J) number `index` of all tiles, `GROUP` row blocks at a time."""
    group = index // (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    within = index - group * GROUP * column_blocks
    return group * GROUP + within % height, within // height


@triton.jit
def tile_of(index, row_blocks, column_blocks, TRIANGLE: tl.constexpr):
    if TRIANGLE:
        return triangle_tile(index, row_blocks)
    else:
        return rectangle_tile(index, row_blocks, column_blocks)


@triton.jit
def _operand(matrix, index, k, length, depth, stride, STRIDED: tl.constexpr):
    """(BLOCK, BLOCK_K) of one operand; 0 beyond `length` and, if STRIDED, beyond `depth`."""
    if STRIDED:
        at = k.to(tl.int64)[:, None] * stride + index[None, :]
        inside = (k < depth)[:, None] & (index < length)[None, :]
        return tl.load(matrix + at, mask=inside, other=0.0).T
    else:
        at = index.to(tl.int64)[:, None] * stride + k[None, :]
        return tl.load(matrix + at, mask=(index < length)[:, None], other=0.0)


@triton.jit
def product_tile(
    left,
    right,
    rows,
    columns,
    first,
    last,
    depth,
    left_length,
    right_length,
    left_stride,
    right_stride,
    LEFT_STRIDED: tl.constexpr,
    RIGHT_STRIDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) sums of left * right over the contraction from `first` to `last`.

    Matrix units add to an accumulator without rounding to nearest, which long chains of
    additions of one sign turn into a bias: after CHAIN blocks the sum so far is added up apart
    (0: never).
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = _operand(left, rows, k, left_length, depth, left_stride, LEFT_STRIDED)
        y = _operand(right, columns, k, right_length, depth, right_stride, RIGHT_STRIDED)
        part = tl.dot(x, y.T, part, input_precision=PRECISION)
        if CHAIN > 0:
            if (start // BLOCK_K) % CHAIN == CHAIN - 1:
                acc += part
                part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    return acc + part


@triton.jit
def power_of(largest, spare):
    """(2^p, 2^-p): what is at most 2^spare `largest` (bits of a float32), times 2^p below 2^15."""
    exponent = largest >> 23  # largest < 2^(exponent - 126)
    power = tl.minimum(tl.maximum(15 + 126 - exponent - spare, -100), 100)
    scale = ((127 + power) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - power) << 23).to(tl.float32, bitcast=True)
    return scale, inverse
