"""Launcher of the CUDA C++ `sorting_group_mass`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.numerics import FLOATS, widened
from sslfast._core.sorting.network import SATURATING, Groups, SortingRule
from sslfast.cuda.sorting.launch import SPECIALISATIONS, by_thread, packed, run_teams, run_threads

__all__ = ["DTYPES", "SPECIALISATIONS", "backward", "forward"]

DTYPES = FLOATS
SOURCE = "sorting_group_mass"


def forward(
    values: Tensor, groups: Groups, rule: SortingRule, learns: bool, *, build: str
) -> tuple[Tensor, Tensor]:
    x = widened(values)  # (B, n)
    lists, length = x.shape
    dx = x.new_empty(x.shape if learns else (0,))  # (B, n)
    if groups.cross_entropy:
        loss = x.new_empty(lists)  # (B,)
        _cross_entropy(x, loss, dx if learns else 0, groups, rule, build)
        return loss, dx
    bounds, numbers = groups.bounds, (rule.steepness, rule.art_lambda)
    masses = x.new_empty(lists, length, len(groups.group_sizes))  # (B, n, G)
    if by_thread(SOURCE, x, rule, build):
        given = (x, masses, lists, len(groups.group_sizes), packed(bounds), *numbers)
        run_threads(SOURCE, "fwd", given, x, rule, build)
    else:
        run_teams(SOURCE, "fwd", (x, masses), x, bounds, rule, build, numbers=numbers)
    return masses, dx


def _cross_entropy(
    x: Tensor, loss: Tensor, dx: Tensor | int, groups: Groups, rule: SortingRule, build: str
) -> None:
    lists, num_groups, bounds = x.shape[0], len(groups.group_sizes), groups.bounds
    numbers = (rule.steepness, rule.art_lambda)
    taught = groups.teacher is not None
    teacher = widened(groups.teacher).to(x.dtype) if groups.teacher is not None else 0
    all_numbers = (*numbers, groups.teacher_steepness)
    if not by_thread(SOURCE, x, rule, build, taught=taught):
        given = (x, teacher, loss, dx)
        run_teams(
            SOURCE, "entropy", given, x, bounds, rule, build, taught=taught, numbers=all_numbers
        )
    elif num_groups == 2 and not taught and rule.relaxation not in SATURATING:
        pair = (x, loss, dx, lists, packed(bounds), *numbers)
        run_threads(SOURCE, "pair", pair, x, rule, build)
    else:
        several = (x, teacher, loss, dx, lists, num_groups, packed(bounds), *all_numbers)
        run_threads(SOURCE, "entropy", several, x, rule, build)


def backward(
    dmasses: Tensor, values: Tensor, groups: Groups, rule: SortingRule, *, build: str
) -> Tensor:
    x, dm = widened(values), widened(dmasses)  # (B, n), (B, n, G)
    dx = x.new_empty(x.shape)  # (B, n)
    bounds, numbers = groups.bounds, (rule.steepness, rule.art_lambda)
    if by_thread(SOURCE, x, rule, build):
        given = (x, dm, dx, x.shape[0], len(groups.group_sizes), packed(bounds), *numbers)
        run_threads(SOURCE, "bwd", given, x, rule, build)
    else:
        run_teams(SOURCE, "bwd", (x, dm, dx), x, bounds, rule, build, numbers=numbers)
    return dx
