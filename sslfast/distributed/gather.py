"""Gather the rows of every rank, with the gradient of the global batch.

Rank r holds ``x_r`` (N, D) and a loss ``L_r`` of ``cat(x_0, ..., x_{W-1})``. The backward pass
sums ``dL_s / dx_r`` over the ranks s before rank r takes its slice, so that averaging the
parameter gradients over ranks, which `DistributedDataParallel` does, gives exactly the gradient
of ``mean_r L_r``, the loss of the whole batch. A gather without the sum gives 1/W of the terms
that cross ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.calls import call_function
from sslfast.distributed.agreement import check_agreement
from sslfast.distributed.world import world_size


def all_gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the rows of every rank, in rank order.

    Args:
        rows: (N, ...) tensor, the same shape and dtype on every rank.
        group: process group; default: the world group.

    Returns:
        (W N, ...) tensor on every rank, W the number of ranks; `rows` itself when W = 1.
        Its gradient is summed over the ranks (in float32 for half precision) and sliced.

    Raises:
        ValueError: the ranks hold different shapes or dtypes. Comparing them needs one more
            exchange, which on CUDA happens under ``SSLFAST_CHECK=1`` only.
    """
    if world_size(group) == 1:
        return rows
    check_agreement({"rows": rows}, group)
    gathered: Tensor = call_function(_AllGatherRows, rows, group)
    return gathered


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return gather_without_gradient(rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dgathered: Tensor) -> tuple[Tensor, None]:
        half = dgathered.dtype in (torch.float16, torch.bfloat16)
        dsum = _scatter_sum(dgathered.float() if half else dgathered, ctx.group)
        return dsum.to(dgathered.dtype), None


def gather_without_gradient(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(W N, ...) rows of every rank in rank order, from the same shape on every rank."""
    num_rows, *features = rows.shape
    gathered = rows.new_empty((world_size(group) * num_rows, *features))
    # Newer torch renamed the two single-tensor collectives and warns about the old names.
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collective(gathered, rows.contiguous(), group=group)
    return gathered


def _scatter_sum(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    num_rows, *features = rows.shape
    own = rows.new_empty((num_rows // world_size(group), *features))
    collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    collective(own, rows.contiguous(), group=group)
    return own
