"""What `similarity_topk` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslfast._backends import on_gpu
from sslfast._core.numerics import accumulator
from sslfast._core.packed import LARGEST_STRIP_ROWS, STRIP_BYTES, packed_bytes

SCRATCH_BYTES = 1 << 20
MOST_PARTS = 8  # of the keys, where there are more threads than blocks of queries
CHOICE_BYTES = 64  # of a neighbour in the backward pass: its place in the order of the keys
GPU_PROGRAM_ROWS = 608 * 128  # queries of all programs at once, each with a part of the keys


def flops(
    queries: Tensor, keys: Tensor | None = None, k: int = 1, *, backward: bool = True, **_: Any
) -> int:
    num_rows, dim = queries.shape
    num_keys = num_rows if keys is None else keys.shape[0]
    return 2 * num_rows * num_keys * dim + (4 * num_rows * k * dim if backward else 0)


def bytes_moved(
    queries: Tensor, keys: Tensor | None = None, k: int = 1, *, backward: bool = True, **_: Any
) -> int:
    """Matrices read once in each direction, gradients written once, and the neighbours."""
    rows = _elements(queries, keys) * queries.element_size()
    found = _neighbours(queries, k)
    return 3 * rows + 2 * found if backward else rows + found


def peak_bytes(
    queries: Tensor, keys: Tensor | None = None, k: int = 1, *, backward: bool = True, **_: Any
) -> int:
    """Neighbours, packed queries, a strip of packed keys, gradients; never N M."""
    width = accumulator(queries.dtype).itemsize
    elements, found = _elements(queries, keys) * width, _neighbours(queries, k)
    widened = elements if width > queries.element_size() else 0
    if on_gpu(queries):
        forward = elements + (len(queries) + GPU_PROGRAM_ROWS) * _slots(k) * 8
    else:
        num_keys = len(queries) if keys is None else len(keys)
        dim = queries.shape[1]
        strip = max(STRIP_BYTES, packed_bytes(LARGEST_STRIP_ROWS, dim, queries.dtype))
        packed = (2 if keys is None else 1) * packed_bytes(len(queries), dim, queries.dtype)
        forward = packed + strip + 4 * (num_keys + len(queries)) * width
        forward += (MOST_PARTS - 1) * found
    if not backward:
        return found + forward + SCRATCH_BYTES
    choices = len(queries) * k * CHOICE_BYTES + 16 * (_elements(queries, keys) // queries.shape[1])
    gradients = 2 * elements + widened
    return found + max(forward, choices + gradients) + SCRATCH_BYTES


def _elements(queries: Tensor, keys: Tensor | None) -> int:
    return queries.numel() + (0 if keys is None else keys.numel())


def _neighbours(queries: Tensor, k: int) -> int:
    """Bytes of values and indices."""
    return int(queries.shape[0]) * k * (accumulator(queries.dtype).itemsize + 8)


def _slots(k: int) -> int:
    """Neighbours that a program on a GPU keeps of each query."""
    return min(512, max(16, 1 << (k - 1).bit_length()))
