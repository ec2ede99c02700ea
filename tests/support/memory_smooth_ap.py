"""Smooth-AP in a process of its own, whose peak memory is measured (``sslfast.testing``)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sslfast.functional import smooth_ap_loss


def prepare(num_rows: int, dim: int, class_size: int) -> Callable[[], object]:
    """Forward and backward, the gradient kept to the end."""
    rows = torch.randn(num_rows, dim, requires_grad=True)
    labels = torch.arange(num_rows) // class_size
    return lambda: torch.autograd.grad(smooth_ap_loss(rows, labels), rows)
