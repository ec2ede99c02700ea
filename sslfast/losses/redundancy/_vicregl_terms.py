"""The two terms of VICRegL, of crops of which the first are large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sslfast._core.checks import check_choice, check_number
from sslfast._core.correlation.frobenius import Route
from sslfast.losses.redundancy._maps import Crop
from sslfast.losses.redundancy._matching import Matches, match, take_places
from sslfast.losses.redundancy._ranks import GradScale, averaged_over_ranks
from sslfast.losses.redundancy._variance_covariance import Scope
from sslfast.losses.redundancy._weighted_terms import check_terms
from sslfast.losses.redundancy.vicreg import vicreg_loss

MatchOrder = Literal["distance", "position"]
MATCH_ORDERS = ("distance", "position")


class Settings(NamedTuple):
    """Options of `sslfast.functional.vicregl_loss`."""

    lambda_param: float
    mu_param: float
    nu_param: float
    alpha: float
    num_matches: Sequence[int | None]
    eps: float
    match_order: MatchOrder
    all_l2_matches: bool
    gather_distributed: bool
    grad_scale: GradScale
    route: Route

    def check(self) -> None:
        """Raises TypeError or ValueError, see `sslfast.functional.vicregl_loss`."""
        check_terms(
            lambda_param=self.lambda_param,
            mu_param=self.mu_param,
            nu_param=self.nu_param,
            eps=self.eps,
            grad_scale=self.grad_scale,
            route=self.route,
        )
        check_number("alpha", self.alpha, least=0)
        if self.alpha > 1:
            raise ValueError(f"alpha must be at most 1, got {self.alpha}")
        check_choice("match_order", self.match_order, MATCH_ORDERS)
        counts = tuple(self.num_matches)
        if len(counts) != 2 or not all(each is None or each == -1 or each > 0 for each in counts):
            raise ValueError(
                "num_matches must be two numbers above 0 (None or -1: all places), "
                f"got {self.num_matches}"
            )

    def matches(self, kind: str) -> list[int | None]:
        """How many matches are taken of the first map in the second, and of the second."""
        if kind == "features" and self.all_l2_matches:
            return [None, None]
        return [None if count == -1 else count for count in self.num_matches]


def weighted_loss(crops: Sequence[Crop], num_global: int, settings: Settings) -> Tensor:
    """alpha times the global term and 1 - alpha times the local term."""
    loss = settings.alpha * global_loss(crops, num_global, settings)
    loss = loss + (1 - settings.alpha) * local_loss(crops, num_global, settings)
    return averaged_over_ranks(loss, settings.gather_distributed, settings.grad_scale)


def global_loss(crops: Sequence[Crop], num_global: int, settings: Settings) -> Tensor:
    """VICReg of the pooled embeddings, of which the first `num_global` meet all others."""
    scope = Scope(settings.eps, settings.gather_distributed, settings.route)
    embeddings = [crop.embedding for crop in crops]
    # A pair of large crops counts in either order; its difference is the same.
    pairs = [(i, j) for i in range(num_global) for j in range(i + 1, len(crops))]
    weights = [2 if j < num_global else 1 for _, j in pairs]
    differences = [
        weight * scope.invariance(embeddings[i], embeddings[j])
        for weight, (i, j) in zip(weights, pairs, strict=True)
    ]
    regularised = [scope.variance_and_covariance(rows) for rows in embeddings]
    variance, squares = (torch.stack(terms).mean() for terms in zip(*regularised, strict=True))
    similarity = torch.stack(differences).sum() / sum(weights)
    loss = settings.lambda_param * similarity + settings.mu_param * variance
    return loss + settings.nu_param / embeddings[0].shape[1] * squares


def local_loss(crops: Sequence[Crop], num_global: int, settings: Settings) -> Tensor:
    """VICReg of matched places, over the same pairs of crops."""
    flat = [crop.flat() for crop in crops]
    losses, num_pairs = [], 0
    for i in range(num_global):
        for j in range(i + 1, len(crops)):
            in_either_order = j < num_global
            num_pairs += 2 if in_either_order else 1
            losses += _pair(flat[i], flat[j], in_either_order, settings)
    return torch.stack(losses).sum() / (2 * num_pairs)


def _pair(first: Crop, second: Crop, in_either_order: bool, settings: Settings) -> list[Tensor]:
    losses = []
    for kind in ("features", "grid"):
        found, found_back = match(getattr(first, kind), getattr(second, kind))
        count, count_back = settings.matches(kind)
        taken = [(first, second, found, count), (second, first, found_back, count_back)]
        if in_either_order:
            taken += [(second, first, found_back, count), (first, second, found, count_back)]
        losses += [_matched_loss(*each, settings) for each in taken]
    return losses


def _matched_loss(
    first: Crop, second: Crop, matches: Matches, count: int | None, settings: Settings
) -> Tensor:
    """VICReg of the `count` closest places of one map and their neighbours in the other."""
    best = matches.best(count, by_position=settings.match_order == "position")
    return vicreg_loss(
        take_places(first.features, best.places),  # (N, k, C)
        take_places(second.features, best.neighbours),  # (N, k, C)
        lambda_param=settings.lambda_param,
        mu_param=settings.mu_param,
        nu_param=settings.nu_param / 2,
        eps=settings.eps,
        gather_distributed=settings.gather_distributed,
        grad_scale="reference",  # the whole loss is scaled, once
        route=settings.route,
    )
