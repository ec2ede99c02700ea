"""Every primitive on every backend, dtype and sample: values and gradients by the error rule.

In poisoned memory: what is not written, or read before it is, is NaN.
"""

from __future__ import annotations

import density
import pytest
import torch
from conftest import CASES, Case, poisoned_memory, require_dtype

from sslfast._registry import Tolerance
from sslfast.testing import check_case

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ABSOLUTE_EPS = 32  # limit of the relative L2 error, in eps of the tested dtype
WELL_CONDITIONED = ("ragged", "typical")


@pytest.mark.thin(rule=density.numbers)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(
    case: Case, dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    primitive, sample = case.primitive, case.sample
    require_dtype(cpu_backend, dtype, primitive.name)
    judged = sample.size in WELL_CONDITIONED and dtype != torch.float64
    absolute = ABSOLUTE_EPS * torch.finfo(dtype).eps if judged else None
    with poisoned_memory():
        report = check_case(
            primitive.function,
            primitive.reference,
            sample.make(generator),
            dtype=dtype,
            differentiable=primitive.differentiable,
            tolerance=primitive.tolerances.get((cpu_backend, dtype), Tolerance()),
            absolute=absolute,
        )
    print(f"error ratio {report.ratio:.2f}")
    report.require()


def shares_gradients(case: Case) -> bool:
    arguments = case.sample.make(torch.Generator().manual_seed(0))
    return case.sample.size == "ragged" and len(case.primitive.learning(arguments)) > 1


@pytest.mark.thin(rule=density.best_or_interpreted)
@pytest.mark.parametrize("case", [case for case in CASES if shares_gradients(case)], ids=str)
def test_the_first_argument_learns_alone(
    case: Case, cpu_backend: str, generator: torch.Generator
) -> None:
    """As where a queue does not learn: other kernels may run, and none for what nobody asked."""
    with poisoned_memory():
        check_case(
            case.primitive.function,
            case.primitive.reference,
            case.sample.make(generator),
            dtype=torch.float32,
            differentiable=case.primitive.differentiable[:1],
        ).require()
