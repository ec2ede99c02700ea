"""What there is: every primitive and every loss, each registered by the file that defines it.

Tests, benchmark, command line and the README table enumerate `PRIMITIVES` and `LOSSES`; importing
`sslfast` fills both. Nobody keeps a second list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

Size = Literal["tiny", "ragged", "typical", "extreme"]


@dataclass(frozen=True)
class Sample:
    """One named case.

    Args:
        name: unique within its primitive or loss.
        size: ``"tiny"`` (edge shapes), ``"ragged"`` (multiples of nothing), ``"typical"`` (as
            users have it) or ``"extreme"`` (values or shapes at the limit of what is promised).
        make: keyword arguments of the public function, drawn from a generator as float64 CPU
            tensors; tests cast and round them.
        smooth: ``False`` at a kink, where a gradient has no finite difference beside it.
    """

    name: str
    size: Size
    make: Callable[[torch.Generator], dict[str, Any]]
    smooth: bool = True


@dataclass(frozen=True)
class Implementation:
    """How one backend runs a primitive.

    Args:
        forward, backward: take the arguments of the forward and backward op (without
            ``backend``), and the options of the backend's variant as keywords.
        dtypes: what ``forward`` accepts as the dtype of its first tensor.
        reject: reason why these tensors cannot run here, ``None`` if they can; without it all can.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    dtypes: tuple[torch.dtype, ...]
    reject: Callable[..., str | None] | None = None


def lazily(
    module: str,
    dtypes: tuple[torch.dtype, ...],
    reject: Callable[..., str | None] | None = None,
) -> Implementation:
    """The ``forward`` and ``backward`` of a module that its first call imports.

    For launchers that need a package which may be absent: a backend whose package is missing is
    never called.
    """

    def forward(*arguments: Any, **options: Any) -> Any:
        return import_module(module).forward(*arguments, **options)

    def backward(*arguments: Any, **options: Any) -> Any:
        return import_module(module).backward(*arguments, **options)

    return Implementation(forward, backward, dtypes, reject)


@dataclass(frozen=True)
class Property:
    """An identity that holds for every backend.

    Args:
        name: snake_case, unique within its primitive.
        statement: the identity in words.
        sides: from the public function and a generator, the two tensors that must agree in
            float64 to rounding.
    """

    name: str
    statement: str
    sides: Callable[[Callable[..., Any], torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tolerance:
    """Error allowed to one backend and dtype, where the general rule does not fit.

    Args:
        factor: multiple of the eager error that is accepted.
        floor: rounding floor in units of eps and of the largest oracle value.
        reason: why the general rule (``factor=2``, ``floor=8``) does not fit.
    """

    factor: float = 2.0
    floor: float = 8.0
    reason: str = "the general rule"


@dataclass(frozen=True)
class Primitive:
    """The contract of ``sslfast/ops/<name>.py``.

    Args:
        name: of the module, the public function and the op in ``torch.ops.sslfast``.
        equation: one line of paper notation.
        never_builds: what no backend but the reference materialises.
        serves: names of the objectives that are built on it.
        reference: plain torch; oracle in float64, baseline in the tested dtype, fallback.
        function: the public function, same arguments as `reference`.
        forward_op, backward_op: the registered `torch.library.custom_op` pair.
        implementations: by backend name.
        samples: cases that cover the argument space.
        differentiable: names of the arguments that receive gradients.
        flops: floating-point operations of the least work known, from the arguments of
            `function` (meta tensors do) and ``backward: bool = True``.
        bytes: least memory traffic: every input read and every output written once; arguments
            as `flops`.
        peak_bytes: most memory above the inputs that a native backend may hold at any time,
            outputs and gradients included; arguments as `flops`.
        properties: identities that every backend keeps.
        products: whether `flops` are of matrix products, which a processor's matrix instructions
            may take.
        memory: the forms whose peak is measured against `peak_bytes`, by name: the arguments for N
            rows of D features, float32 on the CPU. Twice the rows take at most twice the memory.
        tolerances: overrides of the error rule by (backend, dtype).
    """

    name: str
    equation: str
    never_builds: str
    serves: tuple[str, ...]
    reference: Callable[..., Any]
    function: Callable[..., Any]
    forward_op: Any
    backward_op: Any
    implementations: Mapping[str, Implementation]
    samples: tuple[Sample, ...]
    differentiable: tuple[str, ...]
    flops: Callable[..., int]
    bytes: Callable[..., int]
    peak_bytes: Callable[..., int]
    properties: tuple[Property, ...] = ()
    products: bool = False
    memory: Mapping[str, Callable[[int, int], dict[str, Any]]] = field(default_factory=dict)
    tolerances: Mapping[tuple[str, torch.dtype], Tolerance] = field(default_factory=dict)

    def learning(self, arguments: Mapping[str, Any]) -> list[str]:
        """Names of the arguments that receive gradients."""
        return [n for n in self.differentiable if isinstance(arguments.get(n), Tensor)]


@dataclass(frozen=True)
class Loss:
    """An objective: a module, its functional twin and its eager form.

    Args:
        name: of the module, e.g. ``"NTXentLoss"``.
        family: package under ``sslfast/losses``, e.g. ``"contrastive"``.
        module: the class.
        functional: the same loss as a function of tensors.
        eager: plain torch from the formula, arguments as `functional`: oracle and baseline.
        primitives: names in `PRIMITIVES`.
        paper: reference with section.
        samples: keyword arguments of `functional`.
        constants: floating arguments that nobody learns through: a queue of past rows, a teacher.
        amplification: from the arguments, by how much the rounding of a row is larger in the loss:
            the size of its logits, where rows of norm 1 are divided by a temperature.
    """

    name: str
    family: str
    module: type[nn.Module]
    functional: Callable[..., Any]
    eager: Callable[..., Any]
    primitives: tuple[str, ...]
    paper: str
    samples: tuple[Sample, ...]
    constants: tuple[str, ...] = ()
    amplification: Callable[[Mapping[str, Any]], float] = lambda arguments: 1.0

    def learning(self, arguments: Mapping[str, Any]) -> list[str]:
        """Names of the arguments that receive gradients: floating tensors but for `constants`."""
        return [
            name
            for name, value in arguments.items()
            if isinstance(value, Tensor)
            and value.is_floating_point()
            and name not in self.constants
        ]

    def tolerance(self, arguments: Mapping[str, Any]) -> Tolerance:
        """A logit carries as many eps as it is large into the loss and its gradient."""
        floor = max(Tolerance.floor, self.amplification(arguments))
        return Tolerance(floor=floor, reason="logits are rounded to eps times their size")


PRIMITIVES: dict[str, Primitive] = {}
LOSSES: dict[str, Loss] = {}


def register_primitive(spec: Primitive) -> Primitive:
    """Add a primitive and return it.

    Raises:
        ValueError: the name is taken.
    """
    if spec.name in PRIMITIVES:
        raise ValueError(f"primitive {spec.name!r} is registered twice")
    PRIMITIVES[spec.name] = spec
    return spec


def register_loss(spec: Loss) -> Loss:
    """Add a loss and return it.

    Raises:
        ValueError: the name is taken, or a primitive it names is not registered.
    """
    if spec.name in LOSSES:
        raise ValueError(f"loss {spec.name!r} is registered twice")
    unknown = set(spec.primitives) - set(PRIMITIVES)
    if unknown:
        raise ValueError(f"loss {spec.name!r} names unregistered primitives {sorted(unknown)}")
    LOSSES[spec.name] = spec
    return spec
