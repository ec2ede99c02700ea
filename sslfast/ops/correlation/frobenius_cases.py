"""Sample cases and properties of `cross_frobenius`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Property, Sample, Size
from sslfast.ops.measured_rows import measured_rows

Function = Callable[..., Any]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _sample(
    name: str,
    size: Size,
    num_rows: int,
    *dims: int,
    split: bool = False,
    route: str = "auto",
    make: Callable[..., Tensor] = _normal,
) -> Sample:
    """One matrix for each of `dims`; with one the symmetric form."""

    def draw(generator: torch.Generator) -> dict[str, Any]:
        matrices = {n: make(generator, num_rows, dim) for n, dim in zip("ab", dims, strict=False)}
        return {**matrices, "split_diagonal": split, "route": route}

    return Sample(name, size, draw)


def _views(name: str, size: Size, num_rows: int, dim: int, noise: float) -> Sample:
    """Two standardised views that differ by some noise: the end of a training."""

    def draw(generator: torch.Generator) -> dict[str, Any]:
        rows = _normal(generator, num_rows, dim)
        views = (rows + noise * _normal(generator, num_rows, dim) for _ in "ab")
        a, b = ((v - v.mean(0)) / v.std(0, correction=0).clamp_min(1e-3) for v in views)
        return {"a": a, "b": b, "split_diagonal": True}

    return Sample(name, size, draw)


def _scaled(magnitude: float) -> Callable[..., Tensor]:
    return lambda generator, *shape: magnitude * _normal(generator, *shape)


SAMPLES = (
    _sample("one_number", "tiny", 1, 1),
    _sample("one_row", "tiny", 1, 17, 5),
    _sample("one_feature", "tiny", 19, 1, split=True),
    _sample("one_feature_each", "tiny", 7, 1, 1, split=True),
    _sample("no_rows", "tiny", 0, 5, 3),
    _sample("ragged_gram", "ragged", 33, 70, 70),
    _sample("ragged_gram_split", "ragged", 33, 71, 71, split=True),
    _sample("ragged_direct", "ragged", 70, 33, 33),
    _sample("ragged_direct_split", "ragged", 70, 35, 35, split=True),
    _sample("ragged_widths", "ragged", 31, 45, 90),
    _sample("ragged_symmetric_gram", "ragged", 29, 67, split=True),
    _sample("ragged_symmetric_direct", "ragged", 67, 29),
    _sample("ragged_symmetric_direct_split", "ragged", 69, 37, split=True),
    _sample("forced_direct", "ragged", 21, 58, 43, route="direct"),
    _sample("forced_gram", "ragged", 58, 21, route="gram", split=True),
    _sample("barlow", "typical", 256, 1024, 1024, split=True),
    _sample("barlow_direct", "typical", 1024, 256, 256, split=True),
    _sample("covariance", "typical", 256, 1024, split=True),
    _sample("covariance_direct", "typical", 1024, 256, split=True),
    _views("collapsed_views", "extreme", 40, 100, noise=1e-3),
    _views("collapsed_views_direct", "extreme", 100, 40, noise=1e-3),
    _sample("large", "extreme", 21, 30, 30, make=_scaled(4.0), split=True),
    _sample("small", "extreme", 13, 40, make=_scaled(1e-2)),
    _sample("tall", "extreme", 2048, 24, make=_scaled(0.5), split=True),
)


def _pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _normal(generator, 23, 31), _normal(generator, 23, 19)


def _routes_agree(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = _pair(generator)
    return function(a, b, route="gram"), function(a, b, route="direct")


def _sides_exchange(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = _pair(generator)
    return function(a, b), function(b, a)


def _parts_add_up(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, _ = _pair(generator)
    off, diagonal = function(a, split_diagonal=True)
    return off + diagonal.square().sum(), function(a)


def _one_matrix(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, _ = _pair(generator)
    return function(a), function(a, a.clone())


def _rotations(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = _pair(generator)
    rotation = torch.linalg.qr(_normal(generator, 31, 31)).Q
    return function(a @ rotation, b), function(a, b)


PROPERTIES = (
    Property("routes_agree", "<A A^T, B B^T> = ||A^T B||^2", _routes_agree),
    Property("sides_exchange", "f(a, b) = f(b, a)", _sides_exchange),
    Property("parts_add_up", "off-diagonal and diagonal make the whole", _parts_add_up),
    Property("one_matrix", "f(a) = f(a, a)", _one_matrix),
    Property("rotation_of_features", "f(a R, b) = f(a, b) for orthogonal R", _rotations),
)


def _matrices(
    num_rows: int, dim: int, names: str = "ab", split: bool = True, route: str = "auto"
) -> dict[str, Any]:
    matrices = {name: measured_rows(num_rows, dim) for name in names}
    return {**matrices, "split_diagonal": split, "route": route}


# Few rows and many features would show a hidden D x D, many rows a hidden N x N. A forced route is
# the dearer one, whose products are larger than the operands.
MEMORY = {
    "gram": lambda size, few: _matrices(few, size),
    "direct": lambda size, few: _matrices(size, few),
    "covariance": lambda size, few: _matrices(few, size, "a"),
    "forced gram": lambda size, few: _matrices(size, few, split=False, route="gram"),
    "forced direct": lambda size, few: _matrices(few, size, route="direct"),
}
