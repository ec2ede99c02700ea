"""Redundancy-reduction losses as others write them, in plain torch, and oracles without D x D.

The authors' code and solo-learn differ in how they leave the diagonal out: a strided view of the
flattened matrix, or a boolean mask. Their weights are arguments here, so that all compute one
loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH_NORM_EPS = 1e-5
INVARIANCE, VARIANCE, COVARIANCE, VARIANCE_EPS = 25.0, 25.0, 1.0, 1e-4  # of VICReg


def batch_norm(embeddings: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1, by torch's batch norm without its affine part."""
    return F.batch_norm(embeddings, None, None, training=True, eps=BATCH_NORM_EPS)


def authors_barlow_twins(
    embeddings0: Tensor, embeddings1: Tensor, *, lambda_param: float
) -> Tensor:
    """Barlow Twins as its authors run it on one process (facebookresearch/barlowtwins)."""
    correlation = batch_norm(embeddings0).T @ batch_norm(embeddings1)  # (D, D)
    correlation.div_(len(embeddings0))
    on_diagonal = correlation.diagonal().add_(-1).pow_(2).sum()
    return on_diagonal + lambda_param * _flattened(correlation).pow_(2).sum()


def solo_learn_barlow_twins(
    embeddings0: Tensor, embeddings1: Tensor, *, lambda_param: float
) -> Tensor:
    """Barlow Twins as in solo-learn, at a scale of 1: weights written through a boolean mask."""
    rows = batch_norm(embeddings0), batch_norm(embeddings1)
    correlation = torch.einsum("ni,nj->ij", *rows) / len(embeddings0)  # (D, D)
    identity = torch.eye(len(correlation), device=correlation.device)  # (D, D)
    squares = (correlation - identity).pow(2)
    squares[~identity.bool()] *= lambda_param
    return squares.sum()


def authors_vicreg(embeddings0: Tensor, embeddings1: Tensor) -> Tensor:
    """VICReg as its authors run it on one process (facebookresearch/vicreg)."""
    return _vicreg(embeddings0, embeddings1, lambda matrix: _flattened(matrix).pow_(2).sum())


def solo_learn_vicreg(embeddings0: Tensor, embeddings1: Tensor) -> Tensor:
    """VICReg as in solo-learn, but with the halved variance term of everybody else."""

    def squares(covariance: Tensor) -> Tensor:
        identity = torch.eye(len(covariance), device=covariance.device)  # (D, D)
        return covariance[~identity.bool()].pow_(2).sum()

    return _vicreg(embeddings0, embeddings1, squares)


def barlow_twins_by_grams(
    embeddings0: Tensor, embeddings1: Tensor, *, lambda_param: float
) -> Tensor:
    """The loss with N x N matrices alone, ||A^T B||^2 = <A A^T, B B^T>: an oracle in float64."""
    a, b = batch_norm(embeddings0), batch_norm(embeddings1)  # (N, D) each
    diagonal = (a * b).sum(0) / len(a)  # (D,)
    total = ((a @ a.T) * (b @ b.T)).sum() / len(a) ** 2
    return (diagonal - 1).square().sum() + lambda_param * (total - diagonal.square().sum())


def vicreg_by_grams(embeddings0: Tensor, embeddings1: Tensor) -> Tensor:
    """The loss with N x N matrices alone, ||X^T X||^2 = ||X X^T||^2: an oracle in float64."""
    loss = INVARIANCE * F.mse_loss(embeddings0, embeddings1)
    for rows in (embeddings0, embeddings1):
        centred = rows - rows.mean(0)  # (N, D)
        variance = centred.square().sum(0) / (len(rows) - 1)  # (D,)
        total = (centred @ centred.T).square().sum() / (len(rows) - 1) ** 2
        off_diagonal = total - variance.square().sum()
        loss = loss + VARIANCE / 2 * F.relu(1 - (variance + VARIANCE_EPS).sqrt()).mean()
        loss = loss + COVARIANCE * off_diagonal / rows.shape[1]
    return loss


def rankme_by_svd(embeddings: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Effective rank (Garrido et al. 2023, equation 1) from a singular value decomposition."""
    sigma = torch.linalg.svdvals(embeddings.double())  # (min(N, D),)
    p = sigma / sigma.sum() + eps
    return (-(p * p.log()).sum()).exp().to(embeddings.dtype)


def _vicreg(
    embeddings0: Tensor, embeddings1: Tensor, off_diagonal_squares: Callable[[Tensor], Tensor]
) -> Tensor:
    loss = INVARIANCE * F.mse_loss(embeddings0, embeddings1)
    for rows in (embeddings0, embeddings1):
        centred = rows - rows.mean(0)  # (N, D)
        deviation = (centred.var(0) + VARIANCE_EPS).sqrt()  # (D,)
        loss = loss + VARIANCE / 2 * F.relu(1 - deviation).mean()
        covariance = centred.T @ centred / (len(rows) - 1)  # (D, D)
        loss = loss + COVARIANCE * off_diagonal_squares(covariance) / rows.shape[1]
    return loss


def _flattened(matrix: Tensor) -> Tensor:
    """A copy of what is off the diagonal of a (D, D) matrix, (D (D - 1),).

    After the first element every (D + 1)-th is on the diagonal.
    """
    size = len(matrix)
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].flatten()
