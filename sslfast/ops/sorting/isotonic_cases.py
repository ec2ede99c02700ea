"""Samples, properties and cost of `isotonic_rank`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Property, Sample, Size

Draw = Callable[[torch.Generator, int, int], Tensor]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _ties(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(4, shape, generator=generator).double()


def _constant(generator: torch.Generator, *shape: int) -> Tensor:
    return _normal(generator, shape[0], 1).expand(shape).clone()


def _ascending(generator: torch.Generator, *shape: int) -> Tensor:
    return _normal(generator, *shape).sort(-1).values


def _descending(generator: torch.Generator, *shape: int) -> Tensor:
    return _normal(generator, *shape).sort(-1, descending=True).values


def _far(generator: torch.Generator, *shape: int) -> Tensor:
    return 1e4 + _normal(generator, *shape)


def _sample(
    name: str,
    size: Size,
    num_lists: int,
    length: int,
    *,
    draw: Draw = _normal,
    magnitude: float = 1.0,
    **options: Any,
) -> Sample:
    def make(generator: torch.Generator) -> dict[str, Any]:
        return {"values": magnitude * draw(generator, num_lists, length), **options}

    return Sample(name, size, make)


KL: dict[str, Any] = {"regularization": "kl"}
SORT: dict[str, Any] = {"output": "sort"}
SHARP: dict[str, Any] = {"regularization_strength": 1 / 16}
SOFT: dict[str, Any] = {"regularization_strength": 8.0}


RULES: dict[str, dict[str, Any]] = {"": {}, "_kl": KL, "_sort": SORT, "_sort_kl": SORT | KL}


def _samples(
    name: str, size: Size, *shape: int, rules: tuple[str, ...] = tuple(RULES), **common: Any
) -> tuple[Sample, ...]:
    """The same lists by several rules."""
    num_lists, length = shape
    return tuple(
        _sample(name + rule, size, num_lists, length, **common, **RULES[rule]) for rule in rules
    )


# Ties are where sorting has no derivative; ranks have one, since tied values are in one block.
SAMPLES = (
    *_samples("one_value", "tiny", 5, 1, rules=("_kl", "_sort")),
    *_samples("no_lists", "tiny", 0, 7, rules=("",)),
    *_samples("pairs", "tiny", 9, 2, **SHARP),
    *_samples("ragged", "ragged", 9, 23, magnitude=2.0, **SHARP),
    *_samples("long", "ragged", 3, 301, rules=("", "_sort_kl"), **SOFT),
    *_samples("batch", "typical", 64, 100, magnitude=16.0),
    *_samples("ties", "extreme", 7, 20, draw=_ties, rules=("", "_kl"), **SHARP),
    *_samples("constant", "extreme", 3, 11, draw=_constant, rules=("", "_kl")),
    *_samples("ascending", "extreme", 3, 19, draw=_ascending, rules=("", "_sort"), **SHARP),
    *_samples("descending", "extreme", 3, 19, draw=_descending, rules=("_kl", "_sort_kl"), **SHARP),
    *_samples("far_away", "extreme", 5, 40, draw=_far, **SHARP),
    *_samples("hard", "extreme", 5, 20, regularization_strength=2.0**-24),
    *_samples("soft", "extreme", 5, 20, regularization_strength=2.0**24),
)


def _lists(generator: torch.Generator) -> Tensor:
    return 3 * _normal(generator, 17, 23)


def _sum_of_ranks(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _lists(generator)
    both = torch.stack([function(values), function(values, **KL)])
    return both.sum(-1), torch.full_like(both[..., 0], 23 * 24 / 2)


def _sum_of_values(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _lists(generator)
    return function(values, **SORT).sum(-1), values.sum(-1)


NEARLY_HARD: dict[str, Any] = {"regularization_strength": 1e-6}


def _hard_ranks(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _lists(generator)
    found = torch.stack([function(values, **NEARLY_HARD), function(values, **NEARLY_HARD | KL)])
    return found, (values.argsort(-1).argsort(-1) + 1).expand_as(found).to(found.dtype)


def _hard_sort(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _lists(generator)
    sharp = NEARLY_HARD | SORT
    found = torch.stack([function(values, **sharp), function(values, **sharp | KL)])
    return found, values.sort(-1).values.expand_as(found).to(found.dtype)


def _equivariant(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = _lists(generator)
    shuffled = torch.randperm(values.shape[1], generator=generator)
    return function(values[:, shuffled]), function(values)[:, shuffled]


def _shift_free(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = (64 * _lists(generator)).round() / 64  # exact where shifted, in float32 too
    rules = [SHARP, SHARP | KL]
    shifted = torch.stack([function(values - 512, **rule) for rule in rules])
    return shifted, torch.stack([function(values, **rule) for rule in rules])


def _few_long_lists(num_rows: int, dim: int) -> dict[str, Any]:
    """An n x n matrix of one list would be as large as all values of all lists."""
    rows = torch.rand(dim, num_rows, generator=torch.Generator().manual_seed(0))
    return {"values": rows.requires_grad_()}


MEMORY = {"long lists": _few_long_lists}
PROPERTIES = (
    Property("sum_of_ranks", "ranks sum to n (n + 1) / 2", _sum_of_ranks),
    Property("sum_of_values", "l2-sorted values sum to the values", _sum_of_values),
    Property("hard_ranks", "ranks of a small strength are those of argsort", _hard_ranks),
    Property("hard_sort", "values sorted with a small strength are those of sort", _hard_sort),
    Property("equivariant", "shuffled values have shuffled ranks", _equivariant),
    Property("shift_free", "r(x - 512) = r(x)", _shift_free),
)
