"""Samples and properties of the sorting-network primitives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Property, Sample, Size
from sslfast.ops.measured_rows import measured_rows

BITONIC: dict[str, Any] = {"network": "bitonic"}


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _lists(
    name: str,
    size: Size,
    batch: int,
    length: int,
    *,
    magnitude: float = 1.0,
    ties: bool = False,
    ascending: bool = False,
    taught: bool = False,
    **options: Any,
) -> Sample:
    def make(generator: torch.Generator) -> dict[str, Any]:
        values = magnitude * _normal(generator, batch, length)
        if ties:
            values = values.round()
        if ascending:
            values = values.sort(1).values
        if not taught:
            return {"values": values, **options}
        teacher = values + magnitude * _normal(generator, batch, length) / 2
        return {"values": values, "teacher": teacher, **options}

    return Sample(name, size, make)


SORT_SAMPLES = (
    _lists("one_value", "tiny", 3, 1),
    _lists("two_values", "tiny", 2, 2, permutation=True),
    _lists("no_lists", "tiny", 0, 5, permutation=True),
    _lists("one_list", "tiny", 1, 7, steepness=3.0),
    _lists("bitonic_of_five", "tiny", 4, 5, steepness=2.0, permutation=True, **BITONIC),
    _lists("values_alone", "ragged", 37, 13, steepness=4.0),
    _lists("bitonic_alone", "ragged", 35, 21, relaxation="logistic", **BITONIC),
    _lists("shares", "ragged", 19, 11, permutation=True, steepness=1.0),
    _lists(
        "bitonic_shares",
        "ragged",
        18,
        23,
        permutation=True,
        relaxation="optimal",
        steepness=2.0,
        **BITONIC,
    ),
    _lists("reciprocal", "ragged", 17, 9, relaxation="reciprocal", permutation=True),
    _lists("logistic", "ragged", 33, 8, relaxation="logistic", steepness=2.0, permutation=True),
    _lists("art", "ragged", 5, 10, relaxation="logistic_phi", steepness=2.0, permutation=True),
    _lists("gaussian", "ragged", 16, 7, relaxation="gaussian", steepness=1.0, permutation=True),
    _lists("power_of_two", "typical", 64, 32, permutation=True, **BITONIC),
    _lists("long_lists", "typical", 6, 100, **BITONIC),
    _lists("ties", "extreme", 13, 9, ties=True, permutation=True),
    _lists("steep", "extreme", 13, 9, steepness=1e3, permutation=True),
    _lists("far_apart", "extreme", 7, 12, magnitude=1e3, permutation=True),
    _lists("close", "extreme", 7, 12, magnitude=1e-3, permutation=True, relaxation="optimal"),
    _lists("saturated", "extreme", 7, 6, magnitude=3.0, relaxation="gaussian", permutation=True),
)

PAIR: dict[str, Any] = {"cross_entropy": True, "steepness": 1.0}
MASS_SAMPLES = (
    _lists("one_group", "tiny", 2, 4, group_sizes=(4,)),
    _lists("no_lists", "tiny", 0, 5, group_sizes=(3, 2), cross_entropy=True),
    _lists("two_values", "tiny", 5, 2, group_sizes=(1, 1), **PAIR),
    _lists("top_one", "tiny", 4, 6, group_sizes=(5, 1), steepness=3.0),
    _lists("three_groups", "ragged", 21, 9, group_sizes=(2, 4, 3), steepness=2.0),
    _lists("three_targets", "ragged", 21, 9, group_sizes=(2, 4, 3), **PAIR),
    _lists("pair_of_masses", "ragged", 19, 10, group_sizes=(7, 3), relaxation="logistic"),
    _lists("bitonic", "ragged", 18, 12, group_sizes=(10, 2), **PAIR, **BITONIC),
    _lists("reciprocal", "ragged", 35, 13, group_sizes=(10, 3), relaxation="reciprocal", **PAIR),
    _lists("optimal", "ragged", 17, 11, group_sizes=(10, 1), relaxation="optimal", **PAIR),
    _lists(
        "bitonic_optimal",
        "ragged",
        7,
        11,
        group_sizes=(8, 3),
        relaxation="optimal",
        **PAIR,
        **BITONIC,
    ),
    _lists("logistic", "ragged", 17, 11, group_sizes=(10, 1), relaxation="logistic", **PAIR),
    _lists("art", "ragged", 17, 8, group_sizes=(5, 3), relaxation="logistic_phi", **PAIR),
    _lists("gaussian", "ragged", 33, 11, group_sizes=(10, 1), relaxation="gaussian", **PAIR),
    _lists("taught", "ragged", 18, 7, group_sizes=(1,) * 7, taught=True, **PAIR),
    _lists(
        "taught_groups",
        "ragged",
        11,
        9,
        group_sizes=(3, 4, 2),
        taught=True,
        teacher_steepness=3.0,
        relaxation="reciprocal",
        **PAIR,
    ),
    _lists(
        "taught_pair",
        "ragged",
        9,
        10,
        group_sizes=(6, 4),
        taught=True,
        teacher_steepness=5.0,
        relaxation="logistic",
        **PAIR,
    ),
    _lists("groco", "typical", 512, 11, group_sizes=(10, 1), ascending=True, **PAIR),
    _lists(
        "neco",
        "typical",
        32,
        49,
        group_sizes=(1,) * 49,
        cross_entropy=True,
        taught=True,
        magnitude=0.1,
        steepness=100.0,
        **BITONIC,
    ),
    _lists("ties", "extreme", 13, 9, group_sizes=(5, 4), ties=True, **PAIR),
    _lists("steep", "extreme", 13, 9, group_sizes=(5, 4), cross_entropy=True, steepness=1e3),
    _lists("far_apart", "extreme", 7, 12, group_sizes=(9, 3), magnitude=1e3, **PAIR),
    _lists(
        "saturated",
        "extreme",
        9,
        6,
        group_sizes=(4, 2),
        cross_entropy=True,
        ascending=True,
        relaxation="gaussian",
        steepness=3.0,
    ),
)


def _of_lists(generator: torch.Generator) -> Tensor:
    return _normal(generator, 9, 7)


def _doubly_stochastic(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    _, shares = function(_of_lists(generator), permutation=True)
    sums = torch.cat([shares.sum(1), shares.sum(2)])
    return sums, torch.ones_like(sums)


def _is_its_product(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _of_lists(generator)
    ordered, shares = function(values, permutation=True, network="bitonic")
    return ordered, (values[:, None, :].to(shares) @ shares)[:, 0]


def _limit(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = torch.stack([torch.randperm(7, generator=generator).double() for _ in range(9)])
    ordered = function(values, relaxation="logistic", steepness=50.0)
    return ordered, values.sort(1).values.to(ordered)


def _shifted(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _of_lists(generator)
    return function(values + 4), function(values) + 4


def _masses_of_shares(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _of_lists(generator)
    ranks = function(values, (1,) * 7, steepness=2.0)
    groups = function(values, (3, 4), steepness=2.0)
    return groups, torch.stack([ranks[..., :3].sum(2), ranks[..., 3:].sum(2)], 2)


def _complete(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    masses = function(_of_lists(generator), (2, 4, 1), relaxation="gaussian")
    return masses.sum(2), torch.ones_like(masses[..., 0])


SORT_PROPERTIES = (
    Property("doubly_stochastic", "rows and columns of P sum to 1", _doubly_stochastic),
    Property("product", "sorted = x P", _is_its_product),
    Property("hard_limit", "a steep network sorts", _limit),
    Property("shift", "f(x + 4) = f(x) + 4", _shifted),
)
MASS_PROPERTIES = (
    Property("sums_of_shares", "a group's mass is that of its ranks", _masses_of_shares),
    Property("complete", "the masses of a wire sum to 1", _complete),
)


def _with_shares(num_lists: int, length: int) -> dict[str, Any]:
    """With the permutation, whose layers would take as much each."""
    return {"values": measured_rows(num_lists, length), "permutation": True}


def _two_groups(num_lists: int, length: int) -> dict[str, Any]:
    """A hidden permutation would fail."""
    groups = {"group_sizes": (length - 2, 2), "cross_entropy": True}
    return {"values": measured_rows(num_lists, length), **groups}


SORT_MEMORY = {"shares": _with_shares}
MASS_MEMORY = {"two groups": _two_groups}
