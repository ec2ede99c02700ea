"""Arithmetic and traffic of a case: what the primitives that it calls say they need at least.

The calls are observed, not listed, so a loss built on several primitives is counted without a
word from it. The work around them (reductions over rows) is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sslfast._registry import PRIMITIVES, Primitive
from sslfast.bench.contestants import SSLFAST, Contestant
from sslfast.bench.ledger import BOTH, FORWARD
from sslfast.bench.suite import Case

NAMESPACE = "sslfast"


def of_case(case: Case, contestants: Sequence[Contestant]) -> dict[str, tuple[int, int]]:
    """(FLOPs, bytes) by pass, from a call of the first of sslfast's contestants; empty if none."""
    own = [contestant for contestant in contestants if contestant.name.startswith(SSLFAST)]
    if not own:
        return {}
    with own[0].forcing(), torch.no_grad(), _Calls() as observed:
        own[0].objective(**case.inputs())
    return {
        FORWARD: _least(observed.calls, backward=False),
        BOTH: _least(observed.calls, backward=True),
    }


def _least(calls: Sequence[tuple[Primitive, dict[str, Any]]], *, backward: bool) -> tuple[int, int]:
    flops = sum(primitive.flops(**called, backward=backward) for primitive, called in calls)
    moved = sum(primitive.bytes(**called, backward=backward) for primitive, called in calls)
    return flops, moved


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
