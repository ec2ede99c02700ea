"""Sub-batches of W-MSE: how views are split into them, and the distance of whitened views."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_count, check_ids, check_number, check_views
from sslfast._core.numerics import accumulator, mean
from sslfast.losses.redundancy._whitening import Whitened, whiten
from sslfast.ops.rows.l2_normalize import l2_normalize


def norm_mse_loss(x0: Tensor, x1: Tensor) -> Tensor:
    """Mean squared distance 2 - 2 cos of unit rows (Ermolov et al. 2021, equation 2).

    Args:
        x0, x1: (N, D) rows, normalised here.

    Returns:
        0-dim mean over rows in float32 (float64 for float64 rows).

    Raises:
        TypeError, ValueError: not two floating matrices of one shape on one device.
    """
    check_views(x0=x0, x1=x1)
    return mean_over_pairs(torch.stack((x0, x1)))


def whitened_batches(
    embeddings: Tensor, order: Tensor, num_samples: int, w_size: int, eps: float
) -> Whitened:
    """Rows (S, K, w_size, D) of K whitened sub-batches, and the statistics of each view in each."""
    views = embeddings.reshape(num_samples, -1, embeddings.shape[1])[:, order]  # (S, N, D)
    return whiten(views.reshape(num_samples, -1, w_size, views.shape[-1]), eps)


def mean_over_pairs(views: Tensor) -> Tensor:
    """2 - 2 cos, averaged over pairs of views and over images: (S, ..., D)."""
    rows = l2_normalize(views.to(accumulator(views.dtype)))
    own = mean(rows.square().sum((0, -1)))
    both = mean(rows.sum(0).square().sum(-1))
    num_pairs = len(views) * (len(views) - 1) / 2
    return 2 - (both - own) / num_pairs


def orders(
    permutations: Tensor | None, w_iter: int, num_images: int, device: torch.device
) -> list[Tensor]:
    """One order (N,) of the images for each draw."""
    if permutations is None:
        return [torch.randperm(num_images).to(device) for _ in range(w_iter)]
    check_ids("permutations", permutations.flatten(), "(w_iter N,)", w_iter * num_images)
    if permutations.shape != (w_iter, num_images):
        raise ValueError(
            f"permutations must have shape (w_iter, N) = {(w_iter, num_images)}, "
            f"got {tuple(permutations.shape)}"
        )
    return list(permutations.to(device))


def check_split(
    embeddings: Tensor,
    num_samples: int,
    w_size: int,
    w_iter: int,
    eps: float,
    name: str = "embeddings",
) -> int:
    """N of (S N, D) rows that split evenly into views and sub-batches."""
    check_count("num_samples", num_samples, 2)
    check_count("w_size", w_size, 2)
    check_count("w_iter", w_iter, 1)
    check_number("eps", eps, least=0, below=1)
    num_images, rest = divmod(len(embeddings), num_samples)
    if rest:
        raise ValueError(
            f"{name} must have a multiple of num_samples={num_samples} rows, "
            f"got shape {tuple(embeddings.shape)}"
        )
    if num_images == 0 or num_images % w_size:
        raise ValueError(f"{name} must hold a multiple of w_size={w_size} images, got {num_images}")
    return num_images
