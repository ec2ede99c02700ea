"""What `similarity_logsumexp` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast.ops._checks import accumulator

CACHE_BYTES = 16 << 20  # exponentials kept from the symmetric forward for its backward pass
CACHE_HEADER, LARGEST_BLOCK = 16, 192  # as in csrc/cpu
CACHE_MIN_FEATURES = 64  # below, computing a similarity again costs no more than reading it
SCRATCH_BYTES = 8 << 20  # tiles and packed panels of all threads


def cache_elements(
    queries: Tensor,
    keys: Tensor | None,
    scale: float | Tensor,
    bias: Tensor | None,
    columns: bool,
) -> int:
    """Room for what the backward pass takes from the forward pass; none without a gradient.

    That is what rounding took from each sum and, in the symmetric form, every exponential of the
    upper triangle where they fit `CACHE_BYTES`. A part of the triangle would cost the whole
    budget and save little: at 4096 pairs 16 MiB hold an eighth of it.
    """
    differentiable = (queries, keys, scale, bias)
    if not torch.is_grad_enabled() or not any(
        isinstance(each, Tensor) and each.requires_grad for each in differentiable
    ):
        return 0
    num_rows, dim = queries.shape
    sums = num_rows + (keys.shape[0] if keys is not None and columns else 0)
    residuals = -(-sums // CACHE_HEADER) * CACHE_HEADER
    if keys is not None or dim < CACHE_MIN_FEATURES:
        return residuals
    block = min(LARGEST_BLOCK, num_rows // 16 + 32)  # the kernel rounds the triangle up to blocks
    triangle = (num_rows + block) * (num_rows + 2 * block) // 2 + CACHE_HEADER
    fits = triangle * accumulator(queries.dtype).itemsize <= CACHE_BYTES
    return residuals + (triangle if fits else 0)


def flops(
    queries: Tensor, keys: Tensor | None = None, *, backward: bool = True, **options: Any
) -> int:
    """Multiply-adds of the matrix products: U forward, 3 U backward; the symmetric form half."""
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else keys.shape[0]
    product = 2 * num_rows * num_keys * dim
    return product * (4 if backward else 1) // (2 if keys is None else 1)


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
    """Sums, gradients, packed and widened operands, the cache: never N M, at any size."""
    width = accumulator(queries.dtype).itemsize
    elements = _elements(queries, keys)
    half = queries.element_size() < width
    # packed rows, their widened copies; with gradients as many again
    copies = (2 if half else 1) * (2 if backward else 1)
    cache = CACHE_BYTES if backward and keys is None else 0
    sums = 4 * _sums(queries, keys, options) * width
    narrow = elements * queries.element_size() if half and backward else 0
    return elements * width * copies + narrow + sums + cache + SCRATCH_BYTES


def _elements(queries: Tensor, keys: Tensor | None) -> int:
    return queries.numel() + (0 if keys is None else keys.numel())


def _sums(queries: Tensor, keys: Tensor | None, options: dict[str, Any]) -> int:
    columns = keys.shape[0] if keys is not None and options.get("columns") else 0
    return queries.shape[0] + columns
