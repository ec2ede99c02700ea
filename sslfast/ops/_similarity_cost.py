"""What `similarity_logsumexp` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast.ops._checks import accumulator
from sslfast.ops._similarity_arguments import Arguments

CACHE_BYTES = 16 << 20  # exponentials kept from the forward for the backward pass
CACHE_HEADER, LARGEST_BLOCK = 16, 192  # as in csrc/cpu
CACHE_MIN_FEATURES = 64  # below, computing a similarity again costs no more than reading it
SCRATCH_BYTES = 8 << 20  # tiles and packed panels of all threads


def what_to_keep(arguments: Arguments) -> str:
    """What the backward pass takes from the forward pass.

    ``"nothing"`` without a gradient; else what rounding took from each sum, alone
    (``"sums"``) or with more:

    ``"mean_keys"``: where only queries and scales learn, their gradient is the mean of the keys
    under each query's softmax, which the forward pass sums along the way: 2 U in all, not 3 U.
    ``"exponentials"``: every one (in the symmetric form those of the upper triangle) where they
    fit `CACHE_BYTES`. A part of them would cost the whole budget and save little: at 4096 pairs
    16 MiB hold an eighth of the triangle.
    """
    queries, keys, scale, bias, *_ = arguments
    learns = [each is not None and each.requires_grad for each in (queries, keys, scale, bias)]
    if not torch.is_grad_enabled() or not any(learns):
        return "nothing"
    if keys is not None and not arguments.columns and not learns[1] and not learns[3]:
        return "mean_keys"
    fits = _exponentials(queries, keys) * accumulator(queries.dtype).itemsize <= CACHE_BYTES
    return "exponentials" if fits and queries.shape[1] >= CACHE_MIN_FEATURES else "sums"


def cache_elements(arguments: Arguments, keep: str) -> int:
    """Elements of the cache, in the accumulator dtype."""
    if keep == "nothing":
        return 0
    sums = len(arguments.queries) + (arguments.num_keys if arguments.columns else 0)
    elements = -(-2 * sums // CACHE_HEADER) * CACHE_HEADER
    if keep == "mean_keys":
        elements += CACHE_HEADER + arguments.queries.numel()
    if keep == "exponentials":
        elements += _exponentials(arguments.queries, arguments.keys)
    return elements


def _exponentials(queries: Tensor, keys: Tensor | None) -> int:
    """Elements of all exponentials in whole tiles, with their header."""
    num_rows = queries.shape[0]
    row_block = _block(num_rows)  # the kernel rounds up to blocks
    if keys is None:
        return (num_rows + row_block) * (num_rows + 2 * row_block) // 2 + CACHE_HEADER
    num_keys = keys.shape[0]
    return (num_rows + row_block) * (num_keys + _block(num_keys)) + CACHE_HEADER


def _block(num_rows: int) -> int:
    """Upper bound of the kernel's block of rows."""
    return min(LARGEST_BLOCK, num_rows // 16 + 32)


def flops(
    queries: Tensor, keys: Tensor | None = None, *, backward: bool = True, **options: Any
) -> int:
    """Multiply-adds of the matrix products; the symmetric form half.

    U forward; backward 2 U, and U again where the exponentials were not kept.
    """
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else keys.shape[0]
    kept = _exponentials(queries, keys) * accumulator(queries.dtype).itemsize <= CACHE_BYTES
    products = (3 if kept and dim >= CACHE_MIN_FEATURES else 4) if backward else 1
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
    """Sums, gradients, packed and widened operands, the cache: never N M, at any size."""
    width = accumulator(queries.dtype).itemsize
    elements = _elements(queries, keys)
    half = queries.element_size() < width
    # packed rows, their widened copies; with gradients as many again
    copies = (2 if half else 1) * (2 if backward else 1)
    cache = CACHE_BYTES if backward else 0
    sums = 4 * _sums(queries, keys, options) * width
    narrow = elements * queries.element_size() if half and backward else 0
    return elements * width * copies + narrow + sums + cache + SCRATCH_BYTES


def _elements(queries: Tensor, keys: Tensor | None) -> int:
    return queries.numel() + (0 if keys is None else keys.numel())


def _sums(queries: Tensor, keys: Tensor | None, options: dict[str, Any]) -> int:
    columns = keys.shape[0] if keys is not None and options.get("columns") else 0
    return queries.shape[0] + columns
