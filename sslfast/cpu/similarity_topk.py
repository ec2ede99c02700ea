"""Launcher of the native `similarity_topk`; its gradient is that of every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast.ops._checks import accumulator
from sslfast.ops._topk_arguments import Arguments, Neighbours
from sslfast.ops._topk_gradient import backward as backward_of_all


def forward(arguments: Arguments, *, isa: int) -> Neighbours:
    queries, keys, query_ids, key_ids, k = arguments
    dtype = accumulator(queries.dtype)
    if len(queries) == 0:
        empty = queries.new_empty
        return Neighbours(empty((0, k), dtype=dtype), empty((0, k), dtype=torch.int64))
    native = torch.ops.sslfast_native.similarity_topk_cpu
    rows = (each if each is None else each.to(dtype).contiguous() for each in (queries, keys))
    ids = (each if each is None else each.contiguous() for each in (query_ids, key_ids))
    return Neighbours(*native(*rows, *ids, k, isa))


def backward(*arguments: Any, isa: int) -> tuple[Tensor, ...]:
    return backward_of_all(*arguments)
