"""What `similarity_logsumexp` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast.ops._checks import accumulator
from sslfast.ops._similarity_arguments import Arguments
from sslfast.triton._launch import on_gpu

# Exponentials kept from the forward for the backward pass: at most 16 MiB, or five times the
# operands where that is more (4096 x 4096 of them at 512 features); on a GPU 2 GiB.
CACHE_BYTES, CACHE_OPERANDS, GPU_CACHE_BYTES = 16 << 20, 5, 2 << 30
CACHE_HEADER, LARGEST_BLOCK = 16, 192  # as in csrc/cpu
# Below, computing a similarity again costs no more than reading it.
CACHE_MIN_FEATURES, GPU_CACHE_MIN_FEATURES = 64, 256
SCRATCH_BYTES = 8 << 20  # tiles and packed panels of all threads
# On a GPU: partial sums of a row, gradient rows of all programs at once, a chunk of G.
GPU_PARTS, GPU_PROGRAM_ROWS, GPU_CHUNK_BYTES = 128, 400 * 128, 256 << 20


def what_to_keep(arguments: Arguments) -> str:
    """What the backward pass takes from the forward pass.

    ``"nothing"`` without a gradient; else what rounding took from each sum, alone
    (``"sums"``) or with more:

    ``"mean_keys"``: where only queries and scales learn, their gradient is the mean of the keys
    under each query's softmax, which the forward pass sums along the way: 2 U in all, not 3 U.
    ``"exponentials"``: every one (in the symmetric form those of the upper triangle) where they
    fit `cache_bytes`: memory stays linear in the operands. A part of them would cost the whole
    budget and save little: at 4096 pairs 16 MiB hold an eighth of the triangle.
    """
    queries, keys, scale, bias, *_ = arguments
    learns = [each is not None and each.requires_grad for each in (queries, keys, scale, bias)]
    if not torch.is_grad_enabled() or not any(learns):
        return "nothing"
    one_sided = keys is not None and not arguments.columns and not learns[1] and not learns[3]
    if one_sided and _means_fit(queries):
        return "mean_keys"
    return "exponentials" if _exponentials_fit(queries, keys) else "sums"


def _means_fit(queries: Tensor) -> bool:
    """On a GPU the means must fit registers, and unnormalised ones the range of the dtype."""
    return not on_gpu(queries) or (queries.dtype == torch.bfloat16 and queries.shape[1] <= 256)


def _exponentials_fit(queries: Tensor, keys: Tensor | None) -> bool:
    if on_gpu(queries) and queries.dtype == torch.float64:
        return False  # the reference runs it, which keeps none
    least = GPU_CACHE_MIN_FEATURES if on_gpu(queries) else CACHE_MIN_FEATURES
    size = _exponentials(queries, keys) * accumulator(queries.dtype).itemsize
    return size <= cache_bytes(queries, keys) and queries.shape[1] >= least


def cache_bytes(queries: Tensor, keys: Tensor | None) -> int:
    """Most bytes of exponentials that are kept from the forward for the backward pass."""
    if on_gpu(queries):
        return GPU_CACHE_BYTES
    operands = _elements(queries, keys) * accumulator(queries.dtype).itemsize
    return max(CACHE_BYTES, CACHE_OPERANDS * operands)


def cache_elements(arguments: Arguments, keep: str) -> int:
    """Elements of the cache, in the accumulator dtype."""
    if keep == "nothing":
        return 0
    elements = sum_elements(arguments)
    if keep == "mean_keys":
        num_rows, dim = arguments.queries.shape
        elements += CACHE_HEADER + num_rows * padded_features(dim)
    if keep == "exponentials":
        elements += _exponentials(arguments.queries, arguments.keys)
    return elements


def sum_elements(arguments: Arguments) -> int:
    """A header, and two numbers for each sum: what rounding took, or shift and total."""
    sums = arguments.queries.shape[0] + (arguments.num_keys if arguments.columns else 0)
    return CACHE_HEADER + _round_up(2 * sums, CACHE_HEADER)


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


def _exponentials(queries: Tensor, keys: Tensor | None) -> int:
    """Elements of the accumulator dtype that all exponentials take, with their header."""
    num_rows = queries.shape[0]
    if on_gpu(queries):
        each = exponential_dtype(queries.dtype).itemsize
        stride = exponential_stride(num_rows if keys is None else keys.shape[0])
        return num_rows * stride * each // accumulator(queries.dtype).itemsize
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

    U forward; backward 2 U, and U again where the exponentials were not kept. Where only queries
    learn (by their ``requires_grad``), U in each direction.
    """
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else keys.shape[0]
    bias = options.get("bias")
    learns = [each is not None and each.requires_grad for each in (queries, keys, bias)]
    products = (3 if _exponentials_fit(queries, keys) else 4) if backward else 1
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
    """Sums, gradients, packed and widened operands, the cache: never N M, at any size."""
    if on_gpu(queries):
        return _gpu_peak_bytes(queries, keys, backward)
    width = accumulator(queries.dtype).itemsize
    elements = _elements(queries, keys)
    half = queries.element_size() < width
    # packed rows, their widened copies; with gradients as many again
    copies = (2 if half else 1) * (2 if backward else 1)
    cache = cache_bytes(queries, keys) if backward else 0
    sums = 4 * _sums(queries, keys, options) * width
    narrow = elements * queries.element_size() if half and backward else 0
    return elements * width * copies + narrow + sums + cache + SCRATCH_BYTES


def _gpu_peak_bytes(queries: Tensor, keys: Tensor | None, backward: bool) -> int:
    """Partial sums and partial gradients of all programs, the cache, a chunk of G."""
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else keys.shape[0]
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
