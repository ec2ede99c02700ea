"""Cases: a registered loss or primitive at given shapes, with its contestants.

Whatever is registered has a case without anybody listing it: a loss runs on its own typical
samples against its own ``eager``, a primitive on its own against its ``reference``. The module
of a family, named as its package under ``sslfast.losses``, replaces these by the shapes that its
users meet and adds its peers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import torch

from sslfast import losses
from sslfast._core.tree import learning
from sslfast._registry import LOSSES, PRIMITIVES, Loss, Primitive, Sample
from sslfast.bench.peers import Objective, Peer
from sslfast.bench.place import CPU, Place
from sslfast.testing import cast

Shape = Mapping[str, int]  # by letter: the number of rows first, their width last
Size = tuple[int, int | None]  # rows, and width where that is given too
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
    options: Mapping[str, Any] = field(default_factory=dict)  # in both forms beside what is drawn

    @classmethod
    def of_loss(
        cls, subject: str, *, options: Mapping[str, Any] | None = None, **given: Any
    ) -> Workload:
        """A registered loss with these options against its eager form.

        Args:
            subject: its name, which the workload has too unless `given` has another.
            options: arguments that both forms get beside what is drawn.
            given: any field; ``eager=None`` where it does not fit.
        """
        loss = LOSSES[subject]
        both = _with_options(loss.functional, loss.eager, options or {})
        return cls(**{"name": subject, "family": loss.family, "subject": subject, **both, **given})

    @classmethod
    def of_primitive(
        cls, subject: str, *, options: Mapping[str, Any] | None = None, **given: Any
    ) -> Workload:
        """A registered primitive against its reference, as `of_loss`; `given` names the family."""
        primitive = PRIMITIVES[subject]
        both = _with_options(primitive.function, primitive.reference, options or {})
        return cls(**{"name": subject, "subject": subject, **both, **given})

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

    @property
    def rows(self) -> int | None:
        """Images, pairs, lists or queries; ``None`` for a sample of the registry."""
        return next(iter(self.shape.values()), None)

    @property
    def width(self) -> int | None:
        """Features of a row, or its length where it is a list."""
        return list(self.shape.values())[-1] if len(self.shape) > 1 else None

    def left_out(self, device: str) -> Collection[str]:
        """Contestants that would take too much of a run's time at this shape."""
        return self.workload.too_slow(self.shape) if device == CPU else ()

    def inputs(self, place: Place | None = None, seed: int = SEED) -> Inputs:
        """Fresh arguments on a device (the CPU); the same numbers for every process of the case."""
        drawn = self.workload.draw(self.shape, torch.Generator().manual_seed(seed))
        return {
            name: learning(value) if name in self.workload.leaves else value
            for name, value in (place or Place()).put(drawn).items()
        }


def workloads() -> dict[str, Workload]:
    """Every workload by name: the families' own first, then what only the registry knows."""
    found: list[Workload] = [w for module in family_modules() for w in module.workloads()]
    covered = {workload.subject for workload in found}
    found += [
        Workload.of_loss(loss.name, **_sampled(loss, sample))
        for loss in LOSSES.values()
        if loss.name not in covered
        for sample in typical(loss.samples)
    ]
    found += [
        Workload.of_primitive(
            primitive.name, family=PRIMITIVES_FAMILY, **_sampled(primitive, sample)
        )
        for primitive in PRIMITIVES.values()
        for sample in typical(primitive.samples)
    ]
    return {workload.name: workload for workload in found}


def family_modules() -> list[ModuleType]:
    """The families' own modules in this package; a test asks each family for one."""
    packages = (found.name for found in iter_modules(losses.__path__) if found.ispkg)
    modules = (f"{__package__}.{name}" for name in packages)
    return [import_module(name) for name in modules if find_spec(name) is not None]


def families() -> list[str]:
    return sorted({workload.family for workload in workloads().values()})


def select(
    chosen: Sequence[str],
    sizes: Sequence[Size],
    largest: int | None,
    device: str = CPU,
    first: bool = False,
) -> list[Case]:
    """The cases of the chosen families (all if none), at their own or the given sizes.

    ``largest`` keeps the cases of at most so many rows, ``first`` one of each workload, where
    eager fits.

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
        shapes = _resized(workload, sizes, device)
        if first:
            shapes = shapes[: workload.eager is not None]
        cases += [workload.at(shape) for shape in shapes]
    return [case for case in cases if largest is None or (case.rows or 0) <= largest]


def parse_size(text: str) -> Size:
    """``"4096"`` -> rows, ``"4096x128"`` -> rows and width.

    Raises:
        ValueError: the text is neither.
    """
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise ValueError(f"size {text!r} is not N or NxD, for example 4096 or 4096x128")
    rows, width = found.groups()
    return int(rows), None if width is None else int(width)


def _resized(workload: Workload, sizes: Sequence[Size], device: str) -> Sequence[Shape]:
    """The given sizes for a workload that has sizes and an eager form; its width if absent."""
    shapes = workload.shapes_on(device)
    if not sizes:
        return shapes
    if not shapes or not shapes[0] or workload.eager is None:
        return ()
    own = shapes[0]
    first, last = next(iter(own)), list(own)[-1]
    return [{**own, last: width or own[last], first: rows} for rows, width in sizes]


def typical(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.size == "typical"]


def _with_options(fused: Objective, eager: Objective, options: Mapping[str, Any]) -> dict[str, Any]:
    if options:
        fused, eager = partial(fused, **options), partial(eager, **options)
    return {"fused": fused, "eager": eager, "options": options}


def _sampled(registered: Loss | Primitive, sample: Sample) -> dict[str, Any]:
    """What a sample of the registry says of a workload."""
    arguments = sample.make(torch.Generator().manual_seed(SEED))
    return {
        "name": f"{registered.name}[{sample.name}]",
        "shapes": ({},),
        "draw": lambda _, generator: cast(sample.make(generator), torch.float32),
        "leaves": tuple(registered.learning(arguments)),
    }
