"""The terms that VICReg and its descendants share (Bardes et al. 2022, section 4.1).

Rows have shape (N, ..., D): N images, any number of places, D features. Every (place, feature) is
a column with a variance of its own, and every place has a covariance matrix of its own, which is
never built: its off-diagonal squares come from `cross_frobenius` of the centred rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_floating
from sslfast._core.correlation.frobenius import Route
from sslfast._core.numerics import mean
from sslfast.distributed import (
    all_gather_rows,
    column_moments_of_ranks,
    cross_frobenius_of_ranks,
    scale_gradient,
    sum_over_ranks,
    world_size,
)
from sslfast.losses.redundancy._covariance import (
    centre,
    covariance_squares,
    covariance_squares_and_difference,
    mean_squared_difference,
    variance_of,
)
from sslfast.losses.redundancy._ranks import num_rows_of
from sslfast.ops.correlation.frobenius import cross_frobenius
from sslfast.ops.rows.standardize import standardize


class Scope(NamedTuple):
    """How variances and covariances are taken.

    Args:
        eps: added to the variance before the root.
        gather_distributed: of the rows of all ranks; a rank's rows receive the gradient of the
            one global value.
        route: of `cross_frobenius`.
    """

    eps: float
    gather_distributed: bool
    route: Route

    @property
    def ranks(self) -> int:
        """W, 1 where ranks are not gathered."""
        return world_size() if self.gather_distributed else 1

    def invariance(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean squared difference of rows (N, ..., D)."""
        squared = mean_squared_difference(first, second)
        return sum_over_ranks(squared / self.ranks) if self.ranks > 1 else squared

    def views(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Invariance, sum of both hinges and sum of both covariances of two views."""
        if self.ranks > 1 or first.ndim > 2:
            # First, so that its gradient is formed last, when other memory is free again.
            similarity = self.invariance(first, second)
            variance0, covariance0 = self.variance_and_covariance(first)
        else:
            squares, variance, similarity = covariance_squares_and_difference(
                first, second, self.route
            )
            variance0, covariance0 = self._from(squares, variance, len(first))
        variance1, covariance1 = self.variance_and_covariance(second)
        return similarity, variance0 + variance1, covariance0 + covariance1

    def variance_and_covariance(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Hinge on the deviations, and squares off the diagonal of the covariance.

        Args:
            rows: (N, ..., D) of one view.

        Returns:
            0-dim mean over columns of relu(1 - sqrt(variance + eps)), and 0-dim mean over places
            of the sum over i != j of C_ij^2. Variance and covariance divide by N - 1.
        """
        if rows.ndim == 2 and self.ranks == 1:
            return self._from(*covariance_squares(rows, self.route), len(rows))
        if rows.ndim == 2:
            num_rows = len(rows) * self.ranks
            moments = column_moments_of_ranks(rows.detach(), ddof=1)  # (D,), (D,)
            columns, variance = centre(rows, moments)
            squares, diagonal = cross_frobenius_of_ranks(
                columns, split_diagonal=True, route=self.route
            )
            return self._from(squares, variance_of(variance, diagonal, num_rows), num_rows)
        if self.ranks > 1:  # once, where every place would communicate for itself
            rows = scale_gradient(all_gather_rows(rows), 1 / self.ranks)
        columns, variance = centre(rows.flatten(1))  # (N, P D), (P D,)
        places = columns.view(rows.shape).flatten(1, -2).unbind(1)  # P times (N, D)
        sums, diagonals = zip(
            *(cross_frobenius(place, split_diagonal=True, route=self.route) for place in places),
            strict=True,
        )
        variance = variance_of(variance, torch.cat(diagonals), len(rows))
        return self._from(torch.stack(sums).mean(), variance, len(rows))

    def variance_and_correlation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same of rows (N, D) with the correlation matrix in place of the covariance matrix.

        A constant column correlates with nothing.
        """
        num_rows = len(rows) * self.ranks
        if self.ranks == 1:
            columns, _, variance = standardize(rows, ddof=1, eps=0.0, statistics=True)
            squares, _ = cross_frobenius(columns, split_diagonal=True, route=self.route)
            return hinge(variance, self.eps), squares / (num_rows - 1) ** 2
        moments = column_moments_of_ranks(rows, ddof=1)  # (D,), (D,)
        columns = standardize(rows, mean=moments[0], variance=moments[1], eps=0.0)
        squares, _ = cross_frobenius_of_ranks(columns, split_diagonal=True, route=self.route)
        # Every rank has the whole hinge, and the moments add up the gradients of all.
        variance = scale_gradient(moments[1], 1 / self.ranks)
        return hinge(variance, self.eps), squares / (num_rows - 1) ** 2

    def variance(self, rows: Tensor) -> Tensor:
        """The hinge alone, of rows (N, D)."""
        if self.ranks == 1:
            _, _, variance = standardize(rows, ddof=1, unit_variance=False, statistics=True)
            return hinge(variance, self.eps)
        _, variance = column_moments_of_ranks(rows, ddof=1)
        return hinge(scale_gradient(variance, 1 / self.ranks), self.eps)

    def _from(self, squares: Tensor, variance: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        return hinge(variance, self.eps), squares / (num_rows - 1) ** 2


def hinge(variance: Tensor, eps: float) -> Tensor:
    """Mean of relu(1 - sqrt(variance + eps)); gradient 0 where the root is of 0."""
    shifted = variance + eps
    positive = shifted > 0
    deviation = shifted.where(positive, 1.0).sqrt().where(positive, 0.0)
    return mean((1 - deviation).relu())


def check_maps(**views: Tensor) -> None:
    """Views (N, ..., D) of the same images: floating, of one shape, on one device.

    Raises:
        TypeError: a view is not a floating tensor.
        ValueError: a view has fewer than two dimensions or no element, or shapes or devices
            differ.
    """
    (first_name, first), *others = views.items()
    for name, view in views.items():
        check_floating(name, view)
        if view.ndim < 2 or view.numel() == 0:
            raise ValueError(
                f"{name} must have shape (N, ..., D) with at least one row and feature, "
                f"got shape {tuple(view.shape)}"
            )
    for name, view in others:
        if view.shape != first.shape:
            raise ValueError(
                f"{name} must have the shape of {first_name} {tuple(first.shape)}, "
                f"got {tuple(view.shape)}"
            )
        check_device(name, view, first_name, first)


def check_batch(name: str, rows: Tensor, gather_distributed: bool) -> None:
    """Raises ValueError where no rank has a second row."""
    if num_rows_of(rows, gather_distributed) < 2:
        raise ValueError(
            f"{name} must have at least two rows: one row alone has no variance, "
            f"got shape {tuple(rows.shape)}"
        )
