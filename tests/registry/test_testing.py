"""The error rule accepts rounding and catches every kind of wrong result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sslfast._registry import Tolerance
from sslfast.testing import check_case, compare, evaluate

TRUTH = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BASELINE = TRUTH.float()


def _one_wrong(values: Tensor) -> Tensor:
    values[17] += 1e-4
    return values


def _one_nan(values: Tensor) -> Tensor:
    values[3] = torch.nan
    return values


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "element": (_one_wrong, "largest"),
    "scale": (lambda values: values * (1 + 1e-5), "relative_l2"),
    "shift": (lambda values: values + 3e-6, "bias"),
    "direction": (lambda values: values + 1e-5 * values.flip(0), "angle"),
    "nan": (_one_nan, "nan instead of"),
    "shape": (lambda values: values[:-1], r"shape \(399,\) instead of \(400,\)"),
    "dtype": (lambda values: values.double(), r"torch.float64 instead of torch.float32"),
    "zero": (torch.zeros_like, "relative_l2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_caught(name: str) -> None:
    spoil, message = WRONG[name]
    report = compare("rows", spoil(BASELINE.clone()), BASELINE, TRUTH)
    assert any(message.replace("\\", "") in failure for failure in report.failures)
    with pytest.raises(AssertionError, match=message):
        report.require()


def test_rounding_is_accepted() -> None:
    rounded = (TRUTH * (1 + 2**-24)).float()
    report = compare("rows", rounded, BASELINE, TRUTH).require()
    assert 0 < report.ratio < 2


def test_poor_baseline_does_not_excuse() -> None:
    poor = TRUTH.bfloat16().float()
    kernel = (TRUTH * 1.001).float()
    compare("rows", kernel, poor, TRUTH).require()
    with pytest.raises(AssertionError, match="whatever the baseline"):
        compare("rows", kernel, poor, TRUTH, absolute=1e-4).require()


def test_tolerance_and_rounding_widen_the_rule() -> None:
    kernel = (TRUTH * (1 + 1e-5)).float()
    compare("rows", kernel, BASELINE, TRUTH, tolerance=Tolerance(floor=100)).require()
    compare("rows", kernel, BASELINE, TRUTH, rounding=torch.bfloat16).require()


def test_infinities_must_agree() -> None:
    truth = torch.tensor([-torch.inf, 1.0], dtype=torch.float64)
    compare("rows", truth.float(), truth.float(), truth).require()
    with pytest.raises(AssertionError, match=r"5\.0 instead of -inf"):
        compare("rows", torch.tensor([5.0, 1.0]), truth.float(), truth).require()


def _square(rows: Tensor, *, power: float = 2.0) -> Tensor:
    return rows**power


def test_gradients_are_judged() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
            return rows**2

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, cotangent: Tensor) -> Tensor:
            return cotangent

    arguments = {"rows": TRUTH, "power": 2.0}
    report = check_case(_square, _square, arguments, dtype=torch.bfloat16).require()
    assert [each.name for each in report.reports] == ["output 0", "gradient of rows"]
    with pytest.raises(AssertionError, match="gradient of rows: relative_l2"):
        check_case(
            lambda rows, power: Wrong.apply(rows), _square, arguments, dtype=torch.float32
        ).require()


def test_only_the_named_arguments_are_differentiated() -> None:
    results = evaluate(torch.mul, {"input": TRUTH, "other": TRUTH}, ("other",))
    assert list(results) == ["output 0", "gradient of other"]


def test_indices_are_right_or_wrong() -> None:
    """Integers are compared with the oracle alone, and carry no gradient."""
    truth = torch.tensor([[3, 1], [0, 2]])
    report = compare("indices", truth.clone(), truth, truth)
    assert not report.failures
    assert report.ratio == 0.0
    wrong = truth.clone()
    wrong[1, 0] = 4
    (failure,) = compare("indices", wrong, wrong, truth).failures
    assert failure == "indices: 4 instead of 0 at (1, 0), and 0 more of 4"
    (failure,) = compare("indices", truth.int(), truth, truth).failures
    assert "torch.int32 instead of torch.int64" in failure
    results = evaluate(lambda x: x.sort(), {"x": torch.tensor([2.0, 1.0])})
    assert sorted(results) == ["gradient of x", "output 0", "output 1"]
    assert results["output 1"].tolist() == [1, 0]
