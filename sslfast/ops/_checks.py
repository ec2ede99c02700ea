"""Argument checks that the primitives share. Each error names the argument and what it got."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: what sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def check_finite(name: str, values: Tensor) -> None:
    """Raises ValueError at a NaN or infinity; reads CUDA tensors under ``SSLFAST_CHECK=1`` only.

    Called inside an op, where tensors are real even while a graph is compiled.
    """
    if values.device.type != "cpu" and os.environ.get("SSLFAST_CHECK") != "1":
        return
    if values.numel() == 1:
        if not math.isfinite(values.item()):
            raise ValueError(f"{name} must be finite, got {values.item()}")
    elif not values.isfinite().all():
        where = int(values.isfinite().logical_not().nonzero()[0, 0])
        raise ValueError(f"{name} must be finite, got {values[where].item()} at index {where}")
