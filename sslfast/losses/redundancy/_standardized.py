"""Cross-products of standardised rows that are never written: a product reads the rows as they are
and treats their columns by mean and scale.

Two nodes of the graph: one product, whose gradient is that of the standardised rows, and for each
matrix the way back from those to the rows. What the product keeps is free before the second begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast import _backends
from sslfast._backends import on_gpu
from sslfast._core.calls import wanted
from sslfast._core.correlation.frobenius import Route
from sslfast._core.numerics import tile_operands
from sslfast._core.rows.standardize import Scaling
from sslfast.ops.correlation import frobenius_keep as keep
from sslfast.ops.correlation.frobenius import SPEC as FROBENIUS
from sslfast.ops.rows.standardize import SPEC as STANDARDIZE
from sslfast.ops.rows.standardize_gradient import scale


def reads_columns(rows: Tensor) -> bool:
    """Whether treating columns on the way costs nothing: where autocast rounds no operand, and on
    the CPU, whose kernel packs what it reads. A GPU's loads its tiles as they are.
    """
    return not on_gpu(rows) and tile_operands(rows, None)[0].dtype == rows.dtype


def split_frobenius_of_standardized(
    a: Tensor, b: Tensor, rule: Scaling, route: Route
) -> tuple[Tensor, Tensor]:
    """Sum of squares off the diagonal of a^T b, and the diagonal (D,), for a and b (N, D) of one
    dtype, standardised by their own statistics.
    """
    backend = _backends.forced()
    a, a_columns = _Standardized.apply(a, rule, backend)  # type: ignore[no-untyped-call]
    b, b_columns = _Standardized.apply(b, rule, backend)  # type: ignore[no-untyped-call]
    found: tuple[Tensor, Tensor]
    found = _SplitFrobenius.apply(a, b, a_columns, b_columns, route, backend)  # type: ignore[no-untyped-call]
    return found


class _Standardized(torch.autograd.Function):
    """The rows as they are, with columns; the gradient is taken to be the standardised rows'."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rule: Scaling, backend: str) -> tuple[Tensor, Tensor]:
        _, *statistics = STANDARDIZE.forward_op(rows, None, None, *rule, backend)
        mean, variance, rest = statistics  # (D,) each
        columns = torch.stack((mean, rest, scale(variance, rule)))  # (3, D)
        ctx.save_for_backward(rows, *statistics)
        ctx.options = *rule, backend
        ctx.mark_non_differentiable(columns)
        return rows.view_as(rows), columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dstandardized: Tensor, dcolumns: Tensor) -> tuple[Tensor, None, None]:
        rows, *statistics = ctx.saved_tensors
        nothing = torch.zeros_like(statistics[0])  # mean and variance are used by no one else
        drows, *_ = STANDARDIZE.backward_op(
            dstandardized, nothing, nothing, rows, *statistics, False, *ctx.options
        )
        return drows, None, None


class _SplitFrobenius(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        a_columns: Tensor,
        b_columns: Tensor,
        route: Route,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        chosen = keep.choose_route(a, b) if route == "auto" else route
        form = True, chosen, a_columns, b_columns
        room = keep.cache_elements(a, b, chosen, any(ctx.needs_input_grad))
        total, diagonal, cache = FROBENIUS.forward_op(a, b, *form, room, backend)
        ctx.save_for_backward(a, b, a_columns, b_columns, diagonal, cache)
        ctx.options = chosen, backend
        return total, diagonal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, ddiagonal: Tensor) -> tuple[Tensor | None, ...]:
        a, b, a_columns, b_columns, diagonal, cache = ctx.saved_tensors
        route, backend = ctx.options
        needs = ctx.needs_input_grad[:2]
        form = True, route, a_columns, b_columns
        gradients = FROBENIUS.backward_op(
            dtotal, ddiagonal, a, b, *form, diagonal, cache, *needs, backend
        )
        return wanted(gradients, ctx.needs_input_grad)
