"""What `cross_frobenius` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast.ops._checks import accumulator
from sslfast.triton._launch import on_gpu

# Products are held whole, and kept for the backward pass, where they take no more than the operands
# (the cheaper route never does) or than this.
CACHE_BYTES = 16 << 20
PACKED_DEPTH = 384  # as in csrc/cpu: rows of the contraction that are packed at a time
SCRATCH_BYTES = 4 << 20  # tiles of all threads, diagonal, partial sums
# On a GPU: elements before the products; at a time float32 parts of tiles, the operands' bytes if
# those are more; rows and bytes of a product that is not kept.
CACHE_HEADER, GPU_PARTS_BYTES = 8, 20 << 20
GPU_STRIP_ROWS, GPU_STRIP_BYTES = 128, 16 << 20
PANEL = 32  # as in csrc/cpu: most rows of a panel


def choose_route(a: Tensor, b: Tensor | None) -> str:
    """The route of fewer operations: for both N (D + E) against 2 D E, for one matrix N against D.

    With Grams that cost half for being symmetric, forward and backward take 3 N^2 (D + E)
    operations on one route and 6 N D E on the other (one matrix: 3 N^2 D and 3 N D^2).
    """
    num_rows, dim = a.shape
    width = dim if b is None else b.shape[1]
    return "gram" if num_rows * (dim + width) < 2 * dim * width else "direct"


def product_elements(a: Tensor, b: Tensor | None, route: str) -> int:
    """Elements of the Grams (one for each matrix) or of a^T b."""
    rows, columns, count = _products(a, b, route)
    return rows * columns * count


def _products(a: Tensor, b: Tensor | None, route: str) -> tuple[int, int, int]:
    """Rows and columns of a product, and how many there are."""
    num_rows, dim = a.shape
    if route == "gram":
        return num_rows, num_rows, 1 if b is None else 2
    return dim, dim if b is None else b.shape[1], 1


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of them will be asked for."""
    wanted = any(each is not None and each.requires_grad for each in tensors)
    return torch.is_grad_enabled() and wanted


def cache_elements(a: Tensor, b: Tensor | None, route: str, learns: bool) -> int:
    """Elements of the cache, in the accumulator dtype; 0 without a gradient, and where products are
    computed again: a forced route may have some beyond the operands, which are never held whole.
    """
    if not learns:
        return 0
    elements = product_elements(a, b, route)
    if elements > strip_elements(a, b):
        return 0
    return _gpu_cache_elements(a, b, route) if on_gpu(a) else elements


def _gpu_cache_elements(a: Tensor, b: Tensor | None, route: str) -> int:
    """The same on a GPU: a header, rows padded, halves as halves."""
    if a.dtype == torch.float64:
        return 0  # the reference runs it, which keeps none
    rows, columns, count = _products(a, b, route)
    width = accumulator(a.dtype).itemsize
    room = CACHE_HEADER + count * rows * padded(columns) * a.element_size() // width
    # Triton's interpreter runs on the tensors of the CPU kernels, which keep wide products
    return room if a.is_cuda else max(room, product_elements(a, b, route))


def padded(length: int) -> int:
    """Columns of a matrix as a GPU's tiles have them where a contraction runs over them."""
    return max(16, 1 << (length - 1).bit_length()) if length <= 64 else -(-length // 64) * 64


def strip_elements(a: Tensor, b: Tensor | None) -> int:
    """Elements of the products that are held at a time, in the accumulator dtype."""
    operands = a.numel() + (0 if b is None else b.numel())
    return max(operands, CACHE_BYTES // accumulator(a.dtype).itemsize)


def flops(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: bool = False,
    route: str = "auto",
    backward: bool = True,
) -> int:
    """Operations of the matrix products; recomputing for a forced route is not counted."""
    route = choose_route(a, b) if route == "auto" else route
    num_rows, dim = a.shape
    width = dim if b is None else b.shape[1]
    if b is None:
        forward = num_rows * dim * (num_rows if route == "gram" else dim)
    elif route == "gram":
        forward = num_rows * num_rows * (dim + width)
    else:
        forward = 2 * num_rows * dim * width
    return forward * (3 if backward else 1)


def bytes_moved(
    a: Tensor, b: Tensor | None = None, *, backward: bool = True, **options: Any
) -> int:
    """Matrices read once in each direction, gradients written once."""
    elements = a.numel() + (0 if b is None else b.numel())
    return elements * a.element_size() * (3 if backward else 1)


def peak_bytes(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: bool = False,
    route: str = "auto",
    backward: bool = True,
) -> int:
    """Products, gradients, widened copies and what is packed at a time."""
    route = choose_route(a, b) if route == "auto" else route
    if on_gpu(a):
        return _gpu_peak_bytes(a, b, route, backward)
    num_rows, dim = a.shape
    wide_dim = dim if b is None else max(dim, b.shape[1])
    width = accumulator(a.dtype).itemsize
    operands = a.numel() + (0 if b is None else b.numel())
    held = min(product_elements(a, b, route), strip_elements(a, b))
    matrices = operands if backward else 0
    if a.element_size() < width:
        matrices += operands * (2 if backward else 1)  # widened copies, wide gradients
    packed = 2 * (max(num_rows, wide_dim) + PANEL) * PACKED_DEPTH
    return (held + matrices + packed) * width + SCRATCH_BYTES


def _gpu_peak_bytes(a: Tensor, b: Tensor | None, route: str, backward: bool) -> int:
    """Products or a strip of them, parts of tiles, padded operands, gradients."""
    size, matrices = a.element_size(), [each for each in (a, b) if each is not None]
    operands = sum(each.numel() for each in matrices) * size
    copies = sum(each.shape[0] * padded(each.shape[1]) for each in matrices) * size
    rows, columns, count = _products(a, b, route)
    whole = count * rows * padded(columns)
    strip = max(GPU_STRIP_ROWS * padded(columns) * 4, GPU_STRIP_BYTES)
    held = strip if product_elements(a, b, route) > strip_elements(a, b) else whole * size
    parts = max(GPU_PARTS_BYTES, operands)
    if a.dtype == torch.float16:  # its scale is known when all tiles are there
        parts += held * 4 // size
    return held + parts + copies + (operands if backward else 0) + SCRATCH_BYTES
