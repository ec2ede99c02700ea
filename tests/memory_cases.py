"""Work whose peak memory is measured in a process of its own (``sslfast.testing``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sslfast
from sslfast._registry import PRIMITIVES

Arguments = dict[str, Any]


def _rows(num_rows: int, dim: int) -> torch.Tensor:
    rows = torch.rand(num_rows, dim, generator=torch.Generator().manual_seed(0))
    return rows.sub_(0.5).mul_(dim**-0.5).requires_grad_()


def symmetric(num_rows: int, dim: int) -> Arguments:
    return {"queries": _rows(num_rows, dim), "query_ids": torch.arange(num_rows), "scale": 5.0}


def rows(num_rows: int, dim: int) -> Arguments:
    bias = torch.zeros(num_rows, requires_grad=True)
    return {"queries": _rows(num_rows, dim), "keys": _rows(num_rows, dim), "bias": bias}


def columns(num_rows: int, dim: int) -> Arguments:
    return {"queries": _rows(num_rows, dim), "keys": _rows(num_rows, dim), "columns": True}


def normalize(num_rows: int, dim: int) -> Arguments:
    return {"embeddings": _rows(num_rows, dim)}


def gram(num_features: int, num_rows: int) -> Arguments:
    """Few rows: a hidden D x D would fail."""
    a, b = _rows(num_rows, num_features), _rows(num_rows, num_features)
    return {"a": a, "b": b, "split_diagonal": True}


def direct(num_rows: int, dim: int) -> Arguments:
    """Many rows: a hidden N x N would fail."""
    return {"a": _rows(num_rows, dim), "b": _rows(num_rows, dim), "split_diagonal": True}


def covariance(num_features: int, num_rows: int) -> Arguments:
    return {"a": _rows(num_rows, num_features), "split_diagonal": True}


def forced_gram(num_rows: int, dim: int) -> Arguments:
    """The dearer route, whose products are beyond the operands."""
    return {"a": _rows(num_rows, dim), "b": _rows(num_rows, dim), "route": "gram"}


def forced_direct(num_features: int, num_rows: int) -> Arguments:
    a, b = _rows(num_rows, num_features), _rows(num_rows, num_features)
    return {"a": a, "b": b, "split_diagonal": True, "route": "direct"}


def standardize(num_rows: int, dim: int) -> Arguments:
    return {"embeddings": _rows(num_rows, dim)}


FORMS: dict[str, tuple[str, Callable[[int, int], Arguments]]] = {
    "symmetric": ("similarity_logsumexp", symmetric),
    "rows": ("similarity_logsumexp", rows),
    "columns": ("similarity_logsumexp", columns),
    "normalize": ("l2_normalize", normalize),
    "gram": ("cross_frobenius", gram),
    "direct": ("cross_frobenius", direct),
    "covariance": ("cross_frobenius", covariance),
    "forced gram": ("cross_frobenius", forced_gram),
    "forced direct": ("cross_frobenius", forced_direct),
    "standardize": ("standardize", standardize),
}


def prepare(form: str, backend: str, num_rows: int, dim: int) -> Callable[[], object]:
    """Forward and backward of one form, gradients kept to the end."""
    name, make = FORMS[form]
    arguments = make(num_rows, dim)
    one = torch.ones(())
    leaves = [v for v in arguments.values() if isinstance(v, torch.Tensor) and v.requires_grad]

    def run() -> object:
        with sslfast.backend(backend):
            outputs = PRIMITIVES[name].function(**arguments)
            outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            cotangents = [one.expand(output.shape) for output in outputs]
            return outputs, torch.autograd.grad(outputs, leaves, cotangents)

    return run


def hidden_matrix(num_rows: int) -> Callable[[], object]:
    """Holds num_rows x num_rows float32 for a moment."""
    return lambda: torch.ones(num_rows, num_rows).sum()
