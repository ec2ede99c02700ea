"""Who runs a case: sslfast on a backend, eager, ``torch.compile``, the workload's peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast import _backends
from sslfast._core.tree import floating
from sslfast._registry import LOSSES, PRIMITIVES
from sslfast.bench import peers
from sslfast.bench.ledger import BOTH, FORWARD
from sslfast.bench.place import CPU, Place
from sslfast.bench.suite import SEED, Case, Inputs, Workload
from sslfast.testing import as_tuple, continuous

SSLFAST = "sslfast"
EAGER = "eager"
CHUNKED = "eager, chunked"
COMPILE = "torch.compile"
REFERENCE = "reference"
CHOSEN = ""  # no backend is forced: each primitive on the first that can run it


@dataclass(frozen=True)
class Contestant:
    """An objective ready to run; ``backend`` is forced around its forward and its backward.

    ``autocast`` is False for an objective with casts of its own, ``without`` names leaves that
    it has no gradient for.
    """

    name: str
    objective: peers.Objective
    backend: str | None = None
    autocast: bool = True
    without: tuple[str, ...] = ()

    def forcing(self) -> AbstractContextManager[Any]:
        return sslfast.backend(self.backend) if self.backend else nullcontext()

    def casting(self, place: Place) -> AbstractContextManager[Any]:
        return place.autocast() if self.autocast else nullcontext()

    def leaves(self, case: Case) -> list[str]:
        return [leaf for leaf in case.workload.leaves if leaf not in self.without]


def names(
    workload: Workload, backends: Sequence[str], with_peers: bool, device: str = CPU
) -> list[str]:
    """Contestants of a workload: sslfast once per backend, then whoever it is measured against."""
    found = [f"{SSLFAST} {backend}".strip() for backend in backends]
    fits = workload.eager is not None
    if fits:
        found.append(EAGER)
    elif workload.chunked is not None and device != CPU:
        found.append(CHUNKED)
    if with_peers:
        found += [COMPILE] if fits else []
        found += [
            name
            for name, peer in workload.peers.items()
            if device in peer.devices and (fits or peer.tiled)
        ]
    return found


def runnable_backends(device: str = CPU) -> list[str]:
    """Backends that this machine can run on a device, the one that would be chosen first."""
    available = _backends.available()
    return [name for name in _backends.ORDER[device] if available.get(name, "absent") is None]


def default_backend() -> str:
    """What ``SSLFAST_BACKEND`` forces, else what would be chosen on the CPU."""
    return _backends.forced() or runnable_backends()[0]


def backends_of(workload: Workload, device: str) -> list[str]:
    """What is measured where no backend is named: on the CPU the default one.

    On a GPU every backend that runs all primitives of the subject, but the reference, which is
    what eager runs; and before them the chooser's own mixture where its first backend runs only
    some of them.
    """
    if device == CPU or _backends.forced():
        return [default_backend()]
    order = [name for name in runnable_backends(device) if name != REFERENCE]
    subject = LOSSES.get(workload.subject)
    used = [workload.subject] if subject is None else subject.primitives
    having = {name: [name in PRIMITIVES[each].implementations for each in used] for name in order}
    whole = [name for name in order if all(having[name])]
    mixed = any(any(has) and not all(has) for has in having.values()) or not whole
    return [CHOSEN, *whole] if mixed else whole


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
    if name == SSLFAST or name.startswith(f"{SSLFAST} "):
        backend = name.removeprefix(SSLFAST).strip()
        if workload.eager is None and backend == REFERENCE:
            raise RuntimeError("the reference builds the matrix that does not fit here")
        return Contestant(name, workload.fused, backend)
    if name == CHUNKED and workload.chunked is not None:
        return Contestant(name, workload.chunked)
    peer = workload.peers.get(name)
    if workload.eager is None and not (peer is not None and peer.tiled):
        raise RuntimeError("this size is not run by anything that builds the matrix")
    if peer is not None:
        objective = peer.load()
        return Contestant(
            name,
            lambda **inputs: objective(*inputs.values()),
            autocast=peer.autocast,
            without=peer.without,
        )
    assert workload.eager is not None
    if name == EAGER:
        return Contestant(name, workload.eager)
    if name == COMPILE:
        return Contestant(name, peers.compiled(workload.eager))
    raise RuntimeError(f"{workload.name} has no contestant {name!r}")


def forward(contestant: Contestant, inputs: Inputs, place: Place) -> None:
    """Values alone, as in evaluation: nothing is kept for a backward pass."""
    with torch.no_grad(), contestant.forcing(), contestant.casting(place):
        contestant.objective(**inputs)


def forward_backward(
    contestant: Contestant, inputs: Inputs, leaves: Sequence[str], place: Place | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs, and the gradient of every leaf; where nothing learns, no gradient."""
    with contestant.forcing():
        with contestant.casting(place or Place()):
            outputs = as_tuple(contestant.objective(**inputs))
        wanted = [each for leaf in leaves for each in floating(inputs[leaf])]
        learning = continuous(outputs)
        weights = [cotangent(o) for o in learning]
        gradients = torch.autograd.grad(learning, wanted, weights) if wanted else ()
    return tuple(o.detach() for o in outputs), gradients


def cotangent(output: Tensor) -> Tensor:
    """One for a scalar; for anything larger fixed normal numbers, drawn in float64 once."""
    return _drawn(output.shape, output.dtype, output.device)


@lru_cache(maxsize=8)
def _drawn(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not shape:
        return torch.ones((), dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def passes(
    case: Case, contestant: Contestant, inputs: Inputs, place: Place
) -> dict[str, Callable[[], object]]:
    """What is timed."""
    leaves = contestant.leaves(case)
    return {
        FORWARD: lambda: forward(contestant, inputs, place),
        BOTH: lambda: forward_backward(contestant, inputs, leaves, place),
    }
