"""`cross_frobenius` in plain torch: forward and backward op, by either route."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from sslfast._core.correlation.frobenius import Arguments, Gradients, Sums
from sslfast._core.numerics import accumulator


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Products of widened operands stay wide, also where the op is called under autocast."""

    @wraps(function)
    def call(*given: Any) -> Any:
        device = next(each for each in given if isinstance(each, Arguments)).a.device
        with torch.autocast(device.type, enabled=False):
            return function(*given)

    return call


@_without_autocast
def reference_forward(arguments: Arguments, cache_elements: int) -> Sums:
    a, b = _wide(arguments)
    diagonal = (a * b).sum(0) if arguments.split_diagonal else a.new_empty(0)  # (D,)
    if arguments.route == "direct":
        product = a.T @ b  # (D, E)
        if arguments.split_diagonal:
            product.fill_diagonal_(0)
        total = product.square().sum()
    else:
        gram = _gram(a)  # (N, N)
        total = (gram * (gram if arguments.b is None else _gram(b))).sum()
        total = total - diagonal.square().sum()
    return Sums(total, diagonal, a.new_empty(cache_elements))


@_without_autocast
def reference_backward(
    dtotal: Tensor,
    ddiagonal: Tensor,
    arguments: Arguments,
    diagonal: Tensor,
    cache: Tensor,
    needs: tuple[bool, bool],
) -> Gradients:
    a, b = _wide(arguments)
    weight = ddiagonal  # (D,) or (0,)
    if arguments.route == "gram":
        weight = weight - 2 * dtotal * diagonal  # on the direct route the product has no diagonal
    sides = 2 if arguments.b is None else 1

    def gradient(mine: Tensor, other: Tensor, needed: bool) -> Tensor:
        if not needed:
            return mine.new_empty(0)
        if arguments.route == "direct":
            cross = other.T @ mine  # (E, D)
            if arguments.split_diagonal:
                cross.fill_diagonal_(0)
            product = other @ cross  # (N, D)
        else:
            product = (other @ other.T) @ mine  # (N, D)
        product = 2 * dtotal * product
        if arguments.split_diagonal:
            product = product + weight * other
        return sides * product

    return Gradients(gradient(a, b, needs[0]), gradient(b, a, needs[1] and arguments.b is not None))


def _gram(rows: Tensor) -> Tensor:
    """rows rows^T (N, N), which the squares of its diagonal rule.

    Squares of short significands leave remainders that round down more often than up (0, 1 and 4
    modulo 8), and a matrix product may add all D of them in one chain: in bfloat16 the diagonal
    was seen 1.4e-6 short at D = 1024, by MKL for AVX-512 alone. `sum` adds up in short chains.
    """
    gram = rows @ rows.T
    gram.diagonal().copy_(rows.square().sum(1))
    return gram


def _wide(arguments: Arguments) -> tuple[Tensor, Tensor]:
    arguments = arguments.standardized()
    a = arguments.a.to(accumulator(arguments.a.dtype))
    return a, a if arguments.b is None else arguments.b.to(a.dtype)
