"""Launcher of the CUDA C++ `relaxed_sort`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sslfast._core.numerics import FLOATS, widened
from sslfast._core.sorting.network import SortingRule
from sslfast.cuda._start import Argument
from sslfast.cuda.sorting.launch import SPECIALISATIONS, by_thread, run_teams, run_threads

__all__ = ["DTYPES", "SPECIALISATIONS", "backward", "forward"]

DTYPES = FLOATS
SOURCE = "relaxed_sort"


def forward(
    values: Tensor, rule: SortingRule, permutation: bool, *, build: str
) -> tuple[Tensor, Tensor]:
    x = widened(values)  # (B, n)
    lists, length = x.shape
    ordered = x.new_empty(x.shape)  # (B, n)
    shares = x.new_empty((lists, length, length) if permutation else (0,))
    _run("fwd", (x, ordered, shares if permutation else 0), x, permutation, rule, build)
    return ordered, shares


def backward(
    dordered: Tensor, dshares: Tensor | None, values: Tensor, rule: SortingRule, *, build: str
) -> Tensor:
    x = widened(values)  # (B, n)
    dx = x.new_empty(x.shape)  # (B, n)
    dp = 0 if dshares is None else widened(dshares)  # (B, n, n)
    _run("bwd", (x, widened(dordered), dp, dx), x, dshares is not None, rule, build)
    return dx


def _run(
    kernel: str,
    tensors: Sequence[Argument],
    x: Tensor,
    permutation: bool,
    rule: SortingRule,
    build: str,
) -> None:
    numbers = (rule.steepness, rule.art_lambda)
    if by_thread(SOURCE, x, rule, build):
        run_threads(SOURCE, kernel, (*tensors, x.shape[0], *numbers), x, rule, build)
    else:
        bounds = range(x.shape[1] + 1) if permutation else ()
        run_teams(SOURCE, kernel, tensors, x, bounds, rule, build, numbers=numbers)
