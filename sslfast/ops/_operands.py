"""Operands as kernels see them: rounded as autocast asks, or widened to what sums are kept in."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from sslfast.ops._checks import accumulator


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


def widened(tensor: Tensor) -> Tensor:
    """Contiguous, half precision in float32."""
    return tensor.to(accumulator(tensor.dtype)).contiguous()
