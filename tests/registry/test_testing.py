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


@pytest.mark.parametrize(("times", "accepted"), [(1.8, True), (2.2, False)])
def test_twice_the_error_of_eager_is_the_limit(times: float, accepted: bool) -> None:
    """Where eager is far above the rounding floor."""
    eager = TRUTH.bfloat16().float()
    kernel = (TRUTH + times * (eager - TRUTH)).float()
    assert (compare("rows", kernel, eager, TRUTH).failures == ()) == accepted


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


VIEWS = [TRUTH.view(20, 20), TRUTH.flip(0).view(20, 20)]


def _spread(views: list[Tensor]) -> Tensor:
    return (views[0] - views[1]).square().mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("holder", ["list", "tuple", "dict"])
def test_a_detached_loss_of_held_tensors_is_caught(holder: str, dtype: torch.dtype) -> None:
    """Value right, gradient missing: of all views, or of one."""

    def hold(views: list[Tensor]) -> object:
        named = dict(enumerate(views))
        return {"list": views, "tuple": tuple(views), "dict": named}[holder]

    def reference(views: dict[int, Tensor]) -> Tensor:
        return _spread([views[0], views[1]])

    def detached(views: dict[int, Tensor]) -> Tensor:
        return _spread([views[0].detach(), views[1].detach()])

    def half_detached(views: dict[int, Tensor]) -> Tensor:
        return _spread([views[0].detach(), views[1]])

    arguments = {"views": hold(VIEWS)}
    report = check_case(reference, reference, arguments, dtype=dtype).require()
    names = [each.name for each in report.reports]
    assert names == ["output 0", "gradient of views[0]", "gradient of views[1]"]
    with pytest.raises(AssertionError, match="nothing learned: floating-point output 0"):
        check_case(detached, reference, arguments, dtype=dtype)
    with pytest.raises(AssertionError, match=r"views\[0\] did not learn"):
        check_case(half_detached, reference, arguments, dtype=dtype)


def test_held_tensors_are_cast_and_judged() -> None:
    """The function is given the tested dtype, and a wrong gradient of one view is found."""
    seen: list[torch.dtype] = []

    def reference(views: list[Tensor]) -> Tensor:
        seen.extend(view.dtype for view in views)
        return _spread(views)

    def bent(views: list[Tensor]) -> Tensor:
        return _spread([views[0], views[1] + 0.1 * (views[1] - views[1].detach())])

    check_case(reference, reference, {"views": VIEWS}, dtype=torch.float16).require()
    assert set(seen) == {torch.float16, torch.float64}
    with pytest.raises(AssertionError, match=r"gradient of views\[1\]: largest"):
        check_case(bent, _spread, {"views": VIEWS}, dtype=torch.float16).require()


def test_held_outputs_are_judged() -> None:
    def halves(rows: Tensor) -> dict[str, list[Tensor]]:
        return {"halves": list((2 * rows).chunk(2))}

    def wrong(rows: Tensor) -> dict[str, list[Tensor]]:
        first, second = (2 * rows).chunk(2)
        return {"halves": [first, 1.1 * second]}

    check_case(halves, halves, {"rows": TRUTH}, dtype=torch.float32).require()
    with pytest.raises(AssertionError, match="output 1: largest"):
        check_case(wrong, halves, {"rows": TRUTH}, dtype=torch.float32).require()


def test_what_compares_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="nothing to compare"):
        evaluate(lambda rows: None, {"rows": TRUTH}, ())
    with pytest.raises(AssertionError, match="nothing to compare"):
        evaluate(lambda rows: [1.0, {"loss": 2.0}], {"rows": TRUTH}, ())


def test_what_learns_nothing_fails_unless_it_says_so() -> None:
    ids = {"ids": torch.arange(3)}
    with pytest.raises(AssertionError, match=r"nothing learns: .* among \['ids'\]"):
        evaluate(lambda ids: ids.double(), ids)
    with pytest.raises(AssertionError, match=r"nothing learns: .* among \['rows'\]"):
        evaluate(lambda ids: ids.double(), ids, ("rows",))
    with pytest.raises(AssertionError, match="nothing learned: no output is floating-point"):
        evaluate(lambda rows: rows.argsort(), {"rows": TRUTH})
    assert list(evaluate(lambda ids: ids.double(), ids, ())) == ["output 0"]


def test_what_is_written_in_place_is_judged_and_left_alone() -> None:
    targets = [torch.zeros(3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)]
    sources = [torch.full_like(each, 4.0) for each in targets]

    def move(targets: list[Tensor], sources: list[Tensor], share: float = 0.5) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.lerp_(source, share)

    def forgets_the_last(targets: list[Tensor], sources: list[Tensor]) -> None:
        move(targets[:-1], sources[:-1])

    arguments = {"targets": targets, "sources": sources}
    options = {"dtype": torch.bfloat16, "differentiable": (), "mutates": ("targets",)}
    report = check_case(move, move, arguments, **options).require()
    names = [each.name for each in report.reports]
    assert names == ["targets[0] afterwards", "targets[1] afterwards"]
    assert not targets[0].any()
    with pytest.raises(AssertionError, match=r"targets\[1\] afterwards: largest"):
        check_case(forgets_the_last, move, arguments, **options).require()
