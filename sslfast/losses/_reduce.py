"""Reductions whose result does not depend on the number of threads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslfast.ops._checks import accumulator

# torch splits a sum to one number among threads from 32768 elements on.
_CHUNK = 4096


def mean(values: Tensor) -> Tensor:
    """Mean of all elements, added in one fixed order; gradient as `torch.mean`."""
    flat = values.reshape(-1)
    chunks = F.pad(flat, (0, -flat.numel() % _CHUNK)).view(-1, _CHUNK)
    return chunks.sum(1).sum() / flat.numel()


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """<left_i, right_i> for each row i, accumulated in float32 or wider."""
    dtype = accumulator(left.dtype)
    return (left.to(dtype) * right.to(dtype)).sum(-1)
