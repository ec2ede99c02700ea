"""Samples, properties and cost of `similarity_topk`.

An index is right or wrong, and a wrong one moves a whole row of the gradient. So the samples leave
rounding no choice: their rows lie on a grid on which every product and sum is exact in every dtype
(TF32 included), so that ties are ties for all; or their similarities lie far apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Property, Sample, Size
from sslfast.ops.measured_rows import measured_rows


def _grid(generator: torch.Generator, num_rows: int, dim: int) -> Tensor:
    """Normal numbers in steps of 1/8."""
    rows = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    return (8 * rows).round() / 8


def _sample(
    name: str,
    size: Size,
    num_rows: int,
    num_keys: int,
    dim: int,
    k: int,
    *,
    ids: Callable[[torch.Generator, int], Tensor] | None = None,
    change: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Sample:
    """Two matrices; `change` is made to the keys."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        case: dict[str, Any] = {
            "queries": _grid(generator, num_rows, dim),
            "keys": change(_grid(generator, num_keys, dim)),
            "k": k,
        }
        if ids is not None:
            case["query_ids"] = ids(generator, num_rows)
            case["key_ids"] = ids(generator, num_keys)
        return case

    return Sample(name, size, make)


def _own(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    k: int,
    ids: Callable[[int], Tensor] | None = torch.arange,
) -> Sample:
    """Keys are the queries; by default a row does not find itself."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        case: dict[str, Any] = {"queries": _grid(generator, num_rows, dim), "k": k}
        return case if ids is None else {**case, "query_ids": ids(num_rows)}

    return Sample(name, size, make)


def _apart(generator: torch.Generator) -> dict[str, Any]:
    """No number on a grid; keys at 60 levels along the common direction of the queries."""
    direction = torch.randn(37, generator=generator, dtype=torch.float64)
    levels = torch.randperm(60, generator=generator).double() / 60 - 0.4
    noise = 0.002 * torch.randn(100, 37, generator=generator, dtype=torch.float64)
    lengths = 0.5 + torch.rand(40, generator=generator, dtype=torch.float64)
    rows = torch.cat([lengths, levels])[:, None] * direction + noise
    return {"queries": rows[:40], "keys": rows[40:], "k": 9}


def _classes(count: int) -> Callable[[torch.Generator, int], Tensor]:
    return lambda generator, length: torch.randint(count, (length,), generator=generator)


def _wide_ids(generator: torch.Generator, length: int) -> Tensor:
    """Ids that differ beyond 32 bits only."""
    return torch.randint(3, (length,), generator=generator) * (1 << 32) + 5


def _equal(rows: Tensor) -> Tensor:
    return rows[:1].expand(rows.shape).contiguous()


SAMPLES = (
    _sample("one_pair", "tiny", 1, 1, 1, 1),
    _sample("one_query", "tiny", 1, 9, 5, 3),
    _sample("every_key", "tiny", 5, 6, 3, 6),
    _sample("no_queries", "tiny", 0, 4, 3, 2),
    _own("three_rows", "tiny", 3, 4, 2),
    _sample("ragged", "ragged", 67, 131, 33, 7),
    Sample("apart", "ragged", _apart),
    _sample("filter", "ragged", 53, 80, 9, 5, ids=_classes(7)),
    _own("own", "ragged", 203, 65, 10),
    _own("own_with_itself", "ragged", 41, 30, 4, ids=None),
    _sample("thousand_features", "ragged", 30, 41, 1000, 3),
    _sample("ranking", "ragged", 13, 75, 20, 75),
    _sample("ties", "ragged", 21, 150, 2, 40),
    _sample("equal_keys", "ragged", 17, 90, 8, 33, change=_equal),
    _sample("equal_keys_filtered", "ragged", 17, 90, 8, 33, ids=_classes(5), change=_equal),
    _sample("zero_keys", "ragged", 9, 70, 5, 40, change=torch.zeros_like),
    _sample("few_queries", "ragged", 3, 1500, 17, 12),
    _sample("gallery", "typical", 128, 9000, 128, 20),
    _sample("voters", "typical", 32, 2000, 64, 200),
    _sample("nearest", "typical", 256, 4096, 256, 1),
    _sample("hardest_of_queue", "typical", 16, 560, 128, 520),
    _own("batch", "typical", 512, 128, 10),
    _sample("wide_ids", "extreme", 21, 30, 8, 4, ids=_wide_ids),
    _sample("far", "extreme", 13, 40, 7, 5, change=lambda rows: rows * 2.0**9),
    _sample("close", "extreme", 13, 40, 7, 5, change=lambda rows: rows * 2.0**-9),
    _own("exactly_k", "extreme", 12, 15, 6, ids=lambda length: torch.arange(length) % 2),
    Sample(
        "all_opposed",
        "extreme",
        lambda generator: {
            "queries": 0.5 + _grid(generator, 11, 6).abs(),
            "keys": -0.5 - _grid(generator, 37, 6).abs(),
            "k": 3,
        },
    ),
)


def _case(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _grid(generator, 23, 11), _grid(generator, 57, 11)


def _pairs(found: tuple[Tensor, Tensor]) -> Tensor:
    values, indices = found
    return torch.stack([values, indices.to(values.dtype)])  # (2, N, k)


def _prefix(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys = _case(generator)
    return _pairs(function(queries, keys, 40))[..., :7], _pairs(function(queries, keys, 7))


def _products(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys = _case(generator)
    values, indices = function(queries, keys, 9)
    return values, torch.einsum("nd,nkd->nk", queries, keys[indices]).to(values)


def _own_is_own_keys(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, _ = _case(generator)
    ids = torch.arange(23) % 9
    own = function(queries, None, 6, query_ids=ids)
    return _pairs(own), _pairs(function(queries, queries, 6, query_ids=ids, key_ids=ids))


def _keys_split(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys = _case(generator)
    first, second = function(queries, keys[:30], 8), function(queries, keys[30:], 8)
    values = torch.cat([first[0], second[0]], 1)  # (N, 16), the lower indices first
    indices = torch.cat([first[1], second[1] + 30], 1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    merged = values[:, :8], indices.gather(1, order[:, :8])
    return _pairs(function(queries, keys, 8)), _pairs(merged)


def _excluded_is_removed(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys = _case(generator)
    key_ids = torch.arange(57) % 2  # queries exclude the even keys
    values, indices = function(
        queries, keys, 12, query_ids=torch.zeros(23, dtype=torch.long), key_ids=key_ids
    )
    odd = function(queries, keys[1::2], 12)
    return _pairs((values, indices)), _pairs((odd[0], 2 * odd[1] + 1))


def _gallery(num_rows: int, dim: int) -> dict[str, Any]:
    rows = measured_rows(2 * num_rows, dim)
    return {"queries": rows[:num_rows].clone(), "keys": rows[num_rows:].clone(), "k": 8}


def _batch(num_rows: int, dim: int) -> dict[str, Any]:
    ids = torch.arange(num_rows)
    return {"queries": measured_rows(num_rows, dim), "k": 1, "query_ids": ids}


MEMORY = {"gallery": _gallery, "batch": _batch}
PROPERTIES = (
    Property("prefix", "the best 7 are the first of the best 40", _prefix),
    Property("products", "values are the products with the chosen keys", _products),
    Property("own_is_own_keys", "keys=None is keys=queries", _own_is_own_keys),
    Property("keys_split", "two parts of the keys merge into the whole", _keys_split),
    Property("excluded_is_removed", "excluding keys is leaving them out", _excluded_is_removed),
)
