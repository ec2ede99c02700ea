"""The one native sorting-network kernel, as both of its primitives call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslfast._core.numerics import FLOATS, widened
from sslfast._core.sorting.network import RELAXATIONS, SortingRule, swap_table

DTYPES = FLOATS


class Wants(NamedTuple):
    """Which results are computed; the others come back empty."""

    ordered: bool = False
    masses: bool = False
    cross_entropy: bool = False
    dvalues: bool = False


class Results(NamedTuple):
    """(B, n), (B, n, G), (B,) and (B, n)."""

    ordered: Tensor
    masses: Tensor
    cross_entropy: Tensor
    dvalues: Tensor


def run(
    values: Tensor,
    rule: SortingRule,
    wants: Wants,
    isa: int,
    *,
    bounds: Sequence[int] = (),
    teacher: Tensor | None = None,
    teacher_steepness: float = 1.0,
    dordered: Tensor | None = None,
    dmasses: Tensor | None = None,
) -> Results:
    """Sweeps over lists (B, n); `bounds` are the first ranks of the groups and n.

    `dordered` and `dmasses` are what ``dvalues`` starts from, unless the cross entropy is wanted.
    """
    pairs, _ = swap_table(rule.network, values.shape[1], values.device)
    given = [None if each is None else widened(each) for each in (teacher, dordered, dmasses)]
    return Results(
        *torch.ops.sslfast_native.sorting_network_cpu(
            widened(values),
            *given,
            pairs,
            list(bounds),
            RELAXATIONS.index(rule.relaxation),
            rule.steepness,
            teacher_steepness,
            rule.art_lambda,
            *wants,
            isa,
        )
    )
