"""Sample cases and properties of `similarity_logsumexp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._registry import Property, Sample, Size
from sslfast.ops.measured_rows import measured_rows

Arguments = dict[str, Any]
Function = Callable[..., Any]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _unit(generator: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(_normal(generator, *shape), dim=-1)


def _ids(generator: torch.Generator, length: int, classes: int) -> Tensor:
    return torch.randint(classes, (length,), generator=generator)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _symmetric(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    *,
    scale: float = 1.0,
    learnable: bool = True,
    ids: Callable[[torch.Generator], Tensor] | None = None,
    rows: Callable[..., Tensor] = _unit,
) -> Sample:
    """Keys are the queries; by default two views of num_rows / 2 images exclude each other."""

    def make(generator: torch.Generator) -> Arguments:
        views = torch.arange((num_rows + 1) // 2).repeat(2)[:num_rows]
        return {
            "queries": rows(generator, num_rows, dim),
            "scale": _scalar(scale) if learnable else scale,
            "query_ids": views if ids is None else ids(generator),
        }

    return Sample(name, size, make)


def _rectangular(
    name: str,
    size: Size,
    num_rows: int,
    num_keys: int,
    dim: int,
    *,
    scale: float = 1.0,
    learnable: bool = True,
    columns: bool = False,
    classes: int = 0,
    per_query: bool = False,
    bias: float = 0.0,
    rows: Callable[..., Tensor] = _unit,
) -> Sample:
    """Two matrices; ids of so many classes, a scale a query and a normal bias where asked for."""

    def make(generator: torch.Generator) -> Arguments:
        case: Arguments = {
            "queries": rows(generator, num_rows, dim),
            "keys": rows(generator, num_keys, dim),
            "scale": _scalar(scale) if learnable else scale,
            "columns": columns,
        }
        if per_query:
            spread = torch.rand(num_rows, generator=generator, dtype=torch.float64)
            case["scale"] = scale * (0.5 + spread)
        if bias:
            case["bias"] = bias * _normal(generator, num_keys)
        if classes:
            case["query_ids"] = _ids(generator, num_rows, classes)
            case["key_ids"] = _ids(generator, num_keys, classes)
        return case

    return Sample(name, size, make)


def _large(generator: torch.Generator, *shape: int) -> Tensor:
    return 5 * _normal(generator, *shape)


def _two_parts(generator: torch.Generator) -> Tensor:
    """All rows of one id, except the last: sums over one key, and over all but one."""
    return torch.tensor([7] * 32 + [-7])


def _wide_ids(generator: torch.Generator) -> Tensor:
    """Ids that differ beyond 32 bits only."""
    return _ids(generator, 21, 3) * (1 << 32) + 5


SAMPLES = (
    _rectangular("one_pair", "tiny", 1, 1, 1),
    _rectangular("one_query", "tiny", 1, 9, 4, scale=3.0),
    _rectangular("one_key", "tiny", 6, 1, 5, columns=True),
    _rectangular("no_queries", "tiny", 0, 4, 3),
    _symmetric("one_row_excluded", "tiny", 1, 3),
    _symmetric("three_rows", "tiny", 3, 2, ids=lambda generator: torch.arange(3)),
    _rectangular("ragged", "ragged", 67, 131, 33, scale=7.0),
    _rectangular("ragged_columns", "ragged", 101, 47, 19, scale=10.0, columns=True, classes=40),
    _rectangular("ragged_options", "ragged", 37, 259, 70, scale=5.0, per_query=True, bias=2.0),
    _rectangular("ragged_filter", "ragged", 53, 80, 1, scale=2.0, bias=0.5, classes=3),
    _rectangular("thousand_features", "ragged", 30, 41, 1000, scale=20.0, columns=True),
    _symmetric("ragged_symmetric", "ragged", 203, 65, scale=10.0),
    _symmetric("one_feature", "ragged", 77, 1, scale=4.0),
    _rectangular("ragged_ids", "ragged", 29, 51, 77, scale=6.0, classes=7),
    _symmetric("constant_scale", "ragged", 51, 66, scale=6.0, learnable=False),
    _rectangular(
        "constant_scale_bias", "ragged", 26, 61, 66, scale=4.0, learnable=False, bias=1.0, classes=9
    ),
    _rectangular(
        "constant_scale_columns", "ragged", 34, 45, 21, scale=4.0, learnable=False, columns=True
    ),
    _symmetric("two_views", "typical", 1024, 128, scale=10.0),
    _rectangular("queue", "typical", 128, 4096, 128, scale=5.0),
    _rectangular("image_text", "typical", 512, 512, 256, scale=14.3, columns=True),
    _rectangular(
        "candidates", "typical", 256, 1000, 64, scale=8.0, per_query=True, bias=1.0, classes=99
    ),
    _symmetric("temperature_0.001", "extreme", 97, 64, scale=1000.0),
    _rectangular("temperature_0.001_columns", "extreme", 45, 33, 24, scale=1000.0, columns=True),
    _rectangular("temperature_0.005_each", "extreme", 40, 30, 16, scale=200.0, per_query=True),
    _rectangular("temperature_0.001_bias", "extreme", 33, 50, 16, scale=1000.0, bias=50.0),
    _symmetric("unnormalised", "extreme", 60, 48, scale=1.0, rows=_large),
    _rectangular("unnormalised_columns", "extreme", 40, 56, 48, columns=True, rows=_large),
    _symmetric("all_excluded", "extreme", 33, 8, ids=lambda generator: torch.zeros(33).long()),
    _symmetric("all_but_one", "extreme", 33, 8, scale=5.0, ids=_two_parts),
    _symmetric("wide_ids", "extreme", 21, 8, scale=2.0, ids=_wide_ids),
    _rectangular("filtered_out", "extreme", 20, 30, 8, columns=True, classes=1),
    _symmetric("zero_scale", "extreme", 19, 7, scale=0.0),
    _rectangular("zero_scale_columns", "extreme", 11, 19, 7, scale=0.0, columns=True),
    _rectangular("negative_scale", "extreme", 18, 29, 12, scale=-8.0, columns=True),
)


def _case(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and their ids."""
    queries, keys = _unit(generator, 41, 13), _unit(generator, 29, 13)
    return queries, keys, _ids(generator, 41, 9), _ids(generator, 29, 9)


