"""Arithmetic and traffic of a case: what the primitives that it calls say they need at least.

The calls are observed, not listed, so a loss built on several primitives is counted without a
word from it. The work around them (reductions over rows) is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sslfast
from sslfast._registry import PRIMITIVES, Primitive
from sslfast.bench.contestants import SSLFAST, Contestant
from sslfast.bench.ledger import BOTH, FORWARD
from sslfast.bench.place import Place
from sslfast.bench.suite import Inputs

NAMESPACE = "sslfast"


class Work(NamedTuple):
    """FLOPs of matrix products, FLOPs of all else, and bytes read and written."""

    products: int
    others: int
    moved: int

    @property
    def flops(self) -> int:
        return self.products + self.others


def of_case(contestants: Sequence[Contestant], inputs: Inputs, place: Place) -> dict[str, Work]:
    """The work by pass, from a call of the first of sslfast's contestants; empty if none."""
    own = [contestant for contestant in contestants if contestant.name.startswith(SSLFAST)]
    if not own:
        return {}
    calls = _observe(own[0], inputs, place)
    return {FORWARD: _least(calls, backward=False), BOTH: _least(calls, backward=True)}


def backends_of(contestants: Sequence[Contestant], inputs: Inputs, place: Place) -> dict[str, str]:
    """The backends that the primitives of each of sslfast's contestants run on."""
    found = {}
    for contestant in contestants:
        if contestant.name.startswith(SSLFAST):
            calls = _observe(contestant, inputs, place)
            with contestant.forcing():
                ran = {primitive.name: _backend(primitive, called) for primitive, called in calls}
            found[contestant.name] = " ".join(f"{name}:{ran[name]}" for name in sorted(ran))
    return found


def _observe(
    contestant: Contestant, inputs: Inputs, place: Place
) -> list[tuple[Primitive, dict[str, Any]]]:
    # With gradients, since what learns decides how much there is to do.
    with contestant.forcing(), contestant.casting(place), _Calls() as observed:
        contestant.objective(**inputs)
    return observed.calls


def _backend(primitive: Primitive, called: dict[str, Any]) -> str:
    rows = [each for each in called.values() if isinstance(each, Tensor) and each.dim() > 1]
    return sslfast.explain(primitive.name, *rows).runs or "nothing"


def _least(calls: Sequence[tuple[Primitive, dict[str, Any]]], *, backward: bool) -> Work:
    flops = {True: 0, False: 0}
    moved = 0
    for primitive, called in calls:
        flops[primitive.products] += primitive.flops(**called, backward=backward)
        moved += primitive.bytes(**called, backward=backward)
    return Work(flops[True], flops[False], moved)


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every forward call of a primitive with the arguments of its public function."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Primitive, dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        primitive = PRIMITIVES.get(func.name().removeprefix(f"{NAMESPACE}::"))
        if func.namespace == NAMESPACE and primitive is not None:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            accepted = inspect.signature(primitive.function).parameters
            self.calls.append((primitive, {n: v for n, v in given.items() if n in accepted}))
        return func(*args, **(kwargs or {}))
