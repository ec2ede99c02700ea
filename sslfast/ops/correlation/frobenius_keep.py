"""Which route `cross_frobenius` takes, and what it keeps for its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._backends import on_gpu
from sslfast._core.correlation import frobenius as layout
from sslfast._core.numerics import accumulator


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
    if elements > layout.strip_elements(a, b):
        return 0
    return _gpu_cache_elements(a, b, route) if on_gpu(a) else elements


def _gpu_cache_elements(a: Tensor, b: Tensor | None, route: str) -> int:
    """The same on a GPU: a header, rows padded, halves as halves."""
    if a.dtype == torch.float64:
        return 0  # the reference runs it, which keeps none
    rows, columns, count = _products(a, b, route)
    width = accumulator(a.dtype).itemsize
    room = layout.CACHE_HEADER + count * rows * layout.padded(columns) * a.element_size() // width
    # Triton's interpreter runs on the tensors of the CPU kernels, which keep wide products
    return room if a.is_cuda else max(room, product_elements(a, b, route))
