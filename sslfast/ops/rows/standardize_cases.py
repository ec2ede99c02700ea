"""Samples, properties and cost of `standardize`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Property, Sample, Size
from sslfast.ops.measured_rows import measured_rows


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _sample(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    *,
    given: bool = False,
    magnitude: float = 1.0,
    mean: float = 0.0,
    constant: bool = False,
    outlier: float = 0.0,
    **options: Any,
) -> Sample:
    """Columns of different mean and deviation."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        deviation = magnitude * (0.5 + torch.rand(dim, generator=generator, dtype=torch.float64))
        rows = deviation * (_normal(generator, num_rows, dim) + _normal(generator, dim) + mean)
        if constant:
            rows[:, ::2] = rows[:1, ::2]
        if outlier:
            rows[:1] = outlier
        if not given:
            return {"embeddings": rows, **options}
        statistics = {"mean": _normal(generator, dim), "variance": deviation.square()}
        return {"embeddings": rows, **statistics, **options}

    return Sample(name, size, make)


DEVIATION: dict[str, Any] = {"ddof": 1, "eps_on": "deviation"}
CENTRED: dict[str, Any] = {"ddof": 1, "unit_variance": False, "statistics": True}
HANDED_OUT: dict[str, Any] = {"ddof": 1, "eps": 1e-4, "statistics": True}

SAMPLES = (
    _sample("one_row", "tiny", 1, 7),
    _sample("two_rows", "tiny", 2, 3, eps=0.1),
    _sample("one_column", "tiny", 9, 1),
    _sample("given_one_row", "tiny", 1, 5, given=True),
    _sample("given_no_rows", "tiny", 0, 5, given=True),
    _sample("few_rows", "tiny", 5, 20, **HANDED_OUT),
    _sample("ragged", "ragged", 67, 33),
    _sample("deviation", "ragged", 23, 129, **DEVIATION),
    _sample("centred", "ragged", 41, 70, **CENTRED),
    _sample("statistics", "ragged", 37, 131, **HANDED_OUT),
    _sample("given", "ragged", 29, 65, given=True),
    _sample("given_deviation", "ragged", 31, 21, given=True, **DEVIATION),
    _sample("given_centred", "tiny", 9, 20, given=True, **CENTRED),
    _sample("many_rows", "ragged", 2500, 19, ddof=1),
    _sample("projections", "typical", 256, 2048),
    _sample("variance_term", "typical", 512, 512, **HANDED_OUT),
    _sample("far_away", "extreme", 40, 30, mean=1e4, **HANDED_OUT),
    _sample("far_and_centred", "extreme", 40, 30, mean=1e4, **CENTRED),
    _sample("far_and_many", "extreme", 1300, 40, mean=1e4),
    _sample("far_outlier", "extreme", 600, 9, outlier=1e4),
    _sample("large", "extreme", 13, 40, magnitude=5e3),
    _sample("small", "extreme", 13, 40, magnitude=1e-3),
    _sample("constant", "extreme", 13, 40, constant=True),
    _sample("constant_without_eps", "extreme", 33, 40, constant=True, eps=0.0),
    _sample("constant_deviation", "extreme", 33, 40, constant=True, **DEVIATION),
)


def _rows(generator: torch.Generator) -> Tensor:
    return 3 * _normal(generator, 23, 19) + _normal(generator, 19)


def _affine_free(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = _rows(generator)
    return function(100 * rows - 7, eps=0.0), function(rows, eps=0.0)


def _unit_columns(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    columns = function(_rows(generator), ddof=1, eps=0.0)
    moments = torch.stack([columns.mean(0), columns.var(0)])
    return moments, torch.stack([torch.zeros_like(moments[0]), torch.ones_like(moments[1])])


def _own_statistics(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = _rows(generator)
    own, mean, variance = function(rows, ddof=1, statistics=True)
    return own, function(rows, mean=mean, variance=variance)


PROPERTIES = (
    Property("affine_free", "f(100 x - 7) = f(x) without eps", _affine_free),
    Property("unit_columns", "every column has mean 0 and variance 1", _unit_columns),
    Property("own_statistics", "f(x) = f(x; its own mean and variance)", _own_statistics),
)


def _measured(num_rows: int, dim: int) -> dict[str, Any]:
    return {"embeddings": measured_rows(num_rows, dim)}


MEMORY = {"rows": _measured}
