"""Cross-correlations as they are usually written, each D x D matrix stored: oracle, baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Sample, Size
from sslfast.distributed import all_gather_rows, scale_gradient, world_size
from sslfast.losses.redundancy._correlation import Correlation


def standardized(how: Correlation, *views: Tensor) -> list[Tensor]:
    """Columns of mean 0 and variance 1, of the whole batch where ranks are gathered."""
    if how.has_global_statistics:
        return [_standardize(all_gather_rows(view), how) for view in views]
    rows = [_standardize(view, how) for view in views]
    return [all_gather_rows(view) for view in rows] if how.gather_distributed else rows


def _standardize(rows: Tensor, how: Correlation) -> Tensor:
    variance, mean = torch.var_mean(rows, 0, correction=how.ddof)  # (D,), (D,)
    if how.eps_on == "variance":
        return (rows - mean) / (variance + how.eps).sqrt()
    return (rows - mean) / (variance.sqrt() + how.eps)


def to_identity(a: Tensor, b: Tensor, lambda_param: float) -> Tensor:
    """Invariance and redundancy terms of a^T b / N."""
    correlation = a.T @ b / len(a)  # (D, D)
    invariance = (correlation.diagonal() - 1).square().sum()
    identity = torch.eye(len(correlation), dtype=torch.bool, device=a.device)
    return invariance + lambda_param * correlation.masked_fill(identity, 0).square().sum()


def averaged_over_ranks(loss: Tensor, how: Correlation) -> Tensor:
    """Gathered rows receive the sum over ranks, W times the gradient of the loss."""
    if how.gather_distributed and how.grad_scale == "reference":
        return scale_gradient(loss, 1 / world_size())
    return loss


def correlated_views(
    name: str,
    size: Size,
    num_images: int,
    dim: int,
    *,
    num_views: int = 2,
    noise: float = 0.5,
    magnitude: float = 1.0,
    offset: float = 0.0,
    constant_column: bool = False,
    **options: Any,
) -> Sample:
    """Noisy views of random embeddings with correlated features, and the options of the loss."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        shape = (1 + num_views, num_images, dim)
        images, *noises = torch.randn(shape, generator=generator, dtype=torch.float64)
        images = images + 0.5 * images.roll(1, 1)
        views = [offset + magnitude * (images + noise * part) for part in noises]
        if constant_column:
            for view in views:
                view[:, 0] = 3.0
        return {**{f"embeddings{index}": view for index, view in enumerate(views)}, **options}

    return Sample(name, size, make)
