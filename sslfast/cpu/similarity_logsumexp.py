"""Launcher of the native `similarity_logsumexp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.ops import _similarity_cost as cost
from sslfast.ops._checks import FLOATS, accumulator
from sslfast.ops._similarity_arguments import Arguments, Gradients, Needs, Sums, no_queries

DTYPES = FLOATS


def forward(arguments: Arguments, keep: str, *, isa: int) -> Sums:
    scale, room = arguments.scale, cost.cache_elements(arguments, keep)
    if len(arguments.queries) == 0:
        return Sums(scale.new_empty(0), scale.new_empty(0), scale.new_empty(room))
    native = torch.ops.sslfast_native.similarity_logsumexp_cpu
    return Sums(
        *native(*_operands(*arguments[:6]), arguments.columns, room, keep == "mean_keys", isa)
    )


def backward(
    drows: Tensor,
    dcols: Tensor,
    arguments: Arguments,
    sums: Sums,
    keep: str,
    needs: Needs,
    *,
    isa: int,
) -> Gradients:
    if len(arguments.queries) == 0:
        return no_queries(arguments, needs)
    native = torch.ops.sslfast_native.similarity_logsumexp_backward_cpu
    return Gradients(
        *native(
            drows.contiguous(),
            dcols.contiguous(),
            *_operands(*arguments[:6]),
            arguments.columns,
            *sums,
            keep == "mean_keys",
            *needs,
            isa,
        )
    )


def _operands(
    queries: Tensor, keys: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Contiguous, half-precision rows widened; `others` already are in the accumulator dtype."""
    dtype = accumulator(queries.dtype)
    wide = queries.to(dtype), None if keys is None else keys.to(dtype)
    return tuple(None if each is None else each.contiguous() for each in (*wide, *others))
