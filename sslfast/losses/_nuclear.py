"""Nuclear norms of many matrices, value and gradient from one factorisation.

    ||X||_* = sum_k sigma_k,    gradient U V^T = (X X^T)^(-1/2) X    for X = U diag(sigma) V^T

Matrices of single precision go through the Gram of their smaller side and its eigenvalues in
float64, which resolve sigma_k down to 1e-8 sigma_1, below what their own rounding leaves; float64
matrices go through a singular value decomposition. The gradient needs no difference of singular
values, so equal ones do no harm. Directions with no singular value above rounding have gradient 0,
the least of the subgradients there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.numerics import accumulator


def nuclear_norms(matrices: Tensor) -> Tensor:
    """Sum of the singular values of each matrix (..., M, N), as (...) in float32 or wider."""
    norms: Tensor = _NuclearNorms.apply(matrices)  # type: ignore[no-untyped-call]
    return norms


class _NuclearNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        wide = matrices.to(accumulator(matrices.dtype))
        factorise = _by_svd if wide.dtype == torch.float64 else _by_gram
        with torch.autocast(matrices.device.type, enabled=False):
            norms, polar = factorise(wide, ctx.needs_input_grad[0])
        ctx.save_for_backward(polar)
        ctx.dtype = matrices.dtype
        return norms.to(wide.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnorms: Tensor) -> Tensor:
        (polar,) = ctx.saved_tensors
        dmatrices: Tensor = polar * dnorms[..., None, None]
        return dmatrices.to(ctx.dtype)


def _by_svd(matrices: Tensor, learns: bool) -> tuple[Tensor, Tensor | None]:
    if not learns:
        return torch.linalg.svdvals(matrices).sum(-1), None
    left, sigma, right = torch.linalg.svd(matrices, full_matrices=False)
    least = torch.finfo(sigma.dtype).eps * max(matrices.shape[-2:]) * sigma[..., :1]  # (..., 1)
    return sigma.sum(-1), (left * (sigma > least).unsqueeze(-2)) @ right


def _by_gram(matrices: Tensor, learns: bool) -> tuple[Tensor, Tensor | None]:
    rows, columns = matrices.shape[-2:]
    upright = rows > columns
    wide = (matrices.mT if upright else matrices).double()  # (..., k, n), k <= n
    gram = wide @ wide.mT  # (..., k, k)
    if not learns:
        return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum(-1), None
    squares, vectors = torch.linalg.eigh(gram)  # (..., k), (..., k, k)
    least = torch.finfo(squares.dtype).eps * columns * squares[..., -1:]  # (..., 1)
    known = squares > least.clamp_min(torch.finfo(squares.dtype).tiny)
    inverse = squares.where(known, 1).rsqrt().where(known, 0)  # (..., k)
    polar = (vectors * inverse.unsqueeze(-2)) @ (vectors.mT @ wide)  # (..., k, n)
    polar = polar.mT if upright else polar
    return squares.clamp_min(0).sqrt().sum(-1), polar.to(matrices.dtype)
