"""Operations, traffic and memory of the sorting-network primitives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast._core.numerics import accumulator
from sslfast._core.sorting.network import SATURATING, num_swaps

# Operations of a comparator; an arc tangent counts as 20, as an exponential does.
RELAX = 30  # its weight and the mixed values
CARRY = 8  # one vector carried past it, backwards or forwards
GRADIENT = 22  # weight's slope and the gradient of its two values
LISTS_AT_A_TIME = 16  # of a thread: the lanes of the widest vector


def _swaps(values: Tensor, network: str) -> int:
    return values.shape[0] * num_swaps(network, values.shape[1])


def _vectors(group_sizes: Sequence[int], relaxation: str, cross_entropy: bool) -> int:
    """Indicator vectors: one for two groups of which neither can saturate."""
    shared = cross_entropy and len(group_sizes) == 2 and relaxation not in SATURATING
    return 1 if shared else len(group_sizes)


def sort_flops(
    values: Tensor,
    *,
    network: str = "odd_even",
    permutation: bool = False,
    backward: bool = True,
    **options: Any,
) -> int:
    columns = values.shape[1] if permutation else 0
    forward = RELAX + columns * CARRY
    again = RELAX + columns * 2 * CARRY + GRADIENT
    return _swaps(values, network) * (forward + (again if backward else 0))


def sort_bytes(
    values: Tensor, *, permutation: bool = False, backward: bool = True, **options: Any
) -> int:
    width = accumulator(values.dtype).itemsize
    outputs = values.numel() * (1 + (values.shape[1] if permutation else 0)) * width
    inputs = values.numel() * values.element_size()
    return (inputs + outputs) + (2 * inputs + outputs if backward else 0)


def sort_peak_bytes(
    values: Tensor,
    *,
    network: str = "odd_even",
    permutation: bool = False,
    backward: bool = True,
    **options: Any,
) -> int:
    """Results and their cotangent, the gradient, widened copies, what a thread keeps."""
    width = accumulator(values.dtype).itemsize
    outputs = values.numel() * (1 + (values.shape[1] if permutation else 0)) * width
    matrices = 3 * values.numel() * width + outputs * (2 if backward else 1)
    return matrices + _scratch(values, network)


def mass_flops(
    values: Tensor,
    group_sizes: Sequence[int],
    *,
    cross_entropy: bool = False,
    teacher: Tensor | None = None,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    backward: bool = True,
    **options: Any,
) -> int:
    vectors = _vectors(group_sizes, relaxation, cross_entropy and teacher is None)
    once = RELAX + vectors * CARRY
    taught = 0 if teacher is None else once
    gradient = GRADIENT + vectors * CARRY
    if backward and not cross_entropy:
        gradient += once
    return _swaps(values, network) * (once + taught + (gradient if backward else 0))


def mass_bytes(
    values: Tensor,
    group_sizes: Sequence[int],
    *,
    cross_entropy: bool = False,
    teacher: Tensor | None = None,
    backward: bool = True,
    **options: Any,
) -> int:
    width = accumulator(values.dtype).itemsize
    inputs = values.numel() * values.element_size()
    inputs += 0 if teacher is None else teacher.numel() * teacher.element_size()
    if cross_entropy:
        saved = values.numel() * width
        return inputs + len(values) * width + (3 * saved if backward else 0)
    masses = values.numel() * len(group_sizes) * width
    return inputs + masses + (2 * inputs + masses if backward else 0)


def mass_peak_bytes(
    values: Tensor,
    group_sizes: Sequence[int],
    *,
    cross_entropy: bool = False,
    teacher: Tensor | None = None,
    network: str = "odd_even",
    backward: bool = True,
    **options: Any,
) -> int:
    """Results and their cotangent, the gradient, widened copies, what a thread keeps."""
    width = accumulator(values.dtype).itemsize
    matrices = values.numel() * width * (3 if teacher is None else 4)
    if not cross_entropy:
        matrices += values.numel() * len(group_sizes) * width * (2 if backward else 1)
    return matrices + _scratch(values, network)


def _scratch(values: Tensor, network: str) -> int:
    """Six numbers a comparator and eight a wire, for the lists that every thread holds."""
    numbers = 6 * num_swaps(network, values.shape[1]) + 8 * values.shape[1]
    width = accumulator(values.dtype).itemsize
    return torch.get_num_threads() * LISTS_AT_A_TIME * width * numbers
