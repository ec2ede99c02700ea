"""Argument checks of primitives and losses. Each error names the argument and what it got."""

from __future__ import annotations

import math
import os
from collections.abc import Collection

import torch
from torch import Tensor

from sslfast._core.numerics import FLOATS, INTEGERS

MIN_TEMPERATURE = 1e-8


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless a tensor of 16 to 64 floating bits."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be floating point (16 to 64 bits), got {tensor.dtype}")


def check_matrix(name: str, rows: Tensor, shape: str) -> None:
    """Raises TypeError or ValueError unless a floating matrix with at least one feature."""
    check_floating(name, rows)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"{name} must be a matrix {shape} with at least one feature, "
            f"got shape {tuple(rows.shape)}"
        )


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


def check_lists(name: str, lists: Tensor) -> None:
    """Raises TypeError or ValueError unless floating (B, n) with n >= 1."""
    check_floating(name, lists)
    if lists.ndim != 2 or lists.shape[1] == 0:
        raise ValueError(
            f"{name} must be lists (B, n) with at least one value each, "
            f"got shape {tuple(lists.shape)}"
        )


def check_vector(name: str, vector: Tensor, shape: str, length: int) -> None:
    """Raises ValueError unless of shape (length,)."""
    if vector.ndim != 1 or vector.shape[0] != length:
        raise ValueError(
            f"{name} must have shape {shape} = ({length},), got shape {tuple(vector.shape)}"
        )


def check_ids(name: str, ids: Tensor, shape: str, length: int) -> None:
    """Raises TypeError or ValueError unless an integer vector of that length."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(ids).__name__}")
    if ids.dtype not in INTEGERS:
        raise TypeError(f"{name} must hold integers (8 to 64 bits), got {ids.dtype}")
    check_vector(name, ids, shape, length)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError where two tensors lie on different devices."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {tensor.device}"
        )


def check_number(
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """A finite number with ``least <= value``, ``above < value`` and ``value < below``.

    Raises:
        TypeError: not a number.
        ValueError: not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if least <= value < math.inf and above < value < below:
        return
    limits = (("at least", least), ("above", above), ("below", below))
    expected = [f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit)]
    raise ValueError(f"{name} must be {' and '.join(['finite', *expected])}, got {value}")


def check_count(name: str, value: int, least: int) -> None:
    """Raises TypeError unless an integer, ValueError unless at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_choice(name: str, value: str | None, choices: Collection[str | None]) -> None:
    """Raises ValueError unless one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def values_are_read(tensor: Tensor) -> bool:
    """Whether values are checked: on a CPU always, on CUDA under ``SSLFAST_CHECK=1`` only.

    Asked inside an op, where tensors are real even while a graph is compiled.
    """
    return tensor.device.type == "cpu" or os.environ.get("SSLFAST_CHECK") == "1"


def check_finite(name: str, values: Tensor) -> None:
    """Raises ValueError at a NaN or infinity; called inside an op, see `values_are_read`."""
    if not values_are_read(values):
        return
    if values.numel() == 1:
        if not math.isfinite(values.item()):
            raise ValueError(f"{name} must be finite, got {values.item()}")
    elif not values.isfinite().all():
        where = tuple(values.isfinite().logical_not().nonzero()[0].tolist())
        index = where[0] if values.ndim == 1 else where
        raise ValueError(f"{name} must be finite, got {values[where].item()} at index {index}")


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
    on_host = scalar.device.type == "cpu" or os.environ.get("SSLFAST_CHECK") == "1"
    if torch.compiler.is_compiling() or scalar.is_meta or not on_host:
        return None
    return scalar.item()
