"""Soft ranks and soft sorting as functions of lists (Blondel et al. 2020, sections 4 and 5).

No loss in themselves, but what differentiable Spearman correlations, top-k errors and least
trimmed squares are written in; the mathematics is that of `sslfast.ops.sorting.isotonic`.
"""

from __future__ import annotations

from torch import Tensor

from sslfast._core.checks import check_floating
from sslfast.ops.sorting.isotonic import isotonic_rank


def soft_rank(
    values: Tensor, regularization: str = "l2", regularization_strength: float = 1.0
) -> Tensor:
    """Differentiable ranks of each list, 1 for its least value (Blondel et al. 2020, section 4).

    Args:
        values: (..., n) lists; float16, bfloat16, float32 or float64.
        regularization: ``"l2"``, piecewise linear, or ``"kl"``, smooth where values mix.
        regularization_strength: in units of the values, finite and above 0. Values further apart
            than about this much have their hard ranks, and no gradient.

    Returns:
        (..., n) in float32 (float64 for float64 values); each list sums to n (n + 1) / 2.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: there is no value in a list, a value is not finite (on CUDA read under
            ``SSLFAST_CHECK=1`` only), or an option is unknown or out of range.

    Differs from torchsort's `soft_rank`, whose arguments these are: see
    `sslfast.ops.sorting.isotonic`. torchsort takes matrices alone.
    """
    return _of_lists(values, regularization, regularization_strength, "rank")


def soft_sort(
    values: Tensor, regularization: str = "l2", regularization_strength: float = 1.0
) -> Tensor:
    """Differentiable ascending order of each list (Blondel et al. 2020, section 4).

    Args:
        values: (..., n) lists; float16, bfloat16, float32 or float64.
        regularization: ``"l2"``, piecewise linear, or ``"kl"``, a soft minimum of what mixes.
        regularization_strength: finite and above 0. Neighbours in the order mix where they are
            further apart than its inverse: the limit of a large one is the mean.

    Returns:
        (..., n) ascending, in float32 (float64 for float64 values); with ``"l2"`` each list keeps
        its sum.

    Raises:
        TypeError, ValueError: as `soft_rank`.

    Differs from torchsort's `soft_sort`, whose arguments these are: see
    `sslfast.ops.sorting.isotonic`. torchsort takes matrices alone.
    """
    return _of_lists(values, regularization, regularization_strength, "sort")


def _of_lists(values: Tensor, regularization: str, strength: float, output: str) -> Tensor:
    check_floating("values", values)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            "values must be lists (..., n) with at least one value each, "
            f"got shape {tuple(values.shape)}"
        )
    result = isotonic_rank(
        values.flatten(0, -2) if values.ndim > 1 else values.unsqueeze(0),
        regularization=regularization,
        regularization_strength=strength,
        output=output,
    )
    return result.view(values.shape)
