"""Launcher of the CUDA C++ `l2_normalize`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast import _library, _nvrtc
from sslfast._core.numerics import FLOATS, accumulator
from sslfast.cuda.rows.blocks import blocks, rows_of

DTYPES = FLOATS
SOURCE = "l2_normalize"


def forward(embeddings: Tensor, eps: float, *, build: str) -> tuple[Tensor, Tensor]:
    x = rows_of(embeddings)  # (N, D)
    if _library.runs_prebuilt(build):
        y, norm = torch.ops.sslfast_native.l2_normalize_cuda(x, eps)
    else:
        y = x.new_empty(x.shape)  # (N, D)
        norm = x.new_empty(x.shape[:1], dtype=accumulator(x.dtype))  # (N)
        _launch("fwd", x, x, y, norm, *x.shape, x.stride(0), eps)
    return y.view(embeddings.shape), norm.view(embeddings.shape[:-1])


def backward(
    dnormalized: Tensor, embeddings: Tensor, norm: Tensor, eps: float, *, build: str
) -> Tensor:
    dy, x = rows_of(dnormalized), rows_of(embeddings)  # (N, D)
    norm = norm.reshape(-1).contiguous()  # (N)
    if _library.runs_prebuilt(build):
        dx = torch.ops.sslfast_native.l2_normalize_backward_cuda(dy, x, norm, eps)
    else:
        dx = x.new_empty(x.shape)  # (N, D)
        _launch("bwd", x, dy, x, norm, dx, *x.shape, dy.stride(0), x.stride(0), eps)
    dembeddings: Tensor = dx.view(embeddings.shape)
    return dembeddings


def _launch(direction: str, x: Tensor, *arguments: Tensor | int | float) -> None:
    if x.shape[0]:
        dtype = str(x.dtype).removeprefix("torch.")
        kernel = f"l2_normalize_{direction}_kernel_{dtype}"
        _nvrtc.launch(SOURCE, kernel, *blocks(x), arguments)
