"""Launcher of the native `similarity_logsumexp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.ops._checks import FLOATS, accumulator

DTYPES = FLOATS


def forward(
    queries: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    columns: bool,
    cache_elements: int,
    *,
    isa: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if len(queries) == 0:
        return scale.new_empty(0), scale.new_empty(0), scale.new_empty(cache_elements)
    outputs: tuple[Tensor, Tensor, Tensor] = torch.ops.sslfast_native.similarity_logsumexp_cpu(
        *_operands(queries, keys, scale, bias, query_ids, key_ids), columns, cache_elements, isa
    )
    return outputs


def backward(
    drows: Tensor,
    dcols: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    cache: Tensor,
    columns: bool,
    need_queries: bool,
    need_keys: bool,
    need_scale: bool,
    need_bias: bool,
    *,
    isa: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if len(queries) == 0:
        return (
            queries.new_empty(queries.shape if need_queries else 0),
            queries.new_zeros(keys.shape if keys is not None and need_keys else 0),
            scale.new_zeros(scale.shape if need_scale else 0),
            scale.new_zeros(bias.shape if bias is not None and need_bias else 0),
        )
    native = torch.ops.sslfast_native.similarity_logsumexp_backward_cpu
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = native(
        drows.contiguous(),
        dcols.contiguous(),
        *_operands(queries, keys, scale, bias, query_ids, key_ids),
        rows,
        cols,
        cache,
        columns,
        need_queries,
        need_keys,
        need_scale,
        need_bias,
        isa,
    )
    return gradients


def _operands(
    queries: Tensor, keys: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Contiguous, half-precision rows widened; `others` already are in the accumulator dtype."""
    dtype = accumulator(queries.dtype)
    wide = queries.to(dtype), None if keys is None else keys.to(dtype)
    return tuple(None if each is None else each.contiguous() for each in (*wide, *others))
