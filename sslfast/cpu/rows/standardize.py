"""Launcher of the native `standardize`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.calls import native
from sslfast._core.numerics import FLOATS
from sslfast._core.rows.standardize import Columns, Gradients, Scaling

DTYPES = FLOATS

_forward, _backward = native("standardize_cpu"), native("standardize_backward_cpu")


def forward(
    embeddings: Tensor, mean: Tensor | None, variance: Tensor | None, rule: Scaling, *, isa: int
) -> tuple[Tensor, Columns]:
    y, *columns = _forward(embeddings, mean, variance, *_options(rule), isa=isa)
    return y, Columns(*columns)


def backward(
    dstandardized: Tensor,
    dmean: Tensor,
    dvariance: Tensor,
    embeddings: Tensor,
    columns: Columns,
    rule: Scaling,
    need_statistics: bool,
    *,
    isa: int,
) -> Gradients:
    given = dstandardized, dmean, dvariance, embeddings, columns, need_statistics
    return Gradients(*_backward(*given, *_options(rule), isa=isa))


def _options(rule: Scaling) -> tuple[int, float, bool, bool]:
    return rule.ddof, rule.eps, rule.eps_on == "deviation", rule.unit_variance
