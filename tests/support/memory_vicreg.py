"""Losses whose peak memory is measured in a process of its own (``sslfast.testing``)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sslfast.functional import sie_loss, vibcreg_loss, vicreg_loss
from sslfast.losses import HypernetworkPredictor


def prepare(loss: str, num_rows: int, dim: int) -> Callable[[], object]:
    """Forward and backward, gradients kept to the end."""
    views = [torch.randn(num_rows, dim).requires_grad_() for _ in range(3)]
    function = {"vicreg": vicreg_loss, "vibcreg": vibcreg_loss, "sie": sie_loss}[loss]
    leaves = views if loss == "sie" else views[:2]
    return lambda: torch.autograd.grad(function(*leaves), leaves)


def predict(num_rows: int, dim: int) -> Callable[[], object]:
    predictor = HypernetworkPredictor(dim)
    rows = torch.randn(num_rows, dim, requires_grad=True)
    parameters = torch.randn(num_rows, 4)
    return lambda: torch.autograd.grad(predictor(rows, parameters).sum(), rows)
