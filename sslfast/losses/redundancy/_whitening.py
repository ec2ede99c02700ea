"""Whitening of batches by the Cholesky factor of their covariance (Ermolov et al. 2021, section 3).

For N rows X with mean m and the lower triangular L,

    Sigma = (1 - eps) (X - m)^T (X - m) / (N - 1) + eps I = L L^T,    Y = (X - m) L^-T

so that Y^T Y = (N - 1) I for eps = 0. With G = dloss/dY, and Phi the lower triangle of a matrix
with half its diagonal,

    P = Phi(G^T Y),    dX = ( H - mean(H) ) L^-1,    H = G - (1 - eps)/(N - 1) Y (P + P^T)

Two products and one triangular solve, from Y and L alone: neither the inverse of L nor a gradient
of Sigma is formed. A batch of batches is whitened in one go.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.numerics import accumulator


class Whitened(NamedTuple):
    """Rows (..., N, D) with the mean (..., D) and covariance (..., D, D) that they had.

    The statistics have no gradient and are unbiased, without eps.
    """

    rows: Tensor
    mean: Tensor
    covariance: Tensor


def whiten(rows: Tensor, eps: float) -> Whitened:
    """Whiten each matrix (..., N, D), N > 1, by its own statistics, in float32 or wider."""
    whitened, mean, covariance = _Whiten.apply(rows, eps)  # type: ignore[no-untyped-call]
    return Whitened(whitened, mean, covariance)


def whiten_by(rows: Tensor, mean: Tensor, covariance: Tensor, eps: float) -> Tensor:
    """Whiten rows (N, D) by statistics that are held constant."""
    wide = accumulator(rows.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        factor = cholesky(covariance.to(wide), eps)  # (D, D)
        return _divide(rows.to(wide) - mean.to(wide), factor)


def cholesky(covariance: Tensor, eps: float) -> Tensor:
    """Factor of (1 - eps) Sigma + eps I for each matrix (..., D, D).

    Raises:
        ValueError: a matrix is not positive definite beyond rounding: the other features explain
            all of a feature's variance but 8 eps of it. Telling so reads a value, which on CUDA
            happens under ``SSLFAST_CHECK=1`` only, and never while a graph is compiled: the
            factor is NaN there.
    """
    shrunk = (1 - eps) * covariance
    shrunk.diagonal(dim1=-2, dim2=-1).add_(eps)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(shrunk)
    unexplained = factor.diagonal(dim1=-2, dim2=-1).square()  # (..., D)
    least = 8 * torch.finfo(shrunk.dtype).eps * shrunk.diagonal(dim1=-2, dim2=-1)
    failed = (info > 0) | (unexplained <= least).any(-1)  # (...)
    readable = covariance.device.type == "cpu" or os.environ.get("SSLFAST_CHECK") == "1"
    if readable and not torch.compiler.is_compiling() and bool(failed.any()):
        raise ValueError(
            "rows must have a positive definite covariance in every batch that is whitened: more "
            f"rows than features, no constant or repeated feature; or eps above 0, got eps={eps}"
        )
    return factor.masked_fill(failed[..., None, None], torch.nan)


class _Whiten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = rows.to(accumulator(rows.dtype))  # (..., N, D)
        with torch.autocast(rows.device.type, enabled=False):
            mean = wide.mean(-2)  # (..., D)
            centred = wide - mean.unsqueeze(-2)
            covariance = centred.mT @ centred / (rows.shape[-2] - 1)  # (..., D, D)
            factor = cholesky(covariance, eps)
            whitened = _divide(centred, factor)
        ctx.save_for_backward(whitened, factor)
        ctx.shrinkage = (1 - eps) / (rows.shape[-2] - 1)
        ctx.dtype = rows.dtype
        ctx.mark_non_differentiable(mean, covariance)
        return whitened, mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dwhitened: Tensor, *_: Any) -> tuple[Tensor, None]:
        whitened, factor = ctx.saved_tensors
        with torch.autocast(whitened.device.type, enabled=False):
            lower = (dwhitened.mT @ whitened).tril()  # (..., D, D)
            lower.diagonal(dim1=-2, dim2=-1).mul_(0.5)
            gradient = dwhitened - ctx.shrinkage * whitened @ (lower + lower.mT)  # (..., N, D)
            gradient = gradient - gradient.mean(-2, keepdim=True)
            drows = torch.linalg.solve_triangular(factor, gradient, upper=False, left=False)
        return drows.to(ctx.dtype), None


def _divide(rows: Tensor, factor: Tensor) -> Tensor:
    """Rows (..., N, D) times the inverse of the transposed factor (..., D, D)."""
    divided: Tensor = torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False)
    return divided
