"""How far a kernel may be from the truth, and how much memory it may take.

**Error rule.** Inputs are rounded to the tested dtype; the oracle is the reference on those very
values in float64, the baseline is the reference in the tested dtype. Four measures compare a
result x with the oracle o: the largest deviation, the relative L2 error, the angle between both
and the signed bias. Each must satisfy

    kernel <= factor * baseline + floor * eps

with the `Tolerance` of the backend (2 and 8 by default); eps is that of the result's dtype, or of
`rounding` where intermediate results are stored narrower. A float64 result has an oracle no better
than itself, so nothing measures its conditioning: there the floor is `FLOAT64_FLOOR`. Where the
baseline itself is poor, twice its error says little: the relative L2 error must also stay below
`absolute`.

Integers (indices, counts) are right or wrong: each must be that of the oracle.

Arguments and results may hold their tensors in lists, tuples and dicts: every one of them is cast,
learns and is judged. A call that gives nothing to compare fails, and so does one whose arguments
should learn and do not.

`compare` judges one tensor, `check_case` a function with its gradients. Both return reports whose
``ratio`` (kernel over baseline error) belongs beside any timing; ``require()`` raises
`AssertionError` where the rule is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sslfast._evaluate import as_tuple, cast, continuous, evaluate, gradients, learnable
from sslfast._memory import peak_memory, peak_memory_of
from sslfast._registry import Tolerance

__all__ = [
    "CaseReport",
    "ErrorReport",
    "Errors",
    "as_tuple",
    "cast",
    "check_case",
    "compare",
    "continuous",
    "evaluate",
    "gradients",
    "learnable",
    "measure",
    "peak_memory",
    "peak_memory_of",
    "threads",
]

# Truths below are counted as this much: they may be what cancellation left, of which the oracle
# knows no digit. A float64 result is judged by an oracle of its own precision.
NEGLIGIBLE = 1e-12
NEGLIGIBLE_FLOAT64 = 1e-3
FLOAT64_FLOOR = 8192.0


@dataclass(frozen=True)
class Errors:
    """Deviation of a result from the oracle; all without a unit, 0 for an exact result.

    Args:
        largest: largest |x - o| over the largest |o|.
        relative_l2: ||x - o|| over ||o||.
        angle: between x and o, in radians.
        bias: |sum(x - o)| over sum |o|.
    """

    largest: float
    relative_l2: float
    angle: float
    bias: float


@dataclass(frozen=True)
class ErrorReport:
    """The verdict on one tensor."""

    name: str
    kernel: Errors
    baseline: Errors
    factor: float
    floor: float
    absolute: float | None
    mismatch: str = ""

    @property
    def ratio(self) -> float:
        """Relative L2 error of the kernel over that of the baseline (or over the floor)."""
        return self.kernel.relative_l2 / max(self.baseline.relative_l2, self.floor)

    @property
    def failures(self) -> tuple[str, ...]:
        """What breaks the rule, in words."""
        found = [f"{self.name}: {self.mismatch}"] if self.mismatch else []
        for field, kernel, baseline in zip(
            fields(Errors), astuple(self.kernel), astuple(self.baseline), strict=True
        ):
            limit = self.factor * baseline + self.floor
            if not kernel <= limit:
                found.append(f"{self.name}: {field.name} {kernel:.2e} is above {limit:.2e}")
        if self.absolute is not None and not self.kernel.relative_l2 <= self.absolute:
            found.append(
                f"{self.name}: relative_l2 {self.kernel.relative_l2:.2e} is above "
                f"{self.absolute:.2e}, whatever the baseline"
            )
        return tuple(found)

    def require(self) -> ErrorReport:
        """Raises AssertionError where the rule is broken."""
        assert not self.failures, "\n".join(self.failures)
        return self


@dataclass(frozen=True)
class CaseReport:
    """The verdict on every output and gradient of a call."""

    reports: tuple[ErrorReport, ...]

    @property
    def ratio(self) -> float:
        """The worst ratio."""
        return max((report.ratio for report in self.reports), default=0.0)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(failure for report in self.reports for failure in report.failures)

    def require(self) -> CaseReport:
        """Raises AssertionError where the rule is broken."""
        assert not self.failures, "\n".join(self.failures)
        return self


def measure(value: Tensor, oracle: Tensor) -> Errors:
    """Deviation of `value` from a float64 `oracle` of its shape, where both are finite.

    Elements whose truth the dtype of `value` cannot represent are left out.
    """
    representable = oracle.abs() <= torch.finfo(value.dtype).max
    finite = representable & value.isfinite().to(oracle.device)
    truth = oracle[finite]
    result = value.to(oracle.device, torch.float64)[finite]
    if truth.numel() == 0:
        return Errors(0.0, 0.0, 0.0, 0.0)
    error = result - truth
    least = NEGLIGIBLE_FLOAT64 if value.dtype == torch.float64 else NEGLIGIBLE
    known = truth.norm() > least and result.norm() > 0
    angle = (result / result.norm() - truth / truth.norm()).norm() if known else 0.0
    return Errors(
        largest=float(error.abs().max() / truth.abs().max().clamp_min(least)),
        relative_l2=float(error.norm() / truth.norm().clamp_min(least)),
        angle=float(angle),
        bias=float(error.sum().abs() / truth.abs().sum().clamp_min(least)),
    )


def compare(
    name: str,
    kernel: Tensor,
    baseline: Tensor,
    oracle: Tensor,
    *,
    tolerance: Tolerance | None = None,
    rounding: torch.dtype | float | None = None,
    absolute: float | None = None,
) -> ErrorReport:
    """Judge one tensor by the error rule.

    Args:
        name: for the messages.
        kernel: the result under test.
        baseline: the reference's in the same dtype.
        oracle: the reference's in float64, on the same rounded inputs.
        tolerance: factor and floor; 2 and 8 by default.
        rounding: dtype of the narrowest operand or intermediate result, or its eps; by default the
            dtype of `kernel`.
        absolute: limit of the relative L2 error whatever the baseline; ``None`` for
            ill-conditioned inputs.
    """
    tolerance = tolerance or Tolerance()
    mismatch = _mismatch(kernel, baseline, oracle)
    nothing = Errors(0.0, 0.0, 0.0, 0.0)
    if not oracle.is_floating_point():
        return ErrorReport(name, nothing, nothing, tolerance.factor, 1.0, None, mismatch)
    eps = rounding if isinstance(rounding, float) else torch.finfo(rounding or kernel.dtype).eps
    floor = FLOAT64_FLOOR if kernel.dtype == torch.float64 else tolerance.floor
    comparable = kernel.shape == oracle.shape
    return ErrorReport(
        name,
        kernel=measure(kernel, oracle) if comparable else nothing,
        baseline=measure(baseline, oracle) if comparable else nothing,
        factor=tolerance.factor,
        floor=floor * eps,
        absolute=absolute,
        mismatch=mismatch,
    )


def check_case(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    differentiable: Sequence[str] | None = None,
    mutates: Sequence[str] = (),
    tolerance: Tolerance | None = None,
    rounding: torch.dtype | None = None,
    absolute: float | None = None,
) -> CaseReport:
    """Judge outputs and gradients of a function on one sample.

    Args:
        function: under test; takes `arguments` as keywords.
        reference: the same in plain torch, for oracle and baseline.
        arguments: float64 CPU tensors and options, as a `Sample` makes them.
        dtype: the floating-point tensors are rounded to it.
        device: where function and baseline run.
        differentiable, mutates: see `evaluate`.
        tolerance, rounding, absolute: see `compare`.
    """
    rounded = cast(arguments, dtype, device)
    oracle = evaluate(reference, cast(rounded, torch.float64, "cpu"), differentiable, mutates)
    baseline = evaluate(reference, rounded, differentiable, mutates)
    kernel = evaluate(function, rounded, differentiable, mutates)
    assert kernel.keys() == oracle.keys(), f"{sorted(kernel)} instead of {sorted(oracle)}"
    return CaseReport(
        tuple(
            compare(
                name,
                kernel[name],
                baseline[name],
                oracle[name],
                tolerance=tolerance,
                rounding=rounding,
                absolute=absolute,
            )
            for name in oracle
        )
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mismatch(kernel: Tensor, baseline: Tensor, oracle: Tensor) -> str:
    if kernel.shape != oracle.shape:
        return f"shape {tuple(kernel.shape)} instead of {tuple(oracle.shape)}"
    if kernel.dtype != baseline.dtype:
        return f"{kernel.dtype} instead of {baseline.dtype}"
    if not oracle.is_floating_point():
        return _first_difference(kernel, oracle)
    value, usual = (each.to(oracle.device, torch.float64) for each in (kernel, baseline))
    special = ~(oracle.isfinite() & value.isfinite())
    wrong = special & ~_same(value, oracle) & ~_same(value, usual)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        return f"{value[where].item()} instead of {oracle[where].item()} at {where}"
    return ""


def _first_difference(value: Tensor, truth: Tensor) -> str:
    different = (value.to(truth.device) != truth).nonzero()
    if len(different) == 0:
        return ""
    where = tuple(different[0].tolist())
    return (
        f"{value[where].item()} instead of {truth[where].item()} at {where}, "
        f"and {len(different) - 1} more of {truth.numel()}"
    )


def _same(value: Tensor, truth: Tensor) -> Tensor:
    return torch.isclose(value, truth, rtol=0, atol=0, equal_nan=True)
