"""What the launchers of kernels that work row by row share (csrc/cuda/rows/rows.cuh)."""

from __future__ import annotations

from torch import Tensor

WARP_BYTES = 2048  # of a row that the 32 threads of a warp can keep in registers
MOST_BLOCKS = 65536
MOST_FEATURES = 2**31 - 1


def rows_of(tensor: Tensor) -> Tensor:
    """(N, D) with neighbouring features; copied only where they are not."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()


def blocks(rows: Tensor) -> tuple[tuple[int], tuple[int, int]]:
    """Grid and block: a warp takes a short row, a block a long one."""
    short = rows.shape[1] * rows.element_size() <= WARP_BYTES
    at_a_time = 8 if short else 1
    grid = min(-(-rows.shape[0] // at_a_time), MOST_BLOCKS)
    return (grid,), (32, at_a_time) if short else (256, 1)


def too_long(tensor: Tensor, *_: Tensor) -> str | None:
    """Why rows are too long for the kernels, ``None`` if they are not."""
    if tensor.ndim and tensor.shape[-1] > MOST_FEATURES:
        return f"rows have {tensor.shape[-1]} features, at most {MOST_FEATURES} are counted"
    return None
