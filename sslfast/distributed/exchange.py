"""What ranks tell each other beside their rows: parts of sums, and the value of the global loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.calls import call_function
from sslfast.distributed.world import world_size


def exchange_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Give every rank its chunk of this rank's rows, and take this rank's chunk of theirs.

    Args:
        rows: (W N, ...) tensor of one shape on all W ranks; chunk s goes to rank s.
        group: process group; default: the world group.

    Returns:
        (W N, ...) tensor, chunk s from rank s; `rows` itself when W = 1. The gradient goes back
        the same way.
    """
    if world_size(group) == 1:
        return rows
    exchanged: Tensor = call_function(_ExchangeRows, rows, group)
    return exchanged


def mean_over_ranks(loss: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The mean of a rank's losses as the value, with the gradient of this rank's own loss.

    So `DistributedDataParallel`, which averages gradients, still sees the gradient of the mean.

    Args:
        loss: tensor of the same shape on every rank.
        group: process group; default: the world group.
    """
    if world_size(group) == 1:
        return loss
    mean: Tensor = call_function(_MeanOverRanks, loss, group)
    return mean


def sum_over_ranks(part: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of a rank's parts as the value, with the gradient of this rank's own part.

    Every rank must go on with the sum in the same way. What its rows then receive is the gradient
    of that one global value.

    Args:
        part: tensor of the same shape on every rank.
        group: process group; default: the world group.
    """
    if world_size(group) == 1:
        return part
    total: Tensor = call_function(_SumOverRanks, part, group)
    return total


def scale_gradient(rows: Tensor, factor: float) -> Tensor:
    """`rows` themselves, whose gradient is multiplied by `factor` on its way back."""
    scaled: Tensor = call_function(_ScaleGradient, rows, factor)
    return scaled


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _exchange(rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dexchanged: Tensor) -> tuple[Tensor, None]:
        return _exchange(dexchanged, ctx.group), None


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = loss.detach().clone()
        dist.all_reduce(total, group=group)
        return total / world_size(group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmean: Tensor) -> tuple[Tensor, None]:
        return dmean, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, None]:
        return dtotal, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, drows: Tensor) -> tuple[Tensor, None]:
        return drows * ctx.factor, None


def _exchange(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    exchanged = rows.new_empty(rows.shape)
    dist.all_to_all_single(exchanged, rows.contiguous(), group=group)
    return exchanged
