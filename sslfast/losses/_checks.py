"""Argument checks that the losses share. Each error names the argument and what it got."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A loss imports all its checks from here.
from sslfast.ops._checks import check_choice as check_choice
from sslfast.ops._checks import check_count as check_count
from sslfast.ops._checks import check_device as check_device
from sslfast.ops._checks import check_floating as check_floating
from sslfast.ops._checks import check_matrix, values_are_read
from sslfast.ops._checks import check_number as check_number

MIN_TEMPERATURE = 1e-8


def check_rows(name: str, rows: Tensor, shape: str) -> None:
    """Raises TypeError or ValueError unless a floating matrix with at least one row and feature."""
    check_matrix(name, rows, shape)
    if rows.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {tuple(rows.shape)}")


def check_views(**views: Tensor) -> None:
    """Views of the same N images: matrices (N, D) of one shape on one device.

    Raises:
        TypeError, ValueError: as `check_rows`; or shapes or devices differ (ValueError).
    """
    (first_name, first), *others = views.items()
    check_rows(first_name, first, "(N, D)")
    for name, view in others:
        check_rows(name, view, "(N, D)")
        if view.shape != first.shape:
            raise ValueError(
                f"{name} must have the shape of {first_name} {tuple(first.shape)}, "
                f"got {tuple(view.shape)}"
            )
        check_device(name, view, first_name, first)


def check_temperature(temperature: float | Tensor, device: torch.device | None = None) -> None:
    """A finite number >= 1e-8, or a floating tensor with one such element, on `device` if given.

    A tensor's value is read on the CPU only, on CUDA under ``SSLFAST_CHECK=1``, never while a
    graph is being compiled.

    Raises:
        TypeError: neither a number nor a floating tensor.
        ValueError: several elements, on another device, not finite, or below 1e-8.
    """
    if isinstance(temperature, Tensor):
        value = _value_of_tensor("temperature", temperature, device)
    elif isinstance(temperature, (int, float)):
        value = temperature
    else:
        raise TypeError(
            f"temperature must be a number or a tensor, got {type(temperature).__name__}"
        )
    if value is not None and not MIN_TEMPERATURE <= value < math.inf:
        raise ValueError(f"temperature must be finite and at least 1e-8, got {value}")


def check_distributed(gather_distributed: bool) -> None:
    """Raises ValueError where ranks are to be gathered by a torch that knows none."""
    if gather_distributed and not torch.distributed.is_available():
        raise ValueError("gather_distributed must be False: this torch has no torch.distributed")


def check_scalar(name: str, value: float | Tensor, device: torch.device) -> None:
    """A finite number, or a floating tensor with one such element on `device`; read as above.

    Raises:
        TypeError: neither a number nor a floating tensor.
        ValueError: several elements, on another device, or not finite.
    """
    if not isinstance(value, Tensor):
        check_number(name, value)
        return
    element = _value_of_tensor(name, value, device)
    if element is not None and not math.isfinite(element):
        raise ValueError(f"{name} must be finite, got {element}")


def _value_of_tensor(name: str, scalar: Tensor, device: torch.device | None) -> float | None:
    """The value of a checked one-element tensor, None where it must not be read."""
    check_floating(name, scalar)
    if scalar.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {tuple(scalar.shape)}")
    if device is not None and scalar.device != device:
        raise ValueError(
            f"{name} must be on the device of the embeddings ({device}), got {scalar.device}"
        )
    if torch.compiler.is_compiling() or scalar.is_meta or not values_are_read(scalar):
        return None
    return scalar.item()
