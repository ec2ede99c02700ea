"""Launcher of the native `isotonic_rank`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.ops._checks import FLOATS
from sslfast.ops._isotonic_arguments import Rule, in_order
from sslfast.ops._operands import widened

DTYPES = FLOATS


def forward(values: Tensor, rule: Rule, *, isa: int) -> tuple[Tensor, Tensor, Tensor]:
    ascending, order = (each.contiguous() for each in in_order(values))
    native = torch.ops.sslfast_native.isotonic_rank_cpu
    result, blocks = native(ascending, order, *_options(rule), isa)
    return result, order, blocks


def backward(
    dresult: Tensor, values: Tensor, order: Tensor, blocks: Tensor, rule: Rule, *, isa: int
) -> Tensor:
    dvalues: Tensor = torch.ops.sslfast_native.isotonic_rank_backward_cpu(
        widened(dresult),
        widened(values),
        order.contiguous(),
        blocks.contiguous(),
        *_options(rule),
        isa,
    )
    return dvalues


def _options(rule: Rule) -> tuple[bool, bool, float]:
    return not rule.ranks, rule.entropic, rule.strength
