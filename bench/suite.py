"""Cases: a registered loss or primitive at given shapes, with its contestants.

Whatever is registered has a case without anybody listing it: a loss runs on its own typical
samples against its own ``eager``, a primitive on its own against its ``reference``. A family
module (``contrastive``, ``redundancy``) replaces these by the shapes that its users meet and adds
its peers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sslfast._registry import LOSSES, PRIMITIVES, Loss, Primitive, Sample
from sslfast.bench.peers import Objective, Peer
from sslfast.bench.place import CPU, Place
from sslfast.testing import cast

Shape = Mapping[str, int]
Inputs = dict[str, Any]

PRIMITIVES_FAMILY = "primitives"
SEED = 2026


@dataclass(frozen=True)
class Workload:
    """One objective and how its inputs are drawn; shapes are filled in by a ``Case``."""

    name: str
    family: str
    subject: str  # its name in LOSSES or PRIMITIVES
    shapes: tuple[Shape, ...]  # on the CPU
    draw: Callable[[Shape, torch.Generator], Inputs]  # float32 CPU arguments of the objectives
    fused: Objective
    eager: Objective | None  # None where eager does not fit into memory
    leaves: tuple[str, ...]  # names of the arguments that receive gradients
    peers: Mapping[str, Peer] = field(default_factory=dict)
    gpu_shapes: tuple[Shape, ...] | None = None  # on a GPU; None: those of the CPU
    probe: Workload | None = None  # checks a case on the CPU whose eager form cannot run
    chunked: Objective | None = None  # eager in pieces: checks and runs on a GPU where it cannot
    eager_bytes: Callable[[Shape], int] | None = None  # stated by formula where not measured
    oracle: Objective | None = None  # for float64, where eager would take gigabytes and minutes
    too_slow: Callable[[Shape], Collection[str]] = lambda shape: ()  # left out on a CPU
    counted: bool = True  # its primitives do the bulk of the work, so that a limit follows
    seconds: float | None = None  # of the clock for one pass on a CPU; None: its own

    def at(self, shape: Shape) -> Case:
        return Case(self, dict(shape))

    def shapes_on(self, device: str) -> tuple[Shape, ...]:
        return self.shapes if device == CPU or self.gpu_shapes is None else self.gpu_shapes


@dataclass(frozen=True)
class Case:
    """A workload at one shape."""

    workload: Workload
    shape: Shape

    @property
    def name(self) -> str:
        sizes = " ".join(f"{letter}={size}" for letter, size in self.shape.items())
        return f"{self.workload.name} {sizes}".strip()

    def left_out(self, device: str) -> Collection[str]:
        """Contestants that would take too much of a run's time at this shape."""
        return self.workload.too_slow(self.shape) if device == CPU else ()

    def inputs(self, place: Place | None = None, seed: int = SEED) -> Inputs:
        """Fresh arguments on a device (the CPU); the same numbers for every process of the case."""
        drawn = self.workload.draw(self.shape, torch.Generator().manual_seed(seed))
        return {
            name: value.requires_grad_() if name in self.workload.leaves else value
            for name, value in (place or Place()).put(drawn).items()
        }


def workloads() -> dict[str, Workload]:
    """Every workload by name: the families' own first, then what only the registry knows."""
    from sslfast.bench import contrastive, redundancy

    found = {w.name: w for family in (contrastive, redundancy) for w in family.workloads()}
    covered = {workload.subject for workload in found.values()}
    for loss in LOSSES.values():
        if loss.name not in covered:
            found.update((w.name, w) for w in map(partial(_of_loss, loss), typical(loss.samples)))
    for primitive in PRIMITIVES.values():
        samples = typical(primitive.samples)
        found.update((w.name, w) for w in map(partial(_of_primitive, primitive), samples))
    return found


def families() -> list[str]:
    return sorted({workload.family for workload in workloads().values()})


def select(
    chosen: Sequence[str], sizes: Sequence[Shape], largest: int | None, device: str = CPU
) -> list[Case]:
    """The cases of the chosen families (all if none), at their own or the given shapes.

    ``largest`` keeps the cases whose every N is at most that.

    Raises:
        ValueError: a family is not known.
    """
    known = families()
    for family in chosen:
        if family not in known:
            raise ValueError(f"family {family!r} is not one of {', '.join(known)}")
    cases = []
    for workload in workloads().values():
        if chosen and workload.family not in chosen:
            continue
        for shape in _resized(workload, sizes, device):
            if largest is None or shape.get("N", 0) <= largest:
                cases.append(workload.at(shape))
    return cases


def parse_size(text: str) -> Shape:
    """``"4096"`` -> N, ``"4096x128"`` -> N and D.

    Raises:
        ValueError: the text is neither.
    """
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise ValueError(f"size {text!r} is not N or NxD, for example 4096 or 4096x128")
    n, d = found.groups()
    return {"N": int(n)} if d is None else {"N": int(n), "D": int(d)}


def _resized(workload: Workload, sizes: Sequence[Shape], device: str) -> Sequence[Shape]:
    """The given sizes for a workload that has sizes and an eager form; D is its own if absent."""
    own = workload.shapes_on(device)
    if not sizes:
        return own
    if not own or not own[0] or workload.eager is None:
        return ()
    return [{**own[0], **size} for size in sizes]


def typical(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.size == "typical"]


def float_arguments(arguments: Inputs) -> tuple[str, ...]:
    """Names of the floating-point tensors."""
    return tuple(
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    )


def _of_loss(loss: Loss, sample: Sample) -> Workload:
    arguments = sample.make(torch.Generator().manual_seed(SEED))
    return Workload(
        name=f"{loss.name}[{sample.name}]",
        family=loss.family,
        subject=loss.name,
        shapes=({},),
        draw=lambda _, generator: cast(sample.make(generator), torch.float32),
        fused=loss.functional,
        eager=loss.eager,
        leaves=float_arguments(arguments),
    )


def _of_primitive(primitive: Primitive, sample: Sample) -> Workload:
    arguments = sample.make(torch.Generator().manual_seed(SEED))
    return Workload(
        name=f"{primitive.name}[{sample.name}]",
        family=PRIMITIVES_FAMILY,
        subject=primitive.name,
        shapes=({},),
        draw=lambda _, generator: cast(sample.make(generator), torch.float32),
        fused=primitive.function,
        eager=primitive.reference,
        leaves=tuple(n for n in float_arguments(arguments) if n in primitive.differentiable),
    )
