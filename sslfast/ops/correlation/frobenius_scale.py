"""`cross_frobenius` of operands whose Grams overflow, though the result may not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sslfast._core.checks import values_are_read

MOST = 64  # exponent of a factor: its square is a float32

Scaled = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def has_overflown(total: Tensor) -> bool:
    """Whether a sum is known, here and now, not to be finite."""
    if torch.compiler.is_compiling() or total.is_meta or not values_are_read(total):
        return False
    return not bool(total.isfinite())


def rescaled(
    function: Scaled, a: Tensor, b: Tensor | None, total: Tensor, diagonal: Tensor
) -> tuple[Tensor, Tensor]:
    """`function` of a and b, total and diagonal, by operands whose largest element is near 1.

    With a = 2^p a' and b = 2^q b' every element of a^T b is 2^(p + q) times that of a'^T b', to
    the last bit: the total is inf where it overflows itself, and nowhere else. Operands that are
    not finite have the total and diagonal that they had.
    """
    p = _exponent(a)
    q = p if b is None else _exponent(b)
    if p is None or q is None:
        return total, diagonal
    total, diagonal = function(_shifted(a, -p), None if b is None else _shifted(b, -q))
    return _shifted(total, 2 * (p + q)), _shifted(diagonal, p + q)


def _exponent(rows: Tensor) -> int | None:
    """p, with the largest element between 2^(p - 1) and 2^p; None where it is not finite."""
    largest = float(torch.linalg.vector_norm(rows.detach(), torch.inf))
    return math.frexp(largest)[1] if math.isfinite(largest) else None


def _shifted(values: Tensor, exponent: int) -> Tensor:
    """The values times 2^exponent, by factors that are floating-point numbers themselves."""
    while exponent:
        step = max(-MOST, min(MOST, exponent))
        values = values * 2.0**step
        exponent -= step
    return values
