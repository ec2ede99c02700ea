"""Launcher of the native `similarity_topk`; its gradient is that of every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast.cpu._precision import float_terms
from sslfast.ops._checks import accumulator
from sslfast.ops._topk_arguments import Arguments, Neighbours
from sslfast.ops._topk_gradient import backward as backward_of_all


def forward(arguments: Arguments, *, isa: int) -> Neighbours:
    queries, keys, query_ids, key_ids, k = arguments
    if len(queries) == 0:
        empty, dtype = queries.new_empty, accumulator(queries.dtype)
        return Neighbours(empty((0, k), dtype=dtype), empty((0, k), dtype=torch.int64))
    native = torch.ops.sslfast_native.similarity_topk_cpu
    tensors = (queries, keys, query_ids, key_ids)
    contiguous = (each if each is None else each.contiguous() for each in tensors)
    return Neighbours(*native(*contiguous, k, float_terms(), isa))


def backward(*arguments: Any, isa: int) -> tuple[Tensor, ...]:
    return backward_of_all(*arguments)
