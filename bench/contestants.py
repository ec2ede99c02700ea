"""Who runs a case: sslfast on a backend, eager, ``torch.compile``, the workload's peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast import _backends
from sslfast.bench import peers
from sslfast.bench.ledger import BOTH, FORWARD
from sslfast.bench.suite import SEED, Case, Inputs, Workload

SSLFAST = "sslfast"
EAGER = "eager"
COMPILE = "torch.compile"
REFERENCE = "reference"


@dataclass(frozen=True)
class Contestant:
    """An objective ready to run; ``backend`` is forced around its forward and its backward."""

    name: str
    objective: peers.Objective
    backend: str | None = None

    def forcing(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.backend is None else sslfast.backend(self.backend)


def names(workload: Workload, backends: Sequence[str], with_peers: bool) -> list[str]:
    """Contestants of a workload: sslfast once per backend, then whoever it is measured against."""
    found = [f"{SSLFAST} {backend}" for backend in backends]
    if workload.eager is not None:
        found.append(EAGER)
        if with_peers:
            found += [COMPILE, *workload.peers]
    return found


def runnable_backends() -> list[str]:
    """CPU backends that this machine can run, the one that would be chosen first."""
    available = _backends.available()
    return [name for name in _backends.ORDER["cpu"] if available.get(name, "absent") is None]


def default_backend() -> str:
    """What ``SSLFAST_BACKEND`` forces, else what would be chosen."""
    return _backends.forced() or runnable_backends()[0]


def check_backend(name: str) -> None:
    """Raise ValueError where there is no such backend, whether or not it can run here."""
    with sslfast.backend(name):
        pass


def enter(workload: Workload, name: str) -> Contestant:
    """The contestant of that name.

    Raises:
        ImportError: the library it comes from is not installed.
        RuntimeError: it cannot run this workload; the message says why.
    """
    if name.startswith(SSLFAST):
        backend = name.removeprefix(SSLFAST).strip()
        if workload.eager is None and backend == REFERENCE:
            raise RuntimeError("the reference builds the matrix that does not fit here")
        return Contestant(name, workload.fused, backend)
    if workload.eager is None:
        raise RuntimeError("this size is not run by anything that builds the matrix")
    if name == EAGER:
        return Contestant(name, workload.eager)
    if name == COMPILE:
        return Contestant(name, peers.compiled(workload.eager))
    peer = workload.peers[name]()
    return Contestant(name, lambda **inputs: peer(*inputs.values()))


def forward(contestant: Contestant, inputs: Inputs) -> None:
    """Values alone, as in evaluation: nothing is kept for a backward pass."""
    with torch.no_grad(), contestant.forcing():
        contestant.objective(**inputs)


def forward_backward(
    contestant: Contestant, inputs: Inputs, leaves: Sequence[str]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs, and the gradient of every leaf."""
    with contestant.forcing():
        outputs = as_tuple(contestant.objective(**inputs))
        gradients = torch.autograd.grad(
            outputs, [inputs[leaf] for leaf in leaves], [cotangent(o) for o in outputs]
        )
    return tuple(o.detach() for o in outputs), gradients


def cotangent(output: Tensor) -> Tensor:
    """One for a scalar; for anything larger fixed normal numbers, drawn in float64."""
    if output.dim() == 0:
        return torch.ones_like(output)
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return drawn.to(output.dtype)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def passes(case: Case, contestant: Contestant, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """What is timed."""
    leaves = case.workload.leaves
    return {
        FORWARD: lambda: forward(contestant, inputs),
        BOTH: lambda: forward_backward(contestant, inputs, leaves),
    }
