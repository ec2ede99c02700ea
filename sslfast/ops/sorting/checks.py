"""Arguments of the sorting-network primitives: how they are grouped, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sslfast._core.checks import (
    check_choice,
    check_device,
    check_floating,
    check_number,
)
from sslfast._core.sorting.isotonic import OUTPUTS, REGULARIZATIONS, Projection
from sslfast._core.sorting.network import NETWORKS, RELAXATIONS, SortingRule


def check_rule(network: str, relaxation: str, steepness: float, art_lambda: float) -> SortingRule:
    """The rule, or TypeError or ValueError that names the argument and what it got."""
    check_choice("network", network, tuple(NETWORKS))
    check_choice("relaxation", relaxation, RELAXATIONS)
    check_number("steepness", steepness, above=0)
    check_number("art_lambda", art_lambda, least=0, below=1)
    return SortingRule(network, relaxation, float(steepness), float(art_lambda))


def check_groups(values: Tensor, group_sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes, or TypeError or ValueError that names what is wrong with them."""
    if isinstance(group_sizes, (str, Tensor)) or not isinstance(group_sizes, Sequence):
        raise TypeError(
            f"group_sizes must be a sequence of integers, got {type(group_sizes).__name__}"
        )
    sizes = tuple(group_sizes)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"group_sizes must hold integers, got {sizes}")
    length = values.shape[1]
    if any(size < 1 for size in sizes) or sum(sizes) != length:
        raise ValueError(
            f"group_sizes must be positive and sum to the length of the lists, n = {length}, "
            f"got {sizes}"
        )
    return sizes


def check_teacher(values: Tensor, teacher: Tensor | None, cross_entropy: bool) -> None:
    if teacher is None:
        return
    check_floating("teacher", teacher)
    if not cross_entropy:
        raise ValueError("teacher must be None unless cross_entropy is True, got a tensor")
    if teacher.shape != values.shape:
        raise ValueError(
            f"teacher must have the shape of values {tuple(values.shape)}, "
            f"got {tuple(teacher.shape)}"
        )
    check_device("teacher", teacher, "values", values)


def check_projection(
    output: str, regularization: str, regularization_strength: float
) -> Projection:
    """The rule, or TypeError or ValueError that names the argument and what it got."""
    check_choice("output", output, OUTPUTS)
    check_choice("regularization", regularization, REGULARIZATIONS)
    check_number("regularization_strength", regularization_strength, above=0)
    return Projection(output, regularization, float(regularization_strength))
