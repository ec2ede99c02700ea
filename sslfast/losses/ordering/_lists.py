"""Lists of scores and their graded relevance: what is refused, and which elements are padding."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_floating, check_number, values_are_read
from sslfast._core.numerics import INTEGERS, accumulator


def check_lists(scores: Tensor, relevance: Tensor, padded_value_indicator: float | None) -> None:
    """Raises TypeError or ValueError that names the argument and what it got.

    Values are read as everywhere: on the CPU, on CUDA under ``SSLFAST_CHECK=1``, and never while
    a graph is being compiled.
    """
    check_scores(scores)
    check_grades(relevance, scores)
    if relevance.shape != scores.shape:
        raise ValueError(
            f"relevance must have the shape of scores {tuple(scores.shape)}, "
            f"got {tuple(relevance.shape)}"
        )
    check_padded_value(padded_value_indicator)
    padding = padding_of(relevance, padded_value_indicator)
    check_readable_values("scores", scores, padding)
    check_readable_values("relevance", relevance, padding)


def check_padded_value(padded_value_indicator: float | None) -> None:
    """Raises TypeError or ValueError unless ``None`` or a finite number."""
    if padded_value_indicator is not None:
        check_number("padded_value_indicator", padded_value_indicator)


def check_scores(scores: Tensor) -> None:
    """Raises TypeError or ValueError unless floating (B, n) with at least one list and element."""
    check_floating("scores", scores)
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(
            "scores must be lists (B, n), at least one with at least one element, "
            f"got shape {tuple(scores.shape)}"
        )


def check_grades(relevance: Tensor, scores: Tensor) -> None:
    """Raises TypeError unless numbers, ValueError unless on the device of the scores."""
    if not isinstance(relevance, Tensor) or relevance.dtype not in INTEGERS:
        check_floating("relevance", relevance)
    check_device("relevance", relevance, "scores", scores)


def padding_of(relevance: Tensor, padded_value_indicator: float | None) -> Tensor:
    """(B, n) True where there is no element."""
    if padded_value_indicator is None:
        return torch.zeros_like(relevance, dtype=torch.bool)
    return relevance == padded_value_indicator


def check_readable_values(name: str, values: Tensor, padding: Tensor | None = None) -> None:
    """Raises ValueError at a NaN or infinity that is not padding, where values may be read."""
    if torch.compiler.is_compiling() or not values_are_read(values):
        return
    wrong = values.isfinite().logical_not()
    if padding is not None:
        wrong = wrong & ~padding
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"{name} must be finite, got {values[where].item()} at index {where}")


def widened(scores: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 where the scores are."""
    dtype = accumulator(scores.dtype)
    return scores.to(dtype), relevance.to(dtype)
