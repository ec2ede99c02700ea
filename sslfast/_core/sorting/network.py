"""Sorting networks: which wires each layer compares, for lists of any length.

A comparator (p, q) puts the smaller value on wire p and the larger on wire q. Comparators of one
layer share no wire. This is the only place that knows a network: the kernels read its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Layer = tuple[tuple[int, int], ...]


def _odd_even(length: int) -> tuple[Layer, ...]:
    """n layers of neighbours, from wire 0 and from wire 1 in turn (Knuth, volume 3, 5.3.4)."""
    return tuple(
        tuple((p, p + 1) for p in range(layer % 2, length - 1, 2)) for layer in range(length)
    )


def _bitonic(length: int) -> tuple[Layer, ...]:
    """k (k + 1) / 2 layers on 2^k >= n wires (Batcher 1968), less the first 2^k - n wires.

    Every other block of a stage but the last is descending. Comparators that touch a wire which is
    left out are left out, as in diffsort; where what remains would not sort (n = 22, 38, 42 to 46,
    54, ...), the wires that are left out hold -inf instead, and a value that meets one changes
    places with it where the comparator puts the larger.
    """
    stages = max(length - 1, 0).bit_length()
    absent = (1 << stages) - length
    carried = not _sorts_without(absent, stages, length)
    wires: list[int | None] = [None] * absent + list(range(length))  # the list that each holds
    layers: list[list[tuple[int, int]]] = []
    for stage in range(stages):
        for distance in (1 << step for step in range(stage, -1, -1)):
            pairs: list[tuple[int, int]] = []
            for wire in range(1 << stages):
                if wire & distance:
                    continue
                p, q = wire, wire + distance
                if wire >> (stage + 1) & 1:
                    p, q = q, p
                low, high = wires[p], wires[q]
                if low is not None and high is not None:
                    pairs.append((low, high))
                elif carried and low is not None:
                    wires[p], wires[q] = None, low
            layers.append(pairs)
    rank = {wire: place for place, wire in enumerate(wires[absent:])}
    return tuple(tuple((rank[p], rank[q]) for p, q in pairs) for pairs in layers)


def _sorts_without(absent: int, stages: int, length: int) -> bool:
    """Whether no half-empty ascending block ever becomes the lower half of a descending one.

    There the missing values, least in the block, would have to be the largest. Up to 21 wires the
    rest sorts all the same, as all lists of zeros and ones show.
    """
    return length <= 21 or not any(
        absent % (2 << stage) and not absent >> (stage + 1) & 1 and absent >> (stage + 2) & 1
        for stage in range(stages - 2)
    )


NETWORKS: Mapping[str, Callable[[int], tuple[Layer, ...]]] = {
    "odd_even": _odd_even,
    "bitonic": _bitonic,
}


@cache
def layers_of(network: str, length: int) -> tuple[Layer, ...]:
    """The comparators (p, q) of each layer, in order."""
    return NETWORKS[network](length)


def num_swaps(network: str, length: int) -> int:
    return sum(map(len, layers_of(network, length)))


@cache
def swap_table(network: str, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All comparators in order, int32 (S, 2), and where each layer begins, int32 (layers + 1,)."""
    layers = layers_of(network, length)
    pairs = [pair for layer in layers for pair in layer]
    begins = [0]
    for layer in layers:
        begins.append(begins[-1] + len(layer))
    table = torch.tensor(pairs, dtype=torch.int32, device=device).reshape(-1, 2)
    return table, torch.tensor(begins, dtype=torch.int32, device=device)


# In the order of `enum class Relaxation` of the kernels.
RELAXATIONS = ("cauchy", "reciprocal", "optimal", "logistic", "logistic_phi", "gaussian")
# Tails that fall faster than 1/d: masses come close to 0, where 1 - mass would keep no digit.
SATURATING = ("logistic", "logistic_phi", "gaussian")
RULE_SCHEMA = "str network, str relaxation, float steepness, float art_lambda"


class SortingRule(NamedTuple):
    """What is compared, and how softly; see `relaxed_sort`."""

    network: str
    relaxation: str
    steepness: float
    art_lambda: float


class Groups(NamedTuple):
    """Arguments of `sorting_group_mass` beside the values, tensors first."""

    teacher: Tensor | None
    group_sizes: tuple[int, ...]
    cross_entropy: bool
    teacher_steepness: float

    @property
    def bounds(self) -> list[int]:
        """First rank of each group, and n."""
        ends = [0]
        for size in self.group_sizes:
            ends.append(ends[-1] + size)
        return ends
