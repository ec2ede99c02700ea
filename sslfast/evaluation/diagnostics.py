"""Cheap signs of collapse: participation ratio, spread by feature, alignment, uniformity."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.evaluation._gram import check_embeddings
from sslfast.losses.contrastive import alignment_loss, uniformity_loss
from sslfast.ops.correlation.frobenius import cross_frobenius


@torch.no_grad()
def participation_ratio(embeddings: Tensor, *, center: bool = False) -> float:
    """How many directions carry the energy: (sum_k sigma_k^2)^2 / sum_k sigma_k^4.

    Between 1 (one direction) and min(N, D) (all alike), and at most RankMe's entropy of the same
    shares allows; 0 for embeddings of zeros. With G the Gram matrix it is tr(G)^2 / ||G||_F^2, a
    `cross_frobenius`: two sums, no decomposition and no matrix, cheap enough for every step.

    Args:
        embeddings: ``(N, D)``, floating point.
        center: take the mean row out first, for the ratio of the covariance's eigenvalues.

    Raises:
        ValueError: not a non-empty, finite, floating-point matrix.
    """
    check_embeddings("embeddings", embeddings)
    largest = embeddings.abs().amax()
    if largest == 0:
        return 0.0
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    rows = embeddings.to(wide) / largest  # scale does not matter, its fourth power could overflow
    if center:
        rows = rows - rows.mean(0)
    energy = float(rows.double().square().sum())
    return energy**2 / float(cross_frobenius(rows)) if energy else 0.0


@torch.no_grad()
def feature_std(embeddings: Tensor, *, ddof: int = 1) -> Tensor:
    """Standard deviation of each feature: (D,), in float32 (float64 for float64 embeddings).

    Zeros are dead features. VICReg holds these numbers above 1; for unit rows spread evenly they
    are near 1 / sqrt(D) (Chen & He 2021, figure 2).

    Args:
        embeddings: ``(N, D)``, floating point, N above `ddof`.
        ddof: taken off N in the divisor.

    Raises:
        ValueError: not a non-empty, finite, floating-point matrix, or N is not above `ddof`.
    """
    check_embeddings("embeddings", embeddings)
    check_ddof(ddof, len(embeddings))
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return wide.std(0, correction=ddof)


@torch.no_grad()
def alignment(embeddings0: Tensor, embeddings1: Tensor, *, alpha: float = 2.0) -> float:
    """Mean distance of positive pairs to the power alpha: `sslfast.functional.alignment_loss`.

    Args:
        embeddings0, embeddings1: ``(N, D)``, normalised here; row i of both is a positive pair.
        alpha: power of the distance.

    Raises:
        TypeError, ValueError: as `sslfast.functional.alignment_loss`.
    """
    return float(alignment_loss(embeddings0, embeddings1, alpha=alpha))


@torch.no_grad()
def uniformity(embeddings: Tensor, *, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential of all pairs: `sslfast.functional.uniformity_loss`.

    N^2 D operations and no N x N matrix.

    Args:
        embeddings: ``(N, D)``, normalised here, N > 1.
        t: inverse variance of the Gaussian.

    Raises:
        TypeError, ValueError: as `sslfast.functional.uniformity_loss`.
    """
    return float(uniformity_loss(embeddings, t=t))


def check_ddof(ddof: int, num_rows: int) -> None:
    """Raises ValueError where nothing is left to divide by."""
    if ddof < 0:
        raise ValueError(f"ddof must not be negative, got {ddof}")
    if num_rows <= ddof:
        raise ValueError(f"embeddings must have more rows than ddof={ddof}, got {num_rows}")
