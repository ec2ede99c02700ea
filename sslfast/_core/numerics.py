"""How numbers are rounded and added: dtypes of operands and sums, reductions in a fixed order."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Bfloat16 terms of a float32 operand, by what torch calls the precision of its products:
# `torch.set_float32_matmul_precision`, and mkldnn's fp32_precision.
TERMS = {"highest": 3, "high": 2, "medium": 1}
_SETTINGS = {"tf32": "high", "bf16": "medium"}
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # half precision
# torch splits a sum to one number among threads from 32768 elements on.
_CHUNK = 4096


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: what sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_like_sums(values: Tensor, *shape: int) -> Tensor:
    """Memory of the dtype that sums over `values` are kept in."""
    return torch.empty(shape, dtype=accumulator(values.dtype), device=values.device)


@overload
def tile_operands(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def tile_operands(queries: Tensor, keys: None) -> tuple[Tensor, None]: ...


def tile_operands(queries: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The matrices as a product would see them: in the autocast dtype, or in the wider of both."""
    dtype = queries.dtype if keys is None else torch.promote_types(queries.dtype, keys.dtype)
    device_type = queries.device.type
    autocasts = device_type != "meta" and torch.is_autocast_enabled(device_type)
    if dtype != torch.float64 and autocasts:
        dtype = torch.get_autocast_dtype(device_type)
    return queries.to(dtype), None if keys is None else keys.to(dtype)


def round_like_tiles(rows: Tensor) -> Tensor:
    """In the autocast dtype, so that positives have the operands of the other similarities."""
    rounded, _ = tile_operands(rows, None)
    return rounded


def float_terms() -> int:
    """Bfloat16 terms of a float32 operand: 3 holds it exactly, 2 sixteen bits of it, 1 eight.

    It follows what `torch` does with its own products on a CPU: ``torch.backends.mkldnn.matmul.
    fp32_precision``, which `torch.set_float32_matmul_precision` sets too ("high" to 2 terms,
    "medium" to 1). Without matrix instructions float32 products are of float32, whatever it says.
    """
    setting: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return TERMS[_SETTINGS.get(setting, "highest")]


def widened(tensor: Tensor) -> Tensor:
    """Contiguous, half precision in float32."""
    return tensor.to(accumulator(tensor.dtype)).contiguous()


def mean(values: Tensor) -> Tensor:
    """Mean of all elements, added in one fixed order; gradient as `torch.mean`."""
    flat = values.reshape(-1)
    chunks = F.pad(flat, (0, -flat.numel() % _CHUNK)).view(-1, _CHUNK)
    return chunks.sum(1).sum() / flat.numel()


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """<left_i, right_i> for each row i, accumulated in float32 or wider."""
    dtype = accumulator(left.dtype)
    return (left.to(dtype) * right.to(dtype)).sum(-1)


def inverse(temperature: float | Tensor, rows: Tensor) -> float | Tensor:
    """1 / temperature: a number, or a 0-dim tensor in the dtype that `rows` accumulate in."""
    if not isinstance(temperature, Tensor):
        return 1 / temperature
    return temperature.reshape(()).to(accumulator(rows.dtype)).reciprocal()


def factor(scale: float | Tensor, rows: Tensor) -> float | Tensor:
    """`scale` itself: a number, or a 0-dim tensor in the dtype that `rows` accumulate in."""
    return scale.reshape(()).to(accumulator(rows.dtype)) if isinstance(scale, Tensor) else scale
