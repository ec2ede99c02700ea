"""SIE, split invariant-equivariant representations (Garrido, Najman & LeCun 2023).

The D features of an embedding are an invariant part, equal in both views, and an equivariant part
of E features that a predictor p carries from the first view to the second, given the parameters t
of the transformation between them. With s, v and c of VICReg,

    loss = lambda ( s(inv, inv') + factor s(p(equi, t), equi') )
         + mu/2 (v(z) + v(z') + v(p(equi, t))) + nu (c(z) + c(z'))

v and c are taken over both parts together, so that neither repeats what the other holds. The parts
are slices of one matrix, and its covariance is never built (see `cross_frobenius`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_device, check_rows, check_views
from sslfast._core.correlation.frobenius import Route
from sslfast._registry import Loss, register_loss
from sslfast.losses.redundancy._ranks import GradScale, averaged_over_ranks
from sslfast.losses.redundancy._variance_covariance import (
    Scope,
    check_batch,
)
from sslfast.losses.redundancy._vicreg_eager import (
    eager_covariance,
    eager_variance,
    gathered,
    sample_parts,
)
from sslfast.losses.redundancy._weighted_terms import WeightedTerms, check_terms


def sie_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    predictions: Tensor,
    *,
    lambda_param: float = 10.0,
    mu_param: float = 10.0,
    nu_param: float = 1.0,
    equivariant_factor: float = 4.5,
    eps: float = 1e-4,
    regularize_predictions: bool = True,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """SIE of two views and the predicted part of the second (Garrido et al. 2023).

    Args:
        embeddings0: (N, D) embeddings of the first view, N > 1, the invariant part first;
            float16, bfloat16, float32 or float64.
        embeddings1: (N, D) embeddings of the second view; row i belongs to row i.
        predictions: (N, E) predictions of the last E features of `embeddings1`, e.g. by a
            `HypernetworkPredictor` from those of `embeddings0`; 1 <= E <= D. E = D: there is no
            invariant part.
        lambda_param: weight of the mean squared differences; at least 0.
        mu_param: weight of the variance, the hinge on standard deviations below 1; at least 0.
        nu_param: weight of the covariance, the squares off the diagonal over D; at least 0.
        equivariant_factor: multiplies the mean squared error of `predictions`; at least 0.
        eps: added to the variance before the root; finite and at least 0.
        regularize_predictions: the variance of `predictions` counts as well, so that the
            predictor cannot collapse.
        gather_distributed: statistics of the rows of all ranks (the same N on every rank). Every
            rank returns the loss of the global batch, and averaging parameter gradients over
            ranks, as `DistributedDataParallel` does, gives exactly its gradient.
        grad_scale: ``"exact"``, or ``"reference"`` for 1/W of that gradient on W ranks.
        route: ``"gram"`` (N x N) or ``"direct"`` (D x D); ``"auto"`` takes the cheaper. Value and
            gradient are the same.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is not a floating tensor, or a weight is not a number.
        ValueError: shapes or devices differ, there is one row alone, `predictions` have more
            features than the embeddings, a weight or `eps` is negative or not finite, or
            `grad_scale` or `route` is none of its choices.

    Differs from others: the authors' code has these defaults and always gathers; its ``SIENoVar``
    is ``regularize_predictions=False``, its ``SIEOnlyEqui`` E = D with a factor of 1.
    """
    views = {"embeddings0": embeddings0, "embeddings1": embeddings1}
    _check_inputs(gather_distributed, predictions=predictions, **views)
    check_terms(
        lambda_param=lambda_param,
        mu_param=mu_param,
        nu_param=nu_param,
        equivariant_factor=equivariant_factor,
        eps=eps,
        grad_scale=grad_scale,
        route=route,
    )
    scope = Scope(eps, gather_distributed, route)
    dim, num_equivariant = embeddings0.shape[1], predictions.shape[1]
    parts = [dim - num_equivariant, num_equivariant]
    # First, so that its gradient is formed last, when the memory of the others is free again.
    invariant0, _ = torch.split(embeddings0, parts, dim=1)  # (N, D - E)
    invariant1, equivariant1 = torch.split(embeddings1, parts, dim=1)  # (N, D - E), (N, E)
    similarity = equivariant_factor * scope.invariance(predictions, equivariant1)
    if parts[0]:
        similarity = similarity + scope.invariance(invariant0, invariant1)
    (variance0, covariance0), (variance1, covariance1) = (
        scope.variance_and_covariance(view) for view in views.values()
    )
    variance = variance0 + variance1
    if regularize_predictions:
        variance = variance + scope.variance(predictions)
    loss = lambda_param * similarity + mu_param / 2 * variance
    loss = loss + nu_param / dim * (covariance0 + covariance1)
    return averaged_over_ranks(loss, gather_distributed, grad_scale)


class SIELoss(WeightedTerms):
    """SIE (Garrido et al. 2023), with the argument names of `VICRegLoss`.

    The predictor is no part of it: its parameters belong to the model, where an optimiser and
    `DistributedDataParallel` find them. See `HypernetworkPredictor`.

    Args:
        lambda_param, mu_param, nu_param: weights of differences, variance and covariance.
        equivariant_factor: multiplies the mean squared error of the predictions.
        gather_distributed: statistics of the rows of all ranks, see `sslfast.functional.sie_loss`.
        eps: added to the variance before the root.
        regularize_predictions, grad_scale, route: see `sslfast.functional.sie_loss`.

    Raises:
        TypeError: a weight is not a number.
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from others: see `sslfast.functional.sie_loss`.
    """

    def __init__(
        self,
        lambda_param: float = 10.0,
        mu_param: float = 10.0,
        nu_param: float = 1.0,
        equivariant_factor: float = 4.5,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        *,
        regularize_predictions: bool = True,
        grad_scale: GradScale = "exact",
        route: Route = "auto",
    ) -> None:
        super().__init__(
            lambda_param=lambda_param,
            mu_param=mu_param,
            nu_param=nu_param,
            equivariant_factor=equivariant_factor,
            gather_distributed=gather_distributed,
            eps=eps,
            grad_scale=grad_scale,
            route=route,
        )
        self.regularize_predictions = regularize_predictions

    def forward(self, z_a: Tensor, z_b: Tensor, predictions: Tensor) -> Tensor:
        """Return the 0-dim loss of two views (N, D) and predictions (N, E) of the second, N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.sie_loss`.
        """
        _check_inputs(self.gather_distributed, z_a=z_a, z_b=z_b, predictions=predictions)
        options = {"regularize_predictions": self.regularize_predictions, **self.options()}
        return sie_loss(z_a, z_b, predictions, **options)


def _check_inputs(gather_distributed: bool, *, predictions: Tensor, **views: Tensor) -> None:
    check_views(**views)
    (name, view), (other_name, other) = views.items()
    check_batch(name, view, gather_distributed)
    check_rows("predictions", predictions, "(N, E)")
    if len(predictions) != len(other) or predictions.shape[1] > other.shape[1]:
        raise ValueError(
            f"predictions must have the rows of {other_name} and no more features "
            f"{tuple(other.shape)}, got shape {tuple(predictions.shape)}"
        )
    check_device("predictions", predictions, other_name, other)


def _sie_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    predictions: Tensor,
    *,
    lambda_param: float = 10.0,
    mu_param: float = 10.0,
    nu_param: float = 1.0,
    equivariant_factor: float = 4.5,
    eps: float = 1e-4,
    regularize_predictions: bool = True,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """As the authors write it. Oracle and baseline."""
    start = embeddings0.shape[1] - predictions.shape[1]
    loss = lambda_param * equivariant_factor * F.mse_loss(predictions, embeddings1[:, start:])
    if start:
        loss = loss + lambda_param * F.mse_loss(embeddings0[:, :start], embeddings1[:, :start])
    for view in (embeddings0, embeddings1):
        rows = gathered(view, gather_distributed)  # (W N, D)
        loss = loss + mu_param / 2 * eager_variance(rows, eps) + nu_param * eager_covariance(rows)
    if regularize_predictions:
        rows = gathered(predictions, gather_distributed)  # (W N, E)
        loss = loss + mu_param / 2 * eager_variance(rows, eps)
    return loss


SPEC = register_loss(
    Loss(
        name="SIELoss",
        family="redundancy",
        module=SIELoss,
        functional=sie_loss,
        eager=_sie_eager,
        primitives=("cross_frobenius", "standardize"),
        paper="Garrido et al. 2023, arXiv:2302.10283",
        samples=(
            sample_parts("two_rows", "tiny", 2, 3, predicted=1),
            sample_parts("one_feature", "tiny", 5, 1, predicted=1),
            sample_parts("ragged", "ragged", 67, 33, predicted=13, magnitude=0.7),
            sample_parts(
                "no_variance", "ragged", 19, 130, predicted=65, regularize_predictions=False
            ),
            sample_parts("gathered", "ragged", 20, 11, predicted=4, gather_distributed=True),
            sample_parts(
                "only_equivariant", "ragged", 20, 11, predicted=11, equivariant_factor=1.0
            ),
            sample_parts("batch", "typical", 256, 512, predicted=256),
            sample_parts("wide", "extreme", 24, 2048, predicted=500),
            sample_parts("loud", "extreme", 2048, 24, predicted=12, magnitude=8.0, noise=0.1),
            sample_parts("quiet", "extreme", 40, 16, predicted=8, magnitude=1e-3),
            sample_parts("constant_columns", "extreme", 33, 8, predicted=6, constant_columns=3),
        ),
    )
)
