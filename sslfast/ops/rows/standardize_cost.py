"""What `standardize` costs, from its own arguments (meta tensors will do)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslfast._core.numerics import accumulator

ROWS_OF_PARTIAL_SUMS = 512  # the kernels' least number of rows between two merges of statistics


def flops(embeddings: Tensor, *, backward: bool = True, **options: Any) -> int:
    return embeddings.numel() * (18 if backward else 6)


def bytes_moved(embeddings: Tensor, *, backward: bool = True, **options: Any) -> int:
    return embeddings.numel() * embeddings.element_size() * (5 if backward else 2)


def peak_bytes(embeddings: Tensor, *, backward: bool = True, **options: Any) -> int:
    """Result and gradient in the input's dtype, three widened copies where it is half, and a few
    float64 numbers a column for each group of rows."""
    width = accumulator(embeddings.dtype).itemsize
    copies = 3 if width > embeddings.element_size() else 0
    matrices = embeddings.element_size() * (2 if backward else 1) + width * copies
    num_rows, dim = embeddings.shape
    return num_rows * dim * matrices + 16 * dim * (8 + num_rows // ROWS_OF_PARTIAL_SUMS)
