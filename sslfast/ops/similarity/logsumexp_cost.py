"""What `similarity_logsumexp` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslfast._backends import on_gpu
from sslfast._core.numerics import accumulator
from sslfast._core.packed import LARGEST_STRIP_ROWS, STRIP_BYTES, packed_bytes
from sslfast._core.similarity.logsumexp_keep import (
    GPU_CACHE_BYTES,
    GPU_CACHE_MIN_FEATURES,
    GPU_CHUNK_BYTES,
    cache_bytes,
    exponential_stride,
    exponentials_fit,
)

# On a GPU: partial sums of a row, gradient rows of all programs at once.
GPU_PARTS, GPU_PROGRAM_ROWS = 128, 400 * 128
SCRATCH_BYTES = 8 << 20  # tiles and packed panels of all threads


def flops(
    queries: Tensor, keys: Tensor | None = None, *, backward: bool = True, **options: Any
) -> int:
    """Multiply-adds of the matrix products; the symmetric form half.

    U forward; backward 2 U, and U again where the exponentials were not kept. Where only queries
    learn (by their ``requires_grad``), U in each direction.
    """
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else keys.shape[0]
    bias = options.get("bias")
    learns = [each is not None and each.requires_grad for each in (queries, keys, bias)]
    products = (3 if exponentials_fit(queries, keys, on_gpu(queries)) else 4) if backward else 1
    if backward and keys is not None and learns == [True, False, False]:
        products = 2
    return 2 * num_rows * num_keys * dim * products // (2 if keys is None else 1)


def bytes_moved(
    queries: Tensor, keys: Tensor | None = None, *, backward: bool = True, **options: Any
) -> int:
    """Matrices read once in each direction, gradients written once, and the sums."""
    rows = _elements(queries, keys) * queries.element_size()
    sums = _sums(queries, keys, options) * accumulator(queries.dtype).itemsize
    return 3 * rows + 3 * sums if backward else rows + sums


def peak_bytes(
    queries: Tensor, keys: Tensor | None = None, *, backward: bool = True, **options: Any
) -> int:
    """Sums, gradients, packed operands, the cache: never N M, at any size."""
    if on_gpu(queries):
        return _gpu_peak_bytes(queries, keys, backward)
    width = accumulator(queries.dtype).itemsize
    elements = _elements(queries, keys)
    num_rows, dim = queries.shape
    # Both sides of the similarities, both sides of the products with their weights.
    packed = (4 if backward else 2) * packed_bytes(num_rows, dim, queries.dtype)
    if keys is not None:
        packed += 2 * max(STRIP_BYTES, packed_bytes(LARGEST_STRIP_ROWS, dim, queries.dtype))
    cache = cache_bytes(queries, keys, gpu=False) if backward else 0
    sums = 4 * _sums(queries, keys, options) * width
    # Gradients, what is added up beside them, and half-precision ones rounded.
    gradients = elements * (2 * width + queries.element_size()) if backward else 0
    return packed + gradients + sums + cache + SCRATCH_BYTES


def _gpu_peak_bytes(queries: Tensor, keys: Tensor | None, backward: bool) -> int:
    """Partial sums and partial gradients of all programs, the cache, a chunk of G."""
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else len(keys)
    sums = GPU_PARTS * (num_rows + num_keys) * 4
    if not backward:
        return sums
    cached = min(GPU_CACHE_BYTES, num_rows * exponential_stride(num_keys) * 4)
    exponentials = cached if dim >= GPU_CACHE_MIN_FEATURES else 0
    chunk = min(2 * GPU_CHUNK_BYTES, 2 * num_rows * exponential_stride(num_keys) * 4)
    wide = 4 * 4 * _elements(queries, keys)  # float32 gradients, their products, the results
    return sums + exponentials + chunk + wide + GPU_PROGRAM_ROWS * dim * 4


def _elements(queries: Tensor, keys: Tensor | None) -> int:
    return queries.numel() + (0 if keys is None else keys.numel())


def _sums(queries: Tensor, keys: Tensor | None, options: dict[str, Any]) -> int:
    columns = keys.shape[0] if keys is not None and options.get("columns") else 0
    return queries.shape[0] + columns
