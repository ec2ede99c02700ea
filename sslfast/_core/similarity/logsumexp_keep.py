"""What `similarity_logsumexp` keeps for its backward pass, and how much room that takes.

Decided once a call, by its public function; backends lay out what they are told to keep.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from sslfast._core.numerics import accumulator
from sslfast._core.similarity.logsumexp import Arguments

# Exponentials kept from the forward for the backward pass: at most 16 MiB, or five times the
# operands where that is more (4096 x 4096 of them at 512 features); on a GPU 2 GiB.
CACHE_BYTES, CACHE_OPERANDS, GPU_CACHE_BYTES = 16 << 20, 5, 2 << 30
# Below, computing a similarity again costs no more than reading it.
CACHE_MIN_FEATURES, GPU_CACHE_MIN_FEATURES = 64, 256
CACHE_HEADER, LARGEST_BLOCK = 16, 192  # as the kernels
GPU_CHUNK_BYTES = 256 << 20  # of G at a time, where the library multiplies


class Keep(IntEnum):
    """What the backward pass takes from the forward pass.

    `NOTHING` without a gradient; else what rounding took from each sum, alone (`SUMS`) or with
    more:

    `MEAN_KEYS`: where only queries and scales learn, their gradient is the mean of the keys under
    each query's softmax, which the forward pass sums along the way: 2 U in all, not 3 U.
    `EXPONENTIALS`: every one (in the symmetric form those of the upper triangle) where they fit
    `cache_bytes`: memory stays linear in the operands. A part of them would cost the whole budget
    and save little: at 4096 pairs 16 MiB hold an eighth of the triangle.
    """

    NOTHING = 0
    SUMS = 1
    MEAN_KEYS = 2
    EXPONENTIALS = 3


def what_to_keep(arguments: Arguments, gpu: bool) -> Keep:
    """The most useful that fits; `gpu`: whether a GPU's kernels will serve the call."""
    queries, keys, scale, bias, *_, columns = arguments
    learns = [each is not None and each.requires_grad for each in (queries, keys, scale, bias)]
    if not torch.is_grad_enabled() or not any(learns):
        return Keep.NOTHING
    one_sided = keys is not None and not columns and not learns[1] and not learns[3]
    if one_sided and (not gpu or _means_fit_gpu(queries)):
        return Keep.MEAN_KEYS
    return Keep.EXPONENTIALS if exponentials_fit(queries, keys, gpu) else Keep.SUMS


def _means_fit_gpu(queries: Tensor) -> bool:
    """The means must fit registers, and unnormalised ones the range of the dtype."""
    return queries.dtype == torch.bfloat16 and queries.shape[1] <= 256


def exponentials_fit(queries: Tensor, keys: Tensor | None, gpu: bool) -> bool:
    if gpu and queries.dtype == torch.float64:
        return False  # the reference runs it, which keeps none
    if queries.shape[1] < (GPU_CACHE_MIN_FEATURES if gpu else CACHE_MIN_FEATURES):
        return False
    size = _exponential_elements(queries, keys, gpu) * accumulator(queries.dtype).itemsize
    return size <= cache_bytes(queries, keys, gpu)


def cache_bytes(queries: Tensor, keys: Tensor | None, gpu: bool) -> int:
    """Most bytes of exponentials that are kept from the forward for the backward pass."""
    if gpu:
        return GPU_CACHE_BYTES
    elements = queries.numel() + (0 if keys is None else keys.numel())
    return max(CACHE_BYTES, CACHE_OPERANDS * elements * accumulator(queries.dtype).itemsize)


def cache_elements(arguments: Arguments, keep: Keep, gpu: bool) -> int:
    """Elements of the cache, in the accumulator dtype."""
    if keep == Keep.NOTHING:
        return 0
    elements = sum_elements(arguments)
    if keep == Keep.MEAN_KEYS:
        num_rows, dim = arguments.queries.shape
        elements += CACHE_HEADER + num_rows * padded_features(dim)
    if keep == Keep.EXPONENTIALS:
        elements += _exponential_elements(arguments.queries, arguments.keys, gpu)
    return elements


def sum_elements(arguments: Arguments) -> int:
    """A header, and two numbers for each sum: what rounding took, or shift and total."""
    queries, keys, *_, columns = arguments
    sums = len(queries) + (len(keys) if keys is not None and columns else 0)
    return CACHE_HEADER + _round_up(2 * sums, CACHE_HEADER)


def _exponential_elements(queries: Tensor, keys: Tensor | None, gpu: bool) -> int:
    """Elements of the accumulator dtype that all exponentials take, with their header."""
    num_rows = queries.shape[0]
    num_keys = num_rows if keys is None else keys.shape[0]
    if gpu:
        each = exponential_dtype(queries.dtype).itemsize
        elements = num_rows * exponential_stride(num_keys)
        return elements * each // accumulator(queries.dtype).itemsize
    # the kernel rounds up to blocks; these are upper bounds of its block of rows
    row_block, key_block = (min(LARGEST_BLOCK, n // 16 + 32) for n in (num_rows, num_keys))
    if keys is None:
        return (num_rows + row_block) * (num_rows + 2 * row_block) // 2 + CACHE_HEADER
    return (num_rows + row_block) * (num_keys + key_block) + CACHE_HEADER


def padded_features(dim: int) -> int:
    """Features of a row as a GPU's tiles have them: none of them is ragged."""
    return max(16, 1 << (dim - 1).bit_length()) if dim <= 256 else _round_up(dim, 64)


def exponential_stride(num_keys: int) -> int:
    """Elements of a row of exponentials on a GPU: its loads stay aligned."""
    return _round_up(num_keys, CACHE_HEADER)


def exponential_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision keeps them in bfloat16, whose range they need; G is rounded as much."""
    return torch.bfloat16 if dtype.itemsize == 2 else dtype


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
