"""VICReg (Bardes, Ponce & LeCun 2022, section 4.1, equations 1 to 6).

For two views z, z' of N images, D features each, with C(z) the covariance matrix of the columns,

    loss = lambda s(z, z') + mu/2 (v(z) + v(z')) + nu (c(z) + c(z'))
    s(z, z') = 1/(N D) sum_i |z_i - z'_i|^2
    v(z)     = 1/D sum_j max(0, 1 - sqrt(var(z_j) + eps))
    c(z)     = 1/D sum_{i != j} C(z)_ij^2

The sum of squares comes from `cross_frobenius` of the centred rows, the variances from the pass
that centres them: N^2 D instead of N D^2 operations where N is below D, and C is never built.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslfast._core.correlation.frobenius import Route
from sslfast._registry import Loss, register_loss
from sslfast.losses.redundancy._ranks import GradScale, averaged_over_ranks
from sslfast.losses.redundancy._variance_covariance import (
    Scope,
    check_batch,
    check_maps,
)
from sslfast.losses.redundancy._vicreg_eager import (
    eager_covariance,
    eager_variance,
    gathered,
    sample_views,
)
from sslfast.losses.redundancy._weighted_terms import WeightedTerms, check_terms


def vicreg_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    eps: float = 1e-4,
    halve_variance: bool = True,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """VICReg of two views, without their covariance matrices (Bardes et al. 2022, section 4.1).

    Args:
        embeddings0: (N, D) embeddings of the first view, N > 1; float16, bfloat16, float32 or
            float64. Or (N, ..., D), with D features at every place of a map: every place has
            variances and covariances of its own, and the loss is their mean.
        embeddings1: embeddings of the second view, of the same shape; row i belongs to row i.
        lambda_param: weight of the invariance, the mean squared difference.
        mu_param: weight of the variance, the hinge on standard deviations below 1.
        nu_param: weight of the covariance, the squares off the diagonal over D.
        eps: added to the variance before the root; finite and at least 0.
        halve_variance: the mean over both views of the variance term; False adds them.
        gather_distributed: statistics of the rows of all ranks (the same N on every rank). Every
            rank returns the loss of the global batch, and averaging parameter gradients over
            ranks, as `DistributedDataParallel` does, gives exactly its gradient.
        grad_scale: ``"exact"``, or ``"reference"`` for 1/W of that gradient on W ranks.
        route: ``"gram"`` (N x N) or ``"direct"`` (D x D); ``"auto"`` takes the cheaper. Value and
            gradient are the same.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings). A constant column has variance 0
        and the hinge's full value 1 - sqrt(eps), with gradient 0.

    Raises:
        TypeError: an argument is not a floating tensor, or a weight is not a number.
        ValueError: shapes or devices differ, there is one row alone, a weight or `eps` is
            negative or not finite, or `grad_scale` or `route` is none of its choices.

    Differs from others: lightly, the authors' code, stable-pretraining and
    pytorch-metric-learning halve the variance term, solo-learn does not (`halve_variance`); all
    take the unbiased variance and divide covariances by N - 1. With `gather_distributed` lightly
    and the authors' code have the same gradient as here, and return a rank's own invariance. They
    keep half precision, where float16 overflows from N sigma^2 = 65504 on. Under autocast
    covariances are taken from centred rows rounded to the autocast dtype, as a matrix product
    would.
    """
    check_maps(embeddings0=embeddings0, embeddings1=embeddings1)
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
    similarity, variance, covariance = scope.views(embeddings0, embeddings1)
    loss = lambda_param * similarity
    loss = loss + mu_param * (0.5 if halve_variance else 1.0) * variance
    loss = loss + nu_param / embeddings0.shape[-1] * covariance
    return averaged_over_ranks(loss, gather_distributed, grad_scale)


class VICRegLoss(WeightedTerms):
    """VICReg, a drop-in for `lightly.loss.VICRegLoss` 1.5 (Bardes et al. 2022, section 4.1).

    Args:
        lambda_param: weight of the invariance.
        mu_param: weight of the variance.
        nu_param: weight of the covariance.
        gather_distributed: statistics of the rows of all ranks, see
            `sslfast.functional.vicreg_loss`.
        eps: added to the variance before the root.
        halve_variance, grad_scale, route: see `sslfast.functional.vicreg_loss`.

    Raises:
        TypeError: a weight is not a number.
        ValueError: a weight or `eps` is negative or not finite, `grad_scale` or `route` is none of
            its choices, or `gather_distributed` with a torch that has no `torch.distributed`.

    Differs from lightly: the loss is float32 for half-precision inputs, and bad input raises
    ValueError where lightly asserts; for the rest see `sslfast.functional.vicreg_loss`.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        *,
        halve_variance: bool = True,
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
        """Return the 0-dim loss of two views (N, ..., D), N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.vicreg_loss`.
        """
        check_maps(z_a=z_a, z_b=z_b)
        check_batch("z_a", z_a, self.gather_distributed)
        return vicreg_loss(z_a, z_b, halve_variance=self.halve_variance, **self.options())


def _vicreg_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    eps: float = 1e-4,
    halve_variance: bool = True,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """As the authors write it. Oracle and baseline."""
    loss = lambda_param * F.mse_loss(embeddings0, embeddings1)
    for view in (embeddings0, embeddings1):
        rows = gathered(view, gather_distributed)  # (W N, ..., D)
        loss = loss + mu_param * (0.5 if halve_variance else 1.0) * eager_variance(rows, eps)
        loss = loss + nu_param * eager_covariance(rows)
    return loss


SPEC = register_loss(
    Loss(
        name="VICRegLoss",
        family="redundancy",
        module=VICRegLoss,
        functional=vicreg_loss,
        eager=_vicreg_eager,
        primitives=("cross_frobenius", "standardize"),
        paper="Bardes et al. 2022, arXiv:2105.04906, section 4.1",
        samples=(
            sample_views("two_rows", "tiny", 2, 3),
            sample_views("one_feature", "tiny", 5, 1),
            sample_views("ragged", "ragged", 67, 33, magnitude=0.7),
            sample_views("wide_ragged", "ragged", 19, 130, halve_variance=False),
            sample_views("places", "ragged", 21, 3, 2, 13, magnitude=0.6),
            sample_views("gathered", "ragged", 20, 11, magnitude=0.7, gather_distributed=True),
            sample_views("gathered_places", "ragged", 12, 5, 3, gather_distributed=True),
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
