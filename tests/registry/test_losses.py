"""Every loss on every backend, dtype and sample: values and gradients by the error rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import density
import pytest
import torch
from conftest import poisoned_memory, require_dtype
from torch import Tensor

from sslfast._registry import LOSSES, Loss, Sample
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


@pytest.mark.thin(rule=density.losses)
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

    with poisoned_memory():
        report = check_case(
            case.loss.functional,
            eager,
            arguments,
            dtype=dtype,
            differentiable=case.loss.learning(arguments),
            tolerance=case.loss.tolerance(arguments),
            rounding=dtype,
        )
    print(f"error ratio {report.ratio:.2f}")
    report.require()


@pytest.mark.thin(rule=density.best)
@pytest.mark.uninterpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_again(case: LossCase, cpu_backend: str, generator: torch.Generator) -> None:
    arguments = cast(case.sample.make(generator), torch.float32)
    leaves = case.loss.learning(arguments)
    first, again = (evaluate(case.loss.functional, arguments, leaves) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.thin(rule=density.first_ragged)
@pytest.mark.parametrize("case", [c for c in CASES if c.sample.size == "ragged"], ids=str)
def test_compiles_to_one_graph(case: LossCase, generator: torch.Generator) -> None:
    torch.compiler.reset()
    compiled = torch.compile(case.loss.functional, fullgraph=True, backend="aot_eager")
    arguments = case.sample.make(generator)
    leaves = case.loss.learning(arguments)
    expected = evaluate(case.loss.functional, arguments, leaves)
    torch.testing.assert_close(evaluate(compiled, arguments, leaves), expected)
