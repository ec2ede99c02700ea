"""VIbCReg: VICReg with a better-conditioned covariance (Lee & Aune 2021).

For two views z, z' of N images, D features each, with s and v of VICReg and R(z) the correlation
matrix of the columns,

    loss = lambda s(z, z') + mu (v(z) + v(z')) + nu (c(z) + c(z'))
    c(z) = 1/D^2 sum_{i != j} R(z)_ij^2

The paper divides each centred column by its l2 norm before the product. That norm is the deviation
times sqrt(N - 1), so columns standardised with ``ddof=1``, by the pass that gives the variances,
serve `cross_frobenius`, and R = y^T y / (N - 1) is never built.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_views
from sslfast._core.correlation.frobenius import Route
from sslfast._registry import Loss, register_loss
from sslfast.losses.redundancy._ranks import GradScale, averaged_over_ranks
from sslfast.losses.redundancy._variance_covariance import (
    Scope,
    check_batch,
)
from sslfast.losses.redundancy._vicreg_eager import (
    eager_variance,
    gathered,
    off_diagonal,
    sample_views,
)
from sslfast.losses.redundancy._weighted_terms import WeightedTerms, check_terms


def vibcreg_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 200.0,
    eps: float = 1e-4,
    halve_variance: bool = False,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """VIbCReg of two views, without their correlation matrices (Lee & Aune 2021).

    Args:
        embeddings0: (N, D) embeddings of the first view, N > 1; float16, bfloat16, float32 or
            float64.
        embeddings1: (N, D) embeddings of the second view; row i belongs to row i.
        lambda_param: weight of the invariance, the mean squared difference; at least 0.
        mu_param: weight of the variance, the hinge on standard deviations below 1; at least 0.
        nu_param: weight of the covariance, the mean square of a correlation; at least 0.
        eps: added to the variance before the root in the hinge; finite and at least 0.
        halve_variance: the mean over both views of the variance term; False adds them.
        gather_distributed: statistics of the rows of all ranks (the same N on every rank). Every
            rank returns the loss of the global batch, and averaging parameter gradients over
            ranks, as `DistributedDataParallel` does, gives exactly its gradient.
        grad_scale: ``"exact"``, or ``"reference"`` for 1/W of that gradient on W ranks.
        route: ``"gram"`` (N x N) or ``"direct"`` (D x D); ``"auto"`` takes the cheaper. Value and
            gradient are the same.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings). A constant column has variance 0,
        correlates with nothing, and has gradient 0 in both terms.

    Raises:
        TypeError: an argument is not a floating tensor, or a weight is not a number.
        ValueError: shapes or devices differ, there is one row alone, a weight or `eps` is
            negative or not finite, or `grad_scale` or `route` is none of its choices.

    Differs from others: solo-learn has these defaults, always gathers, and divides a column by
    max(norm, 1e-12), so that the rounding error of a constant column counts as a direction there.
    The paper's projector ends in iterative normalisation, a layer of the model and no part of the
    loss. Correlations do not change with the scale of a column: only the hinge keeps it up.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    check_batch("embeddings0", embeddings0, gather_distributed)
    check_terms(
        lambda_param=lambda_param,
        mu_param=mu_param,
        nu_param=nu_param,
        eps=eps,
        grad_scale=grad_scale,
        route=route,
    )
    scope = Scope(eps, gather_distributed, route)
    # First, so that its gradient is formed last, when the memory of the others is free again.
    similarity = scope.invariance(embeddings0, embeddings1)
    (variance0, squares0), (variance1, squares1) = (
        scope.variance_and_correlation(view) for view in (embeddings0, embeddings1)
    )
    loss = lambda_param * similarity
    loss = loss + mu_param * (0.5 if halve_variance else 1.0) * (variance0 + variance1)
    loss = loss + nu_param / embeddings0.shape[1] ** 2 * (squares0 + squares1)
    return averaged_over_ranks(loss, gather_distributed, grad_scale)


class VIbCRegLoss(WeightedTerms):
    """VIbCReg (Lee & Aune 2021), with the argument names of `VICRegLoss`.

    Args:
        lambda_param: weight of the invariance.
        mu_param: weight of the variance.
        nu_param: weight of the covariance.
        gather_distributed: statistics of the rows of all ranks, see
            `sslfast.functional.vibcreg_loss`.
        eps: added to the variance before the root in the hinge.
        halve_variance, grad_scale, route: see `sslfast.functional.vibcreg_loss`.

    Raises:
        TypeError: a weight is not a number.
        ValueError: a weight or `eps` is negative or not finite, `grad_scale` or `route` is none of
            its choices, or `gather_distributed` with a torch that has no `torch.distributed`.

    Differs from others: see `sslfast.functional.vibcreg_loss`.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 200.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        *,
        halve_variance: bool = False,
        grad_scale: GradScale = "exact",
        route: Route = "auto",
    ) -> None:
        super().__init__(
            lambda_param=lambda_param,
            mu_param=mu_param,
            nu_param=nu_param,
            gather_distributed=gather_distributed,
            eps=eps,
            grad_scale=grad_scale,
            route=route,
        )
        self.halve_variance = halve_variance

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the 0-dim loss of two views (N, D), N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.vibcreg_loss`.
        """
        check_views(z_a=z_a, z_b=z_b)
        check_batch("z_a", z_a, self.gather_distributed)
        return vibcreg_loss(z_a, z_b, halve_variance=self.halve_variance, **self.options())


def _vibcreg_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 200.0,
    eps: float = 1e-4,
    halve_variance: bool = False,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """As the paper writes it, every correlation stored. Oracle and baseline."""
    loss = lambda_param * F.mse_loss(embeddings0, embeddings1)
    for view in (embeddings0, embeddings1):
        rows = gathered(view, gather_distributed)  # (W N, D)
        loss = loss + mu_param * (0.5 if halve_variance else 1.0) * eager_variance(rows, eps)
        columns = F.normalize(rows - rows.mean(dim=0), dim=0)  # (W N, D)
        loss = loss + nu_param * off_diagonal(columns.T @ columns).square().mean()
    return loss


SPEC = register_loss(
    Loss(
        name="VIbCRegLoss",
        family="redundancy",
        module=VIbCRegLoss,
        functional=vibcreg_loss,
        eager=_vibcreg_eager,
        primitives=("cross_frobenius", "standardize"),
        paper="Lee & Aune 2021, arXiv:2109.00783",
        samples=(
            sample_views("three_rows", "tiny", 3, 2),
            sample_views("one_feature", "tiny", 5, 1),
            sample_views("ragged", "ragged", 67, 33, magnitude=0.7),
            sample_views("wide_ragged", "ragged", 19, 130, halve_variance=True),
            sample_views("gathered", "ragged", 20, 11, magnitude=0.7, gather_distributed=True),
            sample_views("batch", "typical", 256, 512),
            sample_views("tall_batch", "typical", 512, 128),
            sample_views("wide", "extreme", 24, 2048),
            sample_views("loud", "extreme", 2048, 24, magnitude=8.0, noise=0.1),
            sample_views("quiet", "extreme", 40, 16, magnitude=1e-3),
            sample_views("constant_columns", "extreme", 33, 8, constant_columns=3),
            sample_views("same_view", "extreme", 33, 16, noise=0.0),
        ),
    )
)
