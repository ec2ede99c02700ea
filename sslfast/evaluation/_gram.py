"""Gram matrices in float64 and the singular values that they hold.

The eigenvalues of a Gram matrix are the squared singular values, with an error of float64 rounding
of the largest: sigma is resolved down to about 1e-8 sigma_1, where float32 embeddings carry 1e-7 of
rounding already. Through float32 it would be 2e-4 sigma_1, coarser than the tail of a spectrum.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ROWS = 4096  # widened to float64 at a time


def check_embeddings(name: str, embeddings: Tensor) -> None:
    """Raises ValueError unless a non-empty, finite, floating-point matrix."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or embeddings.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty floating-point (N, D) tensor, "
            f"got {embeddings.dtype} of shape {tuple(embeddings.shape)}"
        )
    if not bool(embeddings.isfinite().all()):
        raise ValueError(f"{name} must be finite, got inf or nan")


def add_feature_gram(gram: Tensor, embeddings: Tensor) -> None:
    """Add the sum of x_i x_i^T over rows (N, D) to a float64 matrix (D, D)."""
    for start in range(0, len(embeddings), CHUNK_ROWS):
        rows = embeddings[start : start + CHUNK_ROWS].double()
        gram.addmm_(rows.T, rows)


def smaller_gram(embeddings: Tensor) -> Tensor:
    """Gram matrix of the rows or of the features of (N, D), whichever are fewer, in float64."""
    num_rows, dim = embeddings.shape
    if num_rows <= dim:
        rows = embeddings.double()
        return rows @ rows.T
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=embeddings.device)
    add_feature_gram(gram, embeddings)
    return gram


def singular_values(gram: Tensor) -> Tensor:
    """Descending, from a Gram matrix (k, k)."""
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.flip(0).clamp_min(0).sqrt()


def effective_rank(sigma: Tensor, eps: float) -> float:
    """exp(-sum_k p_k log p_k), p_k = sigma_k / sum(sigma) + eps; 0 where all are 0."""
    total = sigma.sum()
    if total == 0:
        return 0.0
    p = sigma / total + eps
    return float((-torch.xlogy(p, p).sum()).exp())


def check_eps(eps: float) -> None:
    """Raises ValueError for a negative eps or NaN."""
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
