"""Variance and covariance of centred rows, whose backward pass is one product.

With x the rows (N, D), X the centred ones, C = X^T X and S = sum_{i != j} C_ij^2,

    dS/dX = 4 X off(C),    d(C_ii)/dX_i = 2 X_i

Every column of X sums to 0, hence so does every column of these gradients: the mean that centring
would take from them is 0 already, and dx = dX. So centring has no backward pass of its own, and
the gradient of the variances, C_ii / (N - 1), is the one that `cross_frobenius` has for C_ii. Their
value is that of the pass that centres: it knows the rows before they are rounded to half precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast import _backends
from sslfast._core.correlation.frobenius import Route
from sslfast._core.numerics import accumulator, mean, tile_operands
from sslfast.ops.correlation import frobenius_keep as keep
from sslfast.ops.correlation.frobenius import SPEC as FROBENIUS
from sslfast.ops.rows.standardize import SPEC as STANDARDIZE
from sslfast.ops.rows.standardize import standardize

_frobenius, _frobenius_backward = FROBENIUS.forward_op, FROBENIUS.backward_op
_standardize = STANDARDIZE.forward_op


def covariance_squares(rows: Tensor, route: Route) -> tuple[Tensor, Tensor]:
    """S and the variances (D,) for rows (N, D); the centred rows are not kept."""
    total, variance, _ = _CovarianceSquares.apply(
        rows, None, route, _backends.forced(), keep.learns(rows)
    )  # type: ignore[no-untyped-call]
    return total, variance


def covariance_squares_and_difference(
    rows: Tensor, others: Tensor, route: Route
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the mean squared difference of two views (N, D).

    Its gradient joins that of the covariance where it stands, one matrix less at the peak.
    """
    return _apply(rows, others, route)


def _apply(rows: Tensor, others: Tensor | None, route: Route) -> tuple[Tensor, Tensor, Tensor]:
    learns = keep.learns(rows)  # inside, autograd is off
    found: tuple[Tensor, Tensor, Tensor]
    found = _CovarianceSquares.apply(rows, others, route, _backends.forced(), learns)  # type: ignore[no-untyped-call]
    return found


def centre(rows: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Centred rows (N, D) whose gradient passes unchanged, for products of them alone.

    Args:
        rows: (N, D).
        moments: (D,) mean and (D,) unbiased variance of the rows of all ranks; by default the
            rows' own.

    Returns:
        Centred rows, and the variances, to which no gradient flows: see `variance_of`.
    """
    centred: Tensor
    variance: Tensor
    centred, variance = _Centre.apply(rows, *(moments or (None, None)))  # type: ignore[no-untyped-call]
    return centred, variance


def variance_of(value: Tensor, diagonal: Tensor, num_rows: int) -> Tensor:
    """The variances `value`, with the gradient of diagonal / (N - 1), which they are but for
    rounding.
    """
    rounded = diagonal / (num_rows - 1)
    return rounded + (value - rounded).detach()


def mean_squared_difference(first: Tensor, second: Tensor) -> Tensor:
    """0-dim mean of (first - second)^2, in float32 or wider, of tensors of one shape."""
    squared: Tensor = _MeanSquaredDifference.apply(first, second)  # type: ignore[no-untyped-call]
    return squared


class _CovarianceSquares(torch.autograd.Function):
    """Keeps `rows`, which live anyway, and centres them again: one pass instead of one matrix."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, others: Tensor | None, route: Route, backend: str, learns: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred, variance = _centred(rows, backend)  # (N, D), (D,)
        centred, _ = tile_operands(centred, None)
        chosen = keep.choose_route(centred, None) if route == "auto" else route
        room = keep.cache_elements(centred, None, chosen, learns)
        total, diagonal, cache = _frobenius(centred, None, True, chosen, None, None, room, backend)
        ctx.save_for_backward(rows, others, diagonal, cache)
        ctx.options = centred.dtype, chosen, backend
        similarity = total.new_zeros(()) if others is None else _mean_square(rows, others)
        return total, variance, similarity

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dtotal: Tensor, dvariance: Tensor, dsimilarity: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, others, diagonal, cache = ctx.saved_tensors
        dtype, route, backend = ctx.options
        needs_rows, needs_others = ctx.needs_input_grad[:2]
        drows: Tensor | None = None
        if needs_rows:
            form = (None, True, route, None, None, diagonal, cache, True, False, backend)
            ddiagonal = dvariance / (len(rows) - 1)  # (D,)
            centred = _centred(rows, backend)[0].to(dtype)  # (N, D)
            drows, _ = _frobenius_backward(dtotal, ddiagonal, centred, *form)
            del centred
        dothers: Tensor | None = None
        if others is not None:
            difference = _difference(rows, others).mul_(2 * dsimilarity / rows.numel())
            drows = drows.add_(difference) if drows is not None else None
            dothers = difference.neg_().to(others.dtype) if needs_others else None
        return None if drows is None else drows.to(rows.dtype), dothers, None, None, None


class _Centre(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, mean: Tensor | None, variance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if mean is None or variance is None:
            centred, variance = _centred(rows, _backends.forced())
        else:
            centred = standardize(rows, mean=mean, variance=variance, unit_variance=False)
            variance = variance.clone()
        ctx.mark_non_differentiable(variance)
        return centred, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dcentred: Tensor, dvariance: Tensor) -> tuple[Tensor, None, None]:
        return dcentred, None, None


class _MeanSquaredDifference(torch.autograd.Function):
    """Keeps the operands, which live anyway, instead of their difference or widened copies."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return _mean_square(first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmean: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second = ctx.saved_tensors
        gradient = _difference(first, second).mul_(2 * dmean / first.numel())
        needs_first, needs_second = ctx.needs_input_grad
        dsecond = gradient.neg().to(second.dtype) if needs_second else None
        return gradient.to(first.dtype) if needs_first else None, dsecond


def _centred(rows: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Centred rows (N, D), and their unbiased variances (D,)."""
    ddof, eps, unit_variance = 1, 0.0, False
    centred, _, variance, _ = _standardize(
        rows, None, None, ddof, eps, "variance", unit_variance, backend
    )
    return centred, variance


def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    return mean(_difference(first, second).square_())


def _difference(first: Tensor, second: Tensor) -> Tensor:
    wide = accumulator(torch.promote_types(first.dtype, second.dtype))
    return torch.sub(first.to(wide), second.to(wide))