def _key_order(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys, query_ids, key_ids = _case(generator)
    order = torch.randperm(len(keys), generator=generator)
    plain = function(queries, keys, scale=9.0, query_ids=query_ids, key_ids=key_ids)
    shuffled = function(
        queries, keys[order], scale=9.0, query_ids=query_ids, key_ids=key_ids[order]
    )
    return plain, shuffled


def _row_order(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, _, ids, _ = _case(generator)
    order = torch.randperm(len(queries), generator=generator)
    plain = function(queries, scale=9.0, query_ids=ids)
    return plain[order], function(queries[order], scale=9.0, query_ids=ids[order])


def _rotation(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys, *_ = _case(generator)
    rotation = torch.linalg.qr(_normal(generator, 13, 13)).Q
    return (
        function(queries, keys, scale=9.0),
        function(queries @ rotation, keys @ rotation, scale=9.0),
    )


def _bias_shift(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys, *_ = _case(generator)
    bias = _normal(generator, len(keys))
    return (
        function(queries, keys, scale=9.0, bias=bias) + 3.0,
        function(queries, keys, scale=9.0, bias=bias + 3.0),
    )


def _scale_moves(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys, *_ = _case(generator)
    scale = torch.rand(len(queries), generator=generator, dtype=torch.float64)
    return function(queries, keys, scale=scale), function(scale[:, None] * queries, keys)


def _symmetric_is_own_keys(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, _, ids, _ = _case(generator)
    return (
        function(queries, scale=9.0, query_ids=ids),
        function(queries, queries, scale=9.0, query_ids=ids, key_ids=ids),
    )


def _columns_are_rows(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys, query_ids, key_ids = _case(generator)
    _, columns = function(
        queries, keys, scale=9.0, query_ids=query_ids, key_ids=key_ids, columns=True
    )
    return columns, function(keys, queries, scale=9.0, query_ids=key_ids, key_ids=query_ids)


def _keys_split(function: Function, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    queries, keys, *_ = _case(generator)
    first, second = function(queries, keys[:11], scale=9.0), function(queries, keys[11:], scale=9.0)
    return function(queries, keys, scale=9.0), torch.logaddexp(first, second)


PROPERTIES = (
    Property("key_order", "the order of the keys does not matter", _key_order),
    Property("row_order", "rows permute with their queries, symmetric form", _row_order),
    Property("rotation", "rotating both matrices changes nothing", _rotation),
    Property("bias_shift", "a constant added to the bias is added to the rows", _bias_shift),
    Property("scale_moves", "a scale a query is a factor of that query", _scale_moves),
    Property("symmetric_is_own_keys", "keys=None is keys=queries", _symmetric_is_own_keys),
    Property("columns_are_rows", "columns are rows of the exchanged call", _columns_are_rows),
    Property("keys_split", "logaddexp joins the sums over two parts of the keys", _keys_split),
)


def _own_keys(num_rows: int, dim: int) -> dict[str, Any]:
    ids = torch.arange(num_rows)
    return {"queries": measured_rows(num_rows, dim), "query_ids": ids, "scale": 5.0}


def _two_matrices(num_rows: int, dim: int, **options: Any) -> dict[str, Any]:
    return {
        "queries": measured_rows(num_rows, dim),
        "keys": measured_rows(num_rows, dim),
        **options,
    }


MEMORY = {
    "symmetric": _own_keys,
    "rows": lambda num_rows, dim: _two_matrices(num_rows, dim, bias=torch.zeros(num_rows)),
    "columns": lambda num_rows, dim: _two_matrices(num_rows, dim, columns=True),
}
