"""The relaxed sorting network in plain torch: the whole permutation, layer by layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslfast._core.numerics import accumulator
from sslfast._core.sorting.network import SortingRule, layers_of

ART_EPS = 1e-10  # of ART's exponent (Petersen et al. 2021, section 3.3), as diffsort has it
LEAST_MASS = 1e-12  # below it -log is continued by its tangent


def keep_weight(d: Tensor, rule: SortingRule) -> tuple[Tensor, Tensor]:
    """alpha = f(d), the share that stays on its wire, and f(-d) = 1 - alpha without cancellation.

    Petersen et al. 2021 (logistic, ART), 2022 (reciprocal, Cauchy, optimal), with v = steepness d.
    """
    v = rule.steepness * d
    if rule.relaxation == "cauchy":
        return v.atan() / math.pi + 0.5, 0.5 - v.atan() / math.pi
    if rule.relaxation == "reciprocal":
        half = 0.5 * v / (2 + v.abs())
        return 0.5 + half, 0.5 - half
    if rule.relaxation == "optimal":
        tail = 0.0625 / v.abs().clamp_min(0.25)  # of the smaller side
        beyond = torch.where(v > 0, 1 - tail, tail), torch.where(v > 0, tail, 1 - tail)
        near = v.abs() <= 0.25
        return torch.where(near, 0.5 + v, beyond[0]), torch.where(near, 0.5 - v, beyond[1])
    if rule.relaxation == "gaussian":
        return 0.5 * (-v / math.sqrt(2)).erfc(), 0.5 * (v / math.sqrt(2)).erfc()
    if rule.relaxation == "logistic_phi":
        v = v / (d.abs() + ART_EPS).pow(rule.art_lambda)
    return v.sigmoid(), (-v).sigmoid()


def sort_and_permutation(values: Tensor, rule: SortingRule) -> tuple[Tensor, Tensor]:
    """Sorted values (B, n) and P (B, n, n), the product of the layers; float32 or wider."""
    x = values.to(accumulator(values.dtype), copy=True)  # (B, n)
    batch, length = x.shape
    permutation = torch.eye(length, dtype=x.dtype, device=x.device).repeat(batch, 1, 1)
    for layer in layers_of(rule.network, length):
        if not layer:
            continue
        p, q = torch.tensor(layer, device=x.device).T  # (swaps,) each
        keep, pass_on = keep_weight(x[:, q] - x[:, p], rule)  # (B, swaps)
        x = _mix(x, p, q, keep, pass_on)
        permutation = _mix(permutation, p, q, keep[:, None], pass_on[:, None])
    return x, permutation


def _mix(rows: Tensor, p: Tensor, q: Tensor, keep: Tensor, pass_on: Tensor) -> Tensor:
    """Columns p and q of (..., n), mixed."""
    a, b = rows[..., p], rows[..., q]
    rows = rows.index_copy(-1, p, keep * a + pass_on * b)
    return rows.index_copy(-1, q, pass_on * a + keep * b)


def group_masses(permutation: Tensor, group_sizes: tuple[int, ...]) -> Tensor:
    """(B, n, n) -> (B, n, G): sums over the ranks of each group."""
    parts = torch.split(permutation, list(group_sizes), dim=2)
    return torch.stack([part.sum(2) for part in parts], dim=2)


def negative_log(mass: Tensor) -> Tensor:
    """-log, continued by its tangent below `LEAST_MASS`."""
    inside = mass.clamp_min(LEAST_MASS)
    below = (LEAST_MASS - mass).clamp_min(0) / LEAST_MASS
    return below - inside.log()
