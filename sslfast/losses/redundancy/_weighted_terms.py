"""What the modules of VICReg and its descendants keep: weights and options, checked once."""

from __future__ import annotations

from typing import Any

from sslfast._core.checks import check_choice, check_distributed, check_number
from sslfast._core.correlation.frobenius import ROUTES, Route
from sslfast.losses._module import Objective
from sslfast.losses.redundancy._ranks import GRAD_SCALES, GradScale


def check_terms(*, eps: float, grad_scale: str, route: str, **weights: float) -> None:
    """Weights and options of a loss of an invariance, a variance and a covariance.

    Raises:
        TypeError: a weight or `eps` is not a number.
        ValueError: a weight or `eps` is negative or not finite, or another option is none of its
            choices.
    """
    for name, weight in weights.items():
        check_number(name, weight, least=0)
    check_number("eps", eps, least=0)
    check_choice("grad_scale", grad_scale, GRAD_SCALES)
    check_choice("route", route, ROUTES)


class WeightedTerms(Objective):
    """A module whose options are attributes under lightly's names.

    Args:
        gather_distributed, eps, grad_scale, route: options that every such loss has.
        weights: of the terms, at least 0.
    """

    lambda_param: float
    mu_param: float
    nu_param: float

    def __init__(
        self,
        *,
        gather_distributed: bool,
        eps: float,
        grad_scale: GradScale,
        route: Route,
        **weights: float,
    ) -> None:
        super().__init__()
        check_terms(eps=eps, grad_scale=grad_scale, route=route, **weights)
        check_distributed(gather_distributed)
        self.gather_distributed = gather_distributed
        self.eps = eps
        self.grad_scale: GradScale = grad_scale
        self.route = route
        for name, weight in weights.items():
            setattr(self, name, weight)
        self._weights = tuple(weights)

    def options(self) -> dict[str, Any]:
        """Weights and options as keywords of the functional twin."""
        names = (*self._weights, "gather_distributed", "eps", "grad_scale", "route")
        return {name: getattr(self, name) for name in names}
