"""Launcher of the CUDA C++ `l2_normalize`."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.numerics import FLOATS, accumulator
from sslfast.cuda._start import Argument, start
from sslfast.cuda.rows.blocks import blocks, rows_of

DTYPES = FLOATS
SOURCE = "l2_normalize"


def forward(rows: Tensor, eps: float, *, build: str) -> tuple[Tensor, Tensor]:
    x = rows_of(rows)  # (N, D)
    y = x.new_empty(x.shape)  # (N, D)
    norm = x.new_empty(x.shape[:1], dtype=accumulator(x.dtype))  # (N,)
    _start("fwd", x, (x, y, norm, *x.shape, x.stride(0), eps), build)
    return y, norm


def backward(dnormalized: Tensor, rows: Tensor, norm: Tensor, eps: float, *, build: str) -> Tensor:
    dy, x = rows_of(dnormalized), rows_of(rows)  # (N, D)
    dx = x.new_empty(x.shape)  # (N, D)
    given = (dy, x, norm.contiguous(), dx, *x.shape, dy.stride(0), x.stride(0), eps)
    _start("bwd", x, given, build)
    return dx


def _start(direction: str, x: Tensor, arguments: tuple[Argument, ...], build: str) -> None:
    if len(x):
        dtype = str(x.dtype).removeprefix("torch.")
        kernel = f"{SOURCE}_{direction}_kernel_{dtype}"
        start(SOURCE, kernel, *blocks(x), arguments, build)
