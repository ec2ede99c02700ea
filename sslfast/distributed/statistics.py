"""Column moments of the rows of all ranks: what normalising over the global batch needs.

With n rows on each of W ranks, N = W n, and the moments m_r and S_r = sum_i (x_i - m_r)^2 of a
rank's own rows,

    mean = 1/W sum_r m_r,    variance = 1/(N - ddof) sum_r (S_r + n (m_r - mean)^2)

which has no difference of large squares. The ranks exchange 2 D numbers in either direction:

    dx_i = dmean/N + 2 (x_i - mean) dvariance / (N - ddof)

with dmean and dvariance summed over the ranks, each of which used the moments for its own rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.checks import check_matrix
from sslfast._core.numerics import accumulator
from sslfast.distributed.gather import check_equal_shapes, gather_without_gradient
from sslfast.distributed.world import world_size


def column_moments_of_ranks(
    rows: Tensor, *, ddof: int = 0, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column over the rows of all ranks.

    Args:
        rows: (n, D) matrix, the same shape on each of the W ranks; float16, bfloat16, float32 or
            float64.
        ddof: taken off N = W n in the divisor of the variance: 0 (biased) or 1 (unbiased).
        group: process group; default: the world group.

    Returns:
        (D,) mean and (D,) variance, the same on every rank, in float32 (float64 for float64
        rows), to be given to `sslfast.standardize`. Every rank must use them in the same way:
        the gradients that they receive are summed over the ranks, so that a rank's rows receive
        the gradient of the sum of what the ranks compute, or of the global value that they share.

    Raises:
        TypeError: `rows` is not a floating tensor.
        ValueError: `rows` is no matrix, N - ddof is below 1, or the ranks hold different shapes
            (compared as in `all_gather_rows`).
    """
    check_matrix("rows", rows, "(n, D)")
    num_rows = len(rows) * world_size(group)
    if num_rows - ddof < 1:
        raise ValueError(
            f"rows must be more than ddof={ddof} over all ranks, got shape {tuple(rows.shape)} "
            f"on {world_size(group)} ranks"
        )
    if world_size(group) > 1:
        check_equal_shapes(rows, group)
    mean, variance = _ColumnMoments.apply(rows, ddof, group)  # type: ignore[no-untyped-call]
    return mean, variance


class _ColumnMoments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, ddof: int, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        num_rows, num_ranks = len(rows), world_size(group)
        variance, mean = _moments(rows.to(accumulator(rows.dtype)))  # (D,), (D,)
        if num_ranks > 1:
            own = torch.stack((mean, variance)).unsqueeze(0)  # (1, 2, D)
            means, variances = gather_without_gradient(own, group).unbind(1)  # (W, D), (W, D)
            between, mean = _moments(means)  # (D,), (D,)
            variance = variances.mean(0) + between  # (D,)
        total = num_rows * num_ranks
        ctx.save_for_backward(rows, mean)
        ctx.total, ctx.divisor, ctx.group = total, total - ddof, group
        return mean, variance * (total / (total - ddof))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmean: Tensor, dvariance: Tensor) -> tuple[Tensor, None, None]:
        rows, mean = ctx.saved_tensors
        dmoments = torch.stack((dmean, dvariance))  # (2, D)
        if world_size(ctx.group) > 1:
            dist.all_reduce(dmoments, group=ctx.group)
        dmean, dvariance = dmoments.unbind()
        drows = (rows - mean).mul_(2 / ctx.divisor * dvariance).add_(dmean / ctx.total)  # (n, D)
        return drows.to(rows.dtype), None, None


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) biased variance, exactly 0 for equal rows, and (D,) mean, exactly theirs."""
    origin = rows[0]  # (D,)
    variance, mean = torch.var_mean(rows - origin, 0, correction=0)  # (D,), (D,)
    return variance, origin + mean
