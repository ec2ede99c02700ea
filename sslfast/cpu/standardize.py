"""Launcher of the native `standardize`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.ops._checks import FLOATS
from sslfast.ops._operands import widened
from sslfast.ops._standardize_arguments import Columns, Gradients, Rule

DTYPES = FLOATS


def forward(
    embeddings: Tensor, mean: Tensor | None, variance: Tensor | None, rule: Rule, *, isa: int
) -> tuple[Tensor, Columns]:
    given = tuple(None if each is None else each.contiguous() for each in (mean, variance))
    native = torch.ops.sslfast_native.standardize_cpu
    standardized, *columns = native(widened(embeddings), *given, *_options(rule), isa)
    return standardized, Columns(*columns)


def backward(
    dstandardized: Tensor,
    dmean: Tensor,
    dvariance: Tensor,
    embeddings: Tensor,
    columns: Columns,
    rule: Rule,
    need_statistics: bool,
    *,
    isa: int,
) -> Gradients:
    return Gradients(
        *torch.ops.sslfast_native.standardize_backward_cpu(
            widened(dstandardized),
            dmean.contiguous(),
            dvariance.contiguous(),
            widened(embeddings),
            *(each.contiguous() for each in columns),
            need_statistics,
            *_options(rule),
            isa,
        )
    )


def _options(rule: Rule) -> tuple[int, float, bool, bool]:
    return rule.ddof, rule.eps, rule.eps_on == "deviation", rule.unit_variance
