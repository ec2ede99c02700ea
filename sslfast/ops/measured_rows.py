"""What samples and memory forms of the primitives are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor


def measured_rows(num_rows: int, dim: int) -> Tensor:
    """Float32 (N, D) rows of norm below 1 for a memory form, drawn without a second matrix."""
    rows = torch.rand(num_rows, dim, generator=torch.Generator().manual_seed(0))
    return rows.sub_(0.5).mul_(dim**-0.5)
