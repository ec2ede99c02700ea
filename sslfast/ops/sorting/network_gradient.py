"""Gradients of the sorting-network primitives in plain torch: sweeps over the layers.

Of the reference, whose op runs where autograd does not record; other backends run the same sweeps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sslfast._core.numerics import accumulator
from sslfast._core.sorting.network import Groups, SortingRule, layers_of
from sslfast.ops.sorting.network_reference import (
    ART_EPS,
    LEAST_MASS,
    group_masses,
    keep_weight,
    sort_and_permutation,
)


class _Layer(NamedTuple):
    """Wires (swaps,) and what the forward sweep found there, (B, swaps) each."""

    p: Tensor
    q: Tensor
    d: Tensor
    keep: Tensor
    pass_on: Tensor

    def mix(self, rows: Tensor) -> Tensor:
        """Wires of (B, n, G), in either direction: a comparator is its own transpose."""
        keep, pass_on = self.keep[..., None], self.pass_on[..., None]
        a, b = rows[:, self.p], rows[:, self.q]
        rows = rows.index_copy(1, self.p, keep * a + pass_on * b)
        return rows.index_copy(1, self.q, pass_on * a + keep * b)

    def difference(self, rows: Tensor) -> Tensor:
        return rows[:, self.p] - rows[:, self.q]


def gradient(
    values: Tensor, rule: SortingRule, dordered: Tensor, dmasses: Tensor | None, indicator: Tensor
) -> Tensor:
    """(B, n) gradient of the values.

    Args:
        dordered: (B, n) gradient of the sorted values.
        dmasses: (B, n, G) gradient of the masses, if any.
        indicator: (n, G), 1 where a rank belongs to a group.
    """
    layers = _forward(values, rule)
    dx = dordered.to(accumulator(values.dtype), copy=True)[..., None]  # (B, n, 1)
    dkeep = [torch.zeros_like(layer.d) for layer in layers]  # (B, swaps) each
    if dmasses is not None:
        v = indicator.to(dx).expand(len(values), -1, -1)  # (B, n, G)
        apart = []
        for layer in reversed(layers):
            apart.append(layer.difference(v))  # (B, swaps, G)
            v = layer.mix(v)
        dv = dmasses.to(dx)
        for index, layer in enumerate(layers):
            dkeep[index] = (layer.difference(dv) * apart[-1 - index]).sum(-1)
            dv = layer.mix(dv)
    for layer, dweight in zip(reversed(layers), reversed(dkeep), strict=True):
        along = dweight - layer.d * layer.difference(dx)[..., 0]
        g = (along * _slope(layer, rule))[..., None]  # (B, swaps, 1)
        dx = layer.mix(dx).index_add(1, layer.p, -g).index_add(1, layer.q, g)
    return dx[..., 0]


def _forward(values: Tensor, rule: SortingRule) -> list[_Layer]:
    x = values.to(accumulator(values.dtype))[..., None]  # (B, n, 1)
    layers = []
    for pairs in layers_of(rule.network, values.shape[1]):
        if pairs:
            p, q = torch.tensor(pairs, device=x.device).T
            d = (x[:, q] - x[:, p])[..., 0]
            layers.append(_Layer(p, q, d, *keep_weight(d, rule)))
            x = layers[-1].mix(x)
    return layers


def _slope(layer: _Layer, rule: SortingRule) -> Tensor:
    """f'(d): how the share that stays depends on the difference."""
    beta, v = rule.steepness, rule.steepness * layer.d
    if rule.relaxation == "cauchy":
        return beta / (math.pi * (1 + v.square()))
    if rule.relaxation == "reciprocal":
        return beta / (2 + v.abs()).square()
    if rule.relaxation == "optimal":
        return beta / (16 * v.abs().clamp_min(0.25).square())
    if rule.relaxation == "gaussian":
        return beta / math.sqrt(2 * math.pi) * (-0.5 * v.square()).exp()
    logistic = beta * layer.keep * layer.pass_on
    if rule.relaxation == "logistic":
        return logistic
    magnitude, power = layer.d.abs(), rule.art_lambda
    root = magnitude + ART_EPS
    return logistic * (root.pow(-power) - power * magnitude * root.pow(-power - 1))


def indicator_of(group_sizes: tuple[int, ...], like: Tensor) -> Tensor:
    """(n, G): 1 where a rank belongs to a group."""
    groups = torch.arange(len(group_sizes), device=like.device)
    sizes = torch.tensor(group_sizes, device=like.device)
    return torch.nn.functional.one_hot(groups.repeat_interleave(sizes), len(group_sizes))


def cross_entropy_gradient(values: Tensor, groups: Groups, rule: SortingRule) -> Tensor:
    """(B, n) gradient of every list's cross entropy."""
    indicator = indicator_of(groups.group_sizes, values)  # (n, G)
    masses = group_masses(sort_and_permutation(values, rule)[1], groups.group_sizes)
    targets = indicator.to(masses)  # (n, G) or (B, n, G)
    if groups.teacher is not None:
        taught = rule._replace(steepness=groups.teacher_steepness)
        shares = sort_and_permutation(groups.teacher, taught)[1]
        targets = group_masses(shares, groups.group_sizes)
    dmasses = -targets / masses.clamp_min(LEAST_MASS) / values.shape[1]
    zeros = torch.zeros_like(masses[..., 0])
    return gradient(values, rule, zeros, dmasses, indicator)
