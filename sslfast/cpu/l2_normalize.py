"""Launcher of the native `l2_normalize`."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.ops._checks import FLOATS
from sslfast.ops._operands import widened

DTYPES = FLOATS


def forward(embeddings: Tensor, eps: float, *, isa: int) -> tuple[Tensor, Tensor]:
    rows = _rows(embeddings)
    normalized, norm = torch.ops.sslfast_native.l2_normalize_cpu(rows, eps, isa)
    return normalized.view(embeddings.shape), norm.view(embeddings.shape[:-1])


def backward(
    dnormalized: Tensor, embeddings: Tensor, norm: Tensor, eps: float, *, isa: int
) -> Tensor:
    dembeddings: Tensor = torch.ops.sslfast_native.l2_normalize_backward_cpu(
        _rows(dnormalized), _rows(embeddings), norm.reshape(-1).contiguous(), eps, isa
    )
    return dembeddings.view(embeddings.shape)


def _rows(tensor: Tensor) -> Tensor:
    """(..., D) -> contiguous (N, D), half precision widened."""
    return widened(tensor.reshape(-1, tensor.shape[-1]))
