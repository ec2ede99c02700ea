"""Launcher of the native `similarity_logsumexp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.cpu._precision import float_terms
from sslfast.ops import _similarity_cost as cost
from sslfast.ops._checks import FLOATS
from sslfast.ops._similarity_arguments import Arguments, Gradients, Needs, Sums, no_queries

DTYPES = FLOATS


def forward(arguments: Arguments, keep: str, *, isa: int) -> Sums:
    scale, room = arguments.scale, cost.cache_elements(arguments, keep)
    if len(arguments.queries) == 0:
        return Sums(scale.new_empty(0), scale.new_empty(0), scale.new_empty(room))
    native = torch.ops.sslfast_native.similarity_logsumexp_cpu
    return Sums(
        *native(
            *_contiguous(*arguments[:6]),
            arguments.columns,
            room,
            keep == "mean_keys",
            float_terms(),
            isa,
        )
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
            *_contiguous(*arguments[:6]),
            arguments.columns,
            *sums,
            keep == "mean_keys",
            *needs,
            float_terms(),
            isa,
        )
    )


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if each is None else each.contiguous() for each in tensors)
