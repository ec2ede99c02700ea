"""Work whose peak memory is measured in a process of its own (``sslfast.testing``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sslfast
from sslfast._registry import PRIMITIVES, Primitive
from sslfast.testing import continuous

Arguments = dict[str, Any]


FORMS: dict[str, tuple[Primitive, Callable[[int, int], Arguments]]] = {
    f"{primitive.name} {name}": (primitive, make)
    for primitive in PRIMITIVES.values()
    for name, make in primitive.memory.items()
}


def arguments_of(form: str, num_rows: int, dim: int) -> Arguments:
    """What can learn, learns."""
    primitive, make = FORMS[form]
    made = make(num_rows, dim)
    for name in primitive.learning(made):
        made[name].requires_grad_()
    return made


def prepare(form: str, backend: str, num_rows: int, dim: int) -> Callable[[], object]:
    """Forward and backward of one form, gradients kept to the end."""
    primitive, _ = FORMS[form]
    arguments = arguments_of(form, num_rows, dim)
    one = torch.ones(())
    leaves = [arguments[name] for name in primitive.learning(arguments)]

    def run() -> object:
        with sslfast.backend(backend):
            outputs = primitive.function(**arguments)
            learning = continuous(outputs)
            cotangents = [one.expand(output.shape) for output in learning]
            return outputs, torch.autograd.grad(learning, leaves, cotangents)

    return run


def hidden_matrix(num_rows: int) -> Callable[[], object]:
    """Holds num_rows x num_rows float32 for a moment."""
    return lambda: torch.ones(num_rows, num_rows).sum()
