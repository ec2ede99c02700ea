"""What `isotonic_rank` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._core.numerics import accumulator


def flops(values: Tensor, *, backward: bool = True, **options: Any) -> int:
    """Of the blocks alone: a comparison and a merge for each value; sorting is not counted."""
    return values.numel() * (28 if backward else 20)


def bytes_moved(values: Tensor, *, backward: bool = True, **options: Any) -> int:
    """Values, result, order and blocks; backward the gradients, values, order and blocks."""
    width = accumulator(values.dtype).itemsize
    state = 8 + 4
    forward = values.element_size() + width + state
    return values.numel() * (forward + (width + state + values.element_size() if backward else 0))


def peak_bytes(values: Tensor, *, backward: bool = True, **options: Any) -> int:
    """Result, order and blocks, and beside them the larger of two moments: the values in order
    while a result is formed, with a list of blocks for each thread, and both gradients with widened
    copies of them and of half values."""
    width = accumulator(values.dtype).itemsize
    copies = 1 if width > values.element_size() else 0
    kept = width + 8 + 4
    ordering = width + 8 + copies * width
    pooling = 16 * torch.get_num_threads() * values.shape[-1]
    gradients = width * (2 + copies) + values.element_size() if backward else 0
    return values.numel() * (kept + max(ordering, gradients)) + pooling
