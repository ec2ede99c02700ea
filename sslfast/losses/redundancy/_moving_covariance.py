"""The moving covariance of TiCo: how it moves on, and what rows pay for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.checks import check_device, check_floating
from sslfast._core.numerics import mean
from sslfast.distributed import world_size


@torch.no_grad()
def moved_average(
    past: Tensor | None, rows: Tensor, beta: float, gather_distributed: bool
) -> Tensor:
    """beta past + (1 - beta) B of rows (N, D), in the memory of `past` where its dtype allows."""
    ranks = world_size() if gather_distributed else 1
    weight = (1 - beta) / (len(rows) * ranks)
    with torch.autocast(rows.device.type, enabled=False):
        if ranks > 1:
            batch = (rows.T @ rows).mul_(weight)  # (D, D)
            dist.all_reduce(batch)
            return batch if past is None else past.to(batch.dtype).mul_(beta).add_(batch)
        if past is None:
            return (rows.T @ rows).mul_(weight)
        return past.to(rows.dtype).addmm_(rows.T, rows, beta=beta, alpha=weight)


def quadratic_mean(rows: Tensor, covariance: Tensor) -> Tensor:
    """Mean of x_i^T C x_i over rows (N, D), for a symmetric C (D, D)."""
    value: Tensor = _QuadraticMean.apply(rows, covariance)  # type: ignore[no-untyped-call]
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
