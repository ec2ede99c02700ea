"""Launcher of the native `sorting_group_mass`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.sorting.network import Groups, SortingRule
from sslfast.cpu.sorting.network import DTYPES, Wants, run

__all__ = ["DTYPES", "backward", "forward"]


def forward(
    values: Tensor, groups: Groups, rule: SortingRule, learns: bool, *, isa: int
) -> tuple[Tensor, Tensor]:
    cross_entropy = groups.cross_entropy
    results = run(
        values,
        rule,
        Wants(masses=not cross_entropy, cross_entropy=cross_entropy, dvalues=learns),
        isa,
        bounds=groups.bounds,
        teacher=groups.teacher,
        teacher_steepness=groups.teacher_steepness,
    )
    return results.cross_entropy if cross_entropy else results.masses, results.dvalues


def backward(
    dmasses: Tensor, values: Tensor, groups: Groups, rule: SortingRule, *, isa: int
) -> Tensor:
    bounds = groups.bounds
    return run(values, rule, Wants(dvalues=True), isa, bounds=bounds, dmasses=dmasses).dvalues
