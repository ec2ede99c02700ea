"""VICReg's terms as they are usually written, every covariance stored, and its samples."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._registry import Sample, Size
from sslfast.distributed import all_gather_rows


def gathered(rows: Tensor, gather_distributed: bool) -> Tensor:
    """The rows of all ranks, or these."""
    return all_gather_rows(rows) if gather_distributed else rows


def eager_variance(rows: Tensor, eps: float) -> Tensor:
    """Mean of relu(1 - sqrt(var + eps)) over the columns of rows (N, ..., D)."""
    return F.relu(1 - (rows.var(dim=0) + eps).sqrt()).mean()


def eager_covariance(rows: Tensor) -> Tensor:
    """Squares off the diagonal of the covariance of rows (N, ..., D) over D, mean over places."""
    centred = rows - rows.mean(dim=0)  # (N, ..., D)
    covariance = torch.einsum("n...c,n...d->...cd", centred, centred) / (len(rows) - 1)
    return off_diagonal(covariance).square().sum((-2, -1)).mean() / rows.shape[-1]


def off_diagonal(matrices: Tensor) -> Tensor:
    """Square matrices (..., D, D) with zeros for their diagonals."""
    return matrices - matrices.diagonal(dim1=-2, dim2=-1).diag_embed()


def sample_views(
    name: str,
    size: Size,
    *shape: int,
    noise: float = 0.5,
    magnitude: float = 1.0,
    constant_columns: int = 0,
    **options: Any,
) -> Sample:
    """Two noisy views (N, ..., D) of random embeddings, and the options of the loss."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        images, *noises = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
        views = [magnitude * (images + noise * part) for part in noises]
        for view in views:
            view[..., :constant_columns] = 3.0
        return {"embeddings0": views[0], "embeddings1": views[1], **options}

    return Sample(name, size, make)


def sample_parts(name: str, size: Size, *shape: int, predicted: int, **options: Any) -> Sample:
    """Two views, and noisy predictions of the last features of the second."""
    views = sample_views(name, size, *shape, **options)

    def make(generator: torch.Generator) -> dict[str, Any]:
        sample = views.make(generator)
        target = sample["embeddings1"][:, shape[1] - predicted :]
        noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
        predictions = 0.8 * target + 0.3 * options.get("magnitude", 1.0) * noise
        return {**sample, "predictions": predictions}

    return Sample(name, size, make)
