"""Every loss on every backend, dtype and sample: values and gradients by the error rule."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import require_dtype
from torch import Tensor, nn

import sslfast
from sslfast._registry import LOSSES, PRIMITIVES, Loss, Sample, Tolerance
from sslfast.testing import cast, check_case, evaluate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LossCase:
    """A loss at one of its samples."""

    loss: Loss
    sample: Sample

    def __str__(self) -> str:
        return f"{self.loss.name}-{self.sample.name}"


CASES = tuple(LossCase(spec, sample) for spec in LOSSES.values() for sample in spec.samples)


def largest_logit(arguments: dict[str, Any]) -> float:
    """Bound of a logit: the inverse temperature of unit rows, or the scale of rows as they are."""
    if "logit_scale" not in arguments:
        return 1 / float(arguments.get("temperature", 1.0))
    rows = [v for v in arguments.values() if isinstance(v, Tensor) and v.ndim == 2]
    lengths = [float(matrix.norm(dim=1).max()) for matrix in rows]
    return abs(float(arguments["logit_scale"])) * math.prod(lengths)


def tolerance(arguments: dict[str, Any]) -> Tolerance:
    """A logit carries as many eps as it is large into the loss and its gradient."""
    floor = max(8.0, largest_logit(arguments))
    return Tolerance(floor=floor, reason="logits are rounded to eps times their size")


def differentiable(arguments: dict[str, Any]) -> list[str]:
    """Every floating tensor but a queue of past rows."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    return [n for n, value in tensors.items() if value.is_floating_point() and n != "negatives"]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(
    case: LossCase, dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    require_dtype(cpu_backend, dtype, *case.loss.primitives)
    arguments = case.sample.make(generator)

    def eager(**arguments: Any) -> Tensor:
        value: Tensor = case.loss.eager(**arguments)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    report = check_case(
        case.loss.functional,
        eager,
        arguments,
        dtype=dtype,
        differentiable=differentiable(arguments),
        tolerance=tolerance(arguments),
        rounding=dtype,
    )
    print(f"error ratio {report.ratio:.2f}")
    report.require()


@pytest.mark.uninterpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_again(case: LossCase, cpu_backend: str, generator: torch.Generator) -> None:
    arguments = cast(case.sample.make(generator), torch.float32)
    first, again = (evaluate(case.loss.functional, arguments) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("case", [c for c in CASES if c.sample.size == "ragged"], ids=str)
def test_compiles_to_one_graph(case: LossCase, generator: torch.Generator) -> None:
    torch.compiler.reset()
    compiled = torch.compile(case.loss.functional, fullgraph=True, backend="aot_eager")
    arguments = case.sample.make(generator)
    expected = evaluate(case.loss.functional, arguments)
    torch.testing.assert_close(evaluate(compiled, arguments), expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_contract(loss: Loss) -> None:
    assert getattr(sslfast.losses, loss.name) is loss.module
    assert getattr(sslfast.functional, loss.functional.__name__) is loss.functional
    assert issubclass(loss.module, nn.Module)
    assert set(loss.primitives) <= PRIMITIVES.keys()
    assert inspect.signature(loss.functional) == inspect.signature(loss.eager)
    assert {sample.size for sample in loss.samples} == {"tiny", "ragged", "typical", "extreme"}
    assert len({sample.name for sample in loss.samples}) == len(loss.samples)
