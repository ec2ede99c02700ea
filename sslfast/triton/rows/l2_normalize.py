"""Triton kernels and launchers of `l2_normalize`.

A program takes ROWS whole rows. A row of up to `WIDEST_BLOCK` features stays in registers between
its norm and its result; a longer one is read twice, a block at a time. Sums are float32 (float64
for float64 rows), results have the dtype of the rows, and offsets of rows are 64 bits wide.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast._core.numerics import FLOATS, accumulator
from sslfast.triton._launch import launch
from sslfast.triton._rounding import quotient, root

DTYPES = FLOATS
TILE = 2048  # elements of the tile that four warps hold: 16 a thread, two loads of 16 bytes in half
WARP_ELEMENTS = TILE // 4
WIDEST_BLOCK = 8192  # features of a row that 16 warps hold, two operands in the backward pass


@triton.jit
def _load(pointers, rows, features, num_rows, dim, ACC: tl.constexpr):
    """(ROWS, BLOCK_D) at these features, widened; 0 outside the matrix."""
    inside = (rows < num_rows)[:, None] & (features < dim)[None, :]
    return tl.load(pointers + features[None, :], mask=inside, other=0.0).to(ACC)


@triton.jit
def _store(pointers, rows, features, num_rows, dim, values):
    inside = (rows < num_rows)[:, None] & (features < dim)[None, :]
    tl.store(pointers + features[None, :], values.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def l2_normalize_fwd_kernel(
    embeddings,  # (N, D), rows a stride apart
    normalized,  # (N, D)
    norm,  # (N,) ACC
    num_rows,
    dim,
    stride,
    eps: tl.float64,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    block = tl.arange(0, BLOCK_D)  # (BLOCK_D,)
    x = embeddings + rows[:, None] * stride  # (ROWS, 1)
    y = normalized + rows[:, None] * dim
    if ONE_BLOCK:
        tile = _load(x, rows, block, num_rows, dim, ACC)  # (ROWS, BLOCK_D)
        square = tl.sum(tile * tile, 1)  # (ROWS,)
    else:
        square_acc = tl.zeros((ROWS, BLOCK_D), ACC)
        for first in range(0, dim, BLOCK_D):
            part = _load(x, rows, first + block, num_rows, dim, ACC)
            square_acc += part * part
        square = tl.sum(square_acc, 1)
    length = root(square)  # rounded once, like the quotients: close rows differ by few digits
    tl.store(norm + rows, length, mask=rows < num_rows)
    least = tl.full((ROWS,), eps, ACC)
    divisor = tl.where(length < least, least, length)[:, None]  # NaN stays NaN
    if ONE_BLOCK:
        _store(y, rows, block, num_rows, dim, quotient(tile, divisor))
    else:
        for first in range(0, dim, BLOCK_D):
            part = _load(x, rows, first + block, num_rows, dim, ACC)
            _store(y, rows, first + block, num_rows, dim, quotient(part, divisor))


@triton.jit
def _gradient(dy, y, product, below, divisor, LARGEST: tl.constexpr):
    """(dy - y <y, dy>) / divisor, below eps dy / eps, saturated at LARGEST if that is not 0."""
    dx = quotient(tl.where(below, dy, dy - y * product), divisor)
    if LARGEST > 0:
        saturated = tl.where(dx > LARGEST, LARGEST, tl.where(dx < -LARGEST, -LARGEST, dx))
        dx = tl.where(below, saturated, dx)
    return dx


@triton.jit
def l2_normalize_bwd_kernel(
    dnormalized,  # (N, D), rows a dstride apart
    embeddings,  # (N, D), rows a stride apart
    norm,  # (N,) ACC
    dembeddings,  # (N, D)
    num_rows,
    dim,
    dstride,
    stride,
    eps: tl.float64,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    LARGEST: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    block = tl.arange(0, BLOCK_D)  # (BLOCK_D,)
    dy = dnormalized + rows[:, None] * dstride  # (ROWS, 1)
    x = embeddings + rows[:, None] * stride
    dx = dembeddings + rows[:, None] * dim
    length = tl.load(norm + rows, mask=rows < num_rows, other=1.0)  # (ROWS,)
    least = tl.full((ROWS,), eps, ACC)
    below = (length < least)[:, None]  # (ROWS, 1)
    divisor = tl.where(below, least[:, None], length[:, None])
    inverse = 1.0 / divisor
    if ONE_BLOCK:
        dy_tile = _load(dy, rows, block, num_rows, dim, ACC)  # (ROWS, BLOCK_D)
        y_tile = _load(x, rows, block, num_rows, dim, ACC) * inverse
        product = tl.sum(y_tile * dy_tile, 1)  # (ROWS,)
    else:
        product_acc = tl.zeros((ROWS, BLOCK_D), ACC)
        for first in range(0, dim, BLOCK_D):
            dy_part = _load(dy, rows, first + block, num_rows, dim, ACC)
            y_part = _load(x, rows, first + block, num_rows, dim, ACC) * inverse
            product_acc += y_part * dy_part
        product = tl.sum(product_acc, 1)
    product = product[:, None]  # (ROWS, 1)
    if ONE_BLOCK:
        tile = _gradient(dy_tile, y_tile, product, below, divisor, LARGEST)
        _store(dx, rows, block, num_rows, dim, tile)
    else:
        for first in range(0, dim, BLOCK_D):
            dy_part = _load(dy, rows, first + block, num_rows, dim, ACC)
            y_part = _load(x, rows, first + block, num_rows, dim, ACC) * inverse
            part = _gradient(dy_part, y_part, product, below, divisor, LARGEST)
            _store(dx, rows, first + block, num_rows, dim, part)


def forward(embeddings: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = _rows(embeddings)
    num_rows, dim = x.shape
    normalized = embeddings.new_empty(embeddings.shape)  # (..., D)
    norm = x.new_empty(embeddings.shape[:-1], dtype=accumulator(x.dtype))  # (...)
    grid, options = _tiles(num_rows, dim, x.dtype)
    arguments = (x, normalized, norm, num_rows, dim, x.stride(0), eps)
    launch(l2_normalize_fwd_kernel, grid, *arguments, **options)
    return normalized, norm


def backward(dnormalized: Tensor, embeddings: Tensor, norm: Tensor, eps: float) -> Tensor:
    dy, x = _rows(dnormalized), _rows(embeddings)
    num_rows, dim = x.shape
    dembeddings = embeddings.new_empty(embeddings.shape)  # (..., D)
    grid, options = _tiles(num_rows, dim, x.dtype)
    # float16 alone overflows where a float32 gradient does not
    largest = torch.finfo(torch.float16).max if x.dtype == torch.float16 else 0.0
    launch(
        l2_normalize_bwd_kernel,
        grid,
        *(dy, x, norm.contiguous(), dembeddings, num_rows, dim, dy.stride(0), x.stride(0), eps),
        LARGEST=largest,
        **options,
    )
    return dembeddings


def _rows(tensor: Tensor) -> Tensor:
    """(..., D) -> (N, D) with neighbouring features; copied only where they are not."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _tiles(num_rows: int, dim: int, dtype: torch.dtype) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and compile-time constants; they depend on D alone, and so does each row's result."""
    block = min(triton.next_power_of_2(dim), WIDEST_BLOCK)
    rows = max(1, TILE // block)
    options = {
        "ROWS": rows,
        "BLOCK_D": block,
        "ONE_BLOCK": dim <= block,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": rows * block // WARP_ELEMENTS,
        "num_stages": 1,
    }
    return (triton.cdiv(num_rows, rows),), options
