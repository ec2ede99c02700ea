"""The moving covariance of TiCo: how it moves on, and what rows pay for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.calls import call_function
from sslfast._core.checks import check_device, check_floating
from sslfast._core.numerics import mean
from sslfast.distributed import world_size
from sslfast.losses._state import lasting, on_host, writable


@torch.no_grad()
def moved_average(
    past: Tensor | None, rows: Tensor, beta: float, finite: Tensor, gather_distributed: bool
) -> Tensor | None:
    """beta past + (1 - beta) B of rows (N, D), in the memory of `past` where its dtype allows.

    The average stays as it is, zero where there is none, unless the batch is `finite` (0-dim
    truth) on every rank. On a CPU that is read; elsewhere nothing waits for the value.
    """
    ranks = world_size() if gather_distributed else 1
    weight = (1 - beta) / (len(rows) * ranks)
    with lasting(), torch.autocast(rows.device.type, enabled=False):
        past = None if past is None else writable(past).to(rows.dtype)
        batch = None
        if ranks > 1:
            batch = (rows.T @ rows).mul_(weight).masked_fill_(~finite, torch.nan)  # (D, D)
            dist.all_reduce(batch)
            finite = batch.diagonal().isfinite().all()
        if on_host(finite):
            return _moved(past, rows, batch, beta, weight) if bool(finite) else past
        rows = torch.where(finite, rows, 0)
        batch = None if batch is None else torch.where(finite, batch, 0)
        keep = torch.where(finite, beta, 1.0).to(rows.dtype)
        return _moved(None if past is None else past.mul_(keep), rows, batch, 1.0, weight)


def _moved(
    past: Tensor | None, rows: Tensor, batch: Tensor | None, beta: float, weight: float
) -> Tensor:
    """beta past + `batch`, which is the weight times rows^T rows (D, D) where it is not given."""
    if batch is not None:
        return batch if past is None else past.mul_(beta).add_(batch)
    if past is None:
        return (rows.T @ rows).mul_(weight)
    return past.addmm_(rows.T, rows, beta=beta, alpha=weight)


def quadratic_mean(rows: Tensor, covariance: Tensor) -> Tensor:
    """Mean of x_i^T C x_i over rows (N, D), for a symmetric C (D, D)."""
    value: Tensor = call_function(_QuadraticMean, rows, covariance)
    return value


class _QuadraticMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, covariance: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            product = rows @ covariance.to(rows.dtype)  # (N, D)
        # The products serve the backward pass too; the rows only a covariance that learns.
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(product, rows if learns else None)
        ctx.dtype = covariance.dtype
        return mean((product * rows).sum(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmean: Tensor) -> tuple[Tensor, Tensor | None]:
        product, rows = ctx.saved_tensors
        weight = dmean / len(product)
        drows = product * (2 * weight)  # (N, D)
        return drows, None if rows is None else (rows.T @ rows * weight).to(ctx.dtype)


def check_covariance(name: str, covariance: Tensor | None, embeddings: Tensor) -> None:
    if covariance is None:
        return
    check_floating(name, covariance)
    check_device(name, covariance, "the embeddings", embeddings)
    dim = embeddings.shape[1]
    if covariance.shape != (dim, dim):
        raise ValueError(
            f"{name} must have shape (D, D) = {(dim, dim)}, got shape {tuple(covariance.shape)}"
        )
