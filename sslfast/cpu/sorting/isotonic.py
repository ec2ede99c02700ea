"""Launcher of the native `isotonic_rank`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.calls import native
from sslfast._core.numerics import FLOATS
from sslfast._core.sorting.isotonic import Projection, in_order

DTYPES = FLOATS

_forward, _backward = native("isotonic_rank_cpu"), native("isotonic_rank_backward_cpu")


def forward(values: Tensor, rule: Projection, *, isa: int) -> tuple[Tensor, Tensor, Tensor]:
    ascending, order = (each.contiguous() for each in in_order(values))
    result, blocks = _forward(ascending, order, *_options(rule), isa=isa)
    return result, order, blocks


def backward(
    dresult: Tensor, values: Tensor, order: Tensor, blocks: Tensor, rule: Projection, *, isa: int
) -> Tensor:
    dvalues: Tensor = _backward(dresult, values, order, blocks, *_options(rule), isa=isa)
    return dvalues


def _options(rule: Projection) -> tuple[bool, bool, float]:
    return not rule.ranks, rule.entropic, rule.strength
