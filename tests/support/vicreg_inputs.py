"""What the tests of VICReg and its descendants share: views, values, plain formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def views(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, magnitude: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Two noisy views as leaves; about half of the columns deviate by less than 1."""
    images, *noises = normal(3, *shape, seed=seed)
    found = [(magnitude * (images + 0.5 * noise)).to(dtype).requires_grad_() for noise in noises]
    return found[0], found[1]


def official_off_diagonal(square: Tensor) -> Tensor:
    """(D (D - 1),) elements off the diagonal, by the strides that the authors' code uses."""
    size = len(square)
    return square.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()


def variance_term(rows: Tensor, eps: float = 1e-4) -> Tensor:
    return F.relu(1 - torch.sqrt(rows.var(dim=0) + eps)).mean()


def covariance_term(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return official_off_diagonal(covariance).pow(2).sum() / rows.shape[1]
