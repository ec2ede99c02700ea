"""Launcher of the native `relaxed_sort`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.sorting.network import SortingRule
from sslfast.cpu.sorting.network import DTYPES, Wants, run

__all__ = ["DTYPES", "backward", "forward"]


def forward(
    values: Tensor, rule: SortingRule, permutation: bool, *, isa: int
) -> tuple[Tensor, Tensor]:
    bounds = range(values.shape[1] + 1) if permutation else ()
    results = run(values, rule, Wants(ordered=True, masses=permutation), isa, bounds=bounds)
    return results.ordered, results.masses


def backward(
    dordered: Tensor, dshares: Tensor | None, values: Tensor, rule: SortingRule, *, isa: int
) -> Tensor:
    bounds = () if dshares is None else range(values.shape[1] + 1)
    wants = Wants(dvalues=True)
    return run(values, rule, wants, isa, bounds=bounds, dordered=dordered, dmasses=dshares).dvalues
