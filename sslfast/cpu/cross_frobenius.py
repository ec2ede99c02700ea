"""Launcher of the native `cross_frobenius`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.ops import _frobenius_cost as cost
from sslfast.ops._checks import FLOATS, accumulator
from sslfast.ops._frobenius_arguments import Arguments, Gradients, Sums, no_rows, no_rows_gradients

DTYPES = FLOATS


def forward(arguments: Arguments, cache_elements: int, *, isa: int) -> Sums:
    if len(arguments.a) == 0:
        return no_rows(arguments, cache_elements)
    native = torch.ops.sslfast_native.cross_frobenius_cpu
    form = arguments.split_diagonal, arguments.route == "gram"
    strip = cost.strip_elements(arguments.a, arguments.b)
    return Sums(*native(*_operands(arguments), *form, cache_elements, strip, isa))


def backward(
    dtotal: Tensor,
    ddiagonal: Tensor,
    arguments: Arguments,
    diagonal: Tensor,
    cache: Tensor,
    needs: tuple[bool, bool],
    *,
    isa: int,
) -> Gradients:
    if len(arguments.a) == 0:
        return no_rows_gradients(arguments, needs)
    native = torch.ops.sslfast_native.cross_frobenius_backward_cpu
    form = arguments.split_diagonal, arguments.route == "gram"
    strip = cost.strip_elements(arguments.a, arguments.b)
    da, db = native(
        dtotal.item(),
        ddiagonal.contiguous(),
        *_operands(arguments),
        *form,
        diagonal,
        cache,
        *needs,
        strip,
        isa,
    )
    return Gradients(da, db)


def _operands(arguments: Arguments) -> tuple[Tensor | None, ...]:
    """Contiguous, half precision widened: both matrices, both matrices' columns."""
    dtype = accumulator(arguments.a.dtype)
    operands = arguments.a, arguments.b, arguments.a_columns, arguments.b_columns
    return tuple(None if each is None else each.to(dtype).contiguous() for each in operands)
