"""RankMe: how many directions the embeddings really use."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def rankme(embeddings: Tensor, *, eps: float = 1e-7) -> float:
    """Effective rank exp(-sum_k p_k log p_k), p_k = sigma_k / sum(sigma) + eps.

    Garrido et al. 2023 (RankMe), equations 1 and 2, eps = 1e-7 for float32 as there. Singular
    values of the embeddings as they are: neither centred nor normalised. Between 1 (collapse) and
    min(N, D), up to eps. All-zero embeddings give 0, the formula's limit of no direction.

    Args:
        embeddings: ``(N, D)``; the spectrum is taken in float64.

    Raises:
        ValueError: not a non-empty, finite, floating-point matrix, or eps < 0.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or embeddings.numel() == 0:
        raise ValueError(
            "embeddings must be a non-empty floating-point (N, D) tensor, "
            f"got {embeddings.dtype} of shape {tuple(embeddings.shape)}"
        )
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if not bool(embeddings.isfinite().all()):
        raise ValueError("embeddings must be finite, got inf or nan")
    sigma = torch.linalg.svdvals(embeddings.double())  # (min(N, D),)
    total = sigma.sum()
    if total == 0:
        return 0.0
    p = sigma / total + eps
    return float((-torch.xlogy(p, p).sum()).exp())
