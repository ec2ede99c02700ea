"""Launcher of the native `cross_frobenius`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.calls import native
from sslfast._core.correlation import frobenius as layout
from sslfast._core.correlation.frobenius import (
    Arguments,
    Gradients,
    Sums,
    no_rows,
    no_rows_gradients,
)
from sslfast._core.numerics import FLOATS

DTYPES = FLOATS

_forward = native("cross_frobenius_cpu", multiplies=True)
_backward = native("cross_frobenius_backward_cpu", multiplies=True)


def forward(arguments: Arguments, cache_elements: int, *, isa: int) -> Sums:
    if len(arguments.a) == 0:
        return no_rows(arguments, cache_elements)
    return Sums(*_forward(*_form(arguments), cache_elements, _strip(arguments), isa=isa))


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
    incoming = dtotal.item(), ddiagonal
    given = *incoming, *_form(arguments), diagonal, cache, needs, _strip(arguments)
    return Gradients(*_backward(*given, isa=isa))


def _form(arguments: Arguments) -> tuple[Tensor | bool | None, ...]:
    a, b, split_diagonal, route, a_columns, b_columns = arguments
    return a, b, a_columns, b_columns, split_diagonal, route == "gram"


def _strip(arguments: Arguments) -> int:
    return layout.strip_elements(arguments.a, arguments.b)
