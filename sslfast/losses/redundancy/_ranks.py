"""The global batch of a redundancy loss: the rows that it sums over, and the gradient it leaves.

A loss with ``gather_distributed=True`` is one global value that every rank computes alike. Its own
rows receive the gradient of that value; `averaged_over_ranks` then makes it W times as large,
because `DistributedDataParallel` averages the parameters' gradients where it would have to add.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sslfast._core.correlation.frobenius import Route
from sslfast.distributed import cross_frobenius_of_ranks, scale_gradient, world_size
from sslfast.ops.correlation.frobenius import cross_frobenius

GradScale = Literal["exact", "reference"]
GRAD_SCALES = ("exact", "reference")


def num_rows_of(embeddings: Tensor, gather_distributed: bool) -> int:
    """Rows that the loss is taken over: N of this rank, or W N."""
    return len(embeddings) * (world_size() if gather_distributed else 1)


def split_frobenius(
    a: Tensor, b: Tensor | None = None, *, gather_distributed: bool, route: Route
) -> tuple[Tensor, Tensor]:
    """Sum of squares off the diagonal of a^T b, and its diagonal (D,)."""
    if gather_distributed:
        return cross_frobenius_of_ranks(a, b, split_diagonal=True, route=route)
    return cross_frobenius(a, b, split_diagonal=True, route=route)


def frobenius(
    a: Tensor, b: Tensor | None = None, *, gather_distributed: bool, route: Route
) -> Tensor:
    """Sum of squares of a^T b."""
    if gather_distributed:
        return cross_frobenius_of_ranks(a, b, route=route)
    return cross_frobenius(a, b, route=route)


def averaged_over_ranks(loss: Tensor, gather_distributed: bool, grad_scale: GradScale) -> Tensor:
    """The global loss with the gradient that averaging over ranks is to find.

    ``"exact"``: that of the loss. ``"reference"``: 1/W of it, which an all-reduce that autograd
    does not see leaves.
    """
    if not gather_distributed or grad_scale == "reference" or world_size() == 1:
        return loss
    return scale_gradient(loss, world_size())
