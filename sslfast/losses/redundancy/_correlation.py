"""Cross-correlations of standardised rows: what the Barlow Twins losses have in common."""

from __future__ import annotations

from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sslfast._core.checks import check_choice, check_number
from sslfast._core.correlation.frobenius import ROUTES, Route
from sslfast._core.rows.standardize import Scaling
from sslfast.distributed import column_moments_of_ranks, world_size
from sslfast.losses.redundancy._ranks import (
    GRAD_SCALES,
    GradScale,
    averaged_over_ranks,
    frobenius,
    num_rows_of,
    split_frobenius,
)
from sslfast.losses.redundancy._standardized import (
    reads_columns,
    split_frobenius_of_standardized,
)
from sslfast.ops.rows.standardize import standardize

EpsOn = Literal["variance", "deviation"]
Statistics = Literal["global", "local"]
EPS_ON = ("variance", "deviation")
STATISTICS = ("global", "local")


class Correlation(NamedTuple):
    """How rows are standardised and correlated; see `sslfast.functional.barlow_twins_loss`."""

    ddof: int = 0
    eps: float = 1e-5
    eps_on: EpsOn = "variance"
    gather_distributed: bool = False
    statistics: Statistics = "global"
    grad_scale: GradScale = "exact"
    route: Route = "auto"

    def check(self) -> None:
        """Raises TypeError where `eps` is no number, ValueError where a value is out of range."""
        if self.ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 (biased) or 1 (unbiased), got {self.ddof!r}")
        check_number("eps", self.eps, least=0)
        check_choice("eps_on", self.eps_on, EPS_ON)
        check_choice("statistics", self.statistics, STATISTICS)
        check_choice("grad_scale", self.grad_scale, GRAD_SCALES)
        check_choice("route", self.route, ROUTES)

    @property
    def has_global_statistics(self) -> bool:
        """Whether the moments are those of all ranks' rows."""
        return self.gather_distributed and self.statistics == "global"

    def check_batch(self, name: str, embeddings: Tensor) -> None:
        """Raises ValueError where one row alone would be normalised by its own statistics."""
        if num_rows_of(embeddings, self.has_global_statistics) < 2:
            raise ValueError(
                f"{name} must have at least two rows: one row alone has no variance, "
                f"got shape {tuple(embeddings.shape)}"
            )

    def standardize(self, *views: Tensor) -> tuple[Tensor, ...]:
        """(N, D) rows of this rank's views, each by its own moments, in the widest dtype."""
        dtype = reduce(torch.promote_types, (view.dtype for view in views))
        return tuple(self._standardize(view.to(dtype)) for view in views)

    def _standardize(self, embeddings: Tensor) -> Tensor:
        """By the moments of this rank's rows, or of all ranks'."""
        eps, eps_on = self.eps, self.eps_on
        if not self.has_global_statistics or world_size() == 1:
            return standardize(embeddings, ddof=self.ddof, eps=eps, eps_on=eps_on)
        mean, variance = column_moments_of_ranks(embeddings, ddof=self.ddof)  # (D,), (D,)
        return standardize(embeddings, mean=mean, variance=variance, eps=eps, eps_on=eps_on)

    def views_to_identity(self, view0: Tensor, view1: Tensor, lambda_param: float) -> Tensor:
        """`to_identity` of two views as they are; their standardised rows need not be written."""
        if self.gather_distributed or not (reads_columns(view0) and reads_columns(view1)):
            a, b = self.standardize(view0, view1)
            return self.to_identity(a, b, lambda_param)
        dtype = torch.promote_types(view0.dtype, view1.dtype)
        rule = Scaling(self.ddof, float(self.eps), self.eps_on, unit_variance=True)
        split = split_frobenius_of_standardized(view0.to(dtype), view1.to(dtype), rule, self.route)
        return _to_identity(*split, len(view0), lambda_param)

    def to_identity(self, a: Tensor, b: Tensor, lambda_param: float) -> Tensor:
        """sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2 of C = a^T b / N."""
        num_rows = num_rows_of(a, self.gather_distributed)
        split = split_frobenius(
            a, b, gather_distributed=self.gather_distributed, route=self.route
        )  # (), (D,)
        return _to_identity(*split, num_rows, lambda_param)

    def squares(self, a: Tensor, b: Tensor) -> Tensor:
        """sum_ij C_ij^2 of C = a^T b / N."""
        num_rows = num_rows_of(a, self.gather_distributed)
        total = frobenius(a, b, gather_distributed=self.gather_distributed, route=self.route)
        return total / num_rows**2

    def averaged_over_ranks(self, loss: Tensor) -> Tensor:
        """The global loss with the gradient that averaging over ranks is to find."""
        return averaged_over_ranks(loss, self.gather_distributed, self.grad_scale)


def _to_identity(
    off_diagonal: Tensor, diagonal: Tensor, num_rows: int, lambda_param: float
) -> Tensor:
    invariance = (diagonal / num_rows - 1).square().sum()
    return invariance + (lambda_param / num_rows**2) * off_diagonal
