"""What `cross_frobenius` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._backends import on_gpu
from sslfast._core.correlation.frobenius import (
    GPU_PARTS_BYTES,
    GPU_STRIP_BYTES,
    GPU_STRIP_ROWS,
    padded,
    strip_elements,
)
from sslfast._core.numerics import accumulator
from sslfast.ops.correlation.frobenius_keep import _products, choose_route, product_elements

PACKED_DEPTH = 384  # as the kernels: rows of the contraction that are packed at a time
PANEL = 32  # as the kernels: most rows of a panel
SCRATCH_BYTES = 4 << 20  # tiles of all threads, diagonal, partial sums


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
    """Products, gradients and what is packed at a time."""
    route = choose_route(a, b) if route == "auto" else route
    if on_gpu(a):
        return _gpu_peak_bytes(a, b, route, backward)
    num_rows, dim = a.shape
    wide_dim = dim if b is None else max(dim, b.shape[1])
    width = accumulator(a.dtype).itemsize
    operands = a.numel() + (0 if b is None else b.numel())
    held = min(product_elements(a, b, route), strip_elements(a, b))
    # Gradients, and half-precision ones rounded.
    matrices = operands * (2 if a.element_size() < width else 1) if backward else 0
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
