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
PACKED_DEPTH = 512  # as in csrc/cpu: rows of the contraction that are packed at a time
SCRATCH_BYTES = 4 << 20  # tiles of all threads, diagonal, partial sums
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
    num_rows, dim = a.shape
    if route == "gram":
        return num_rows * num_rows * (1 if b is None else 2)
    return dim * (dim if b is None else b.shape[1])


def cache_elements(a: Tensor, b: Tensor | None, route: str) -> int:
    """Elements of the cache, in the accumulator dtype; 0 where the products are computed again.

    A forced route may have products beyond the operands: those are never held whole.
    """
    learns = a.requires_grad or (b is not None and b.requires_grad)
    if not torch.is_grad_enabled() or not learns:
        return 0
    elements = product_elements(a, b, route)
    return elements if elements <= strip_elements(a, b) else 0


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
    num_rows, dim = a.shape
    wide_dim = dim if b is None else max(dim, b.shape[1])
    width = accumulator(a.dtype).itemsize
    operands = a.numel() + (0 if b is None else b.numel())
    held = min(product_elements(a, b, route), strip_elements(a, b))
    matrices = operands if backward else 0
    if a.element_size() < width:
        matrices += operands * (2 if backward else 1)  # widened copies, wide gradients
    if on_gpu(a):
        return (held + matrices + operands) * width + SCRATCH_BYTES
    packed = 2 * (max(num_rows, wide_dim) + PANEL) * PACKED_DEPTH
    return (held + matrices + packed) * width + SCRATCH_BYTES
