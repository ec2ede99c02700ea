"""Launcher of the native `cross_frobenius`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.cpu._precision import float_terms
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
    return Sums(*native(*_operands(arguments), *form, cache_elements, strip, float_terms(), isa))


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
        float_terms(),
        isa,
    )
    return Gradients(da, db)


def _operands(arguments: Arguments) -> tuple[Tensor | None, ...]:
    """Contiguous: both matrices as they are, both matrices' columns in the accumulator dtype."""
    a, b, *columns = arguments.a, arguments.b, arguments.a_columns, arguments.b_columns
    wide = (None if each is None else each.to(accumulator(a.dtype)) for each in columns)
    return tuple(None if each is None else each.contiguous() for each in (a, b, *wide))
