"""Rows of zeros, as a dead network gives them, are worth what the formula says; NaN stays NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import require_dtype
from torch import Tensor

from sslfast._core.tree import floating
from sslfast._registry import LOSSES, Loss, Sample
from sslfast.functional import alignment_loss, hypersphere_loss, uniformity_loss
from sslfast.testing import cast

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
ZEROS = torch.zeros(8, 4)
OTHERWISE = {"CentroidLoss"}  # a row of zeros is at distance 1, and its docstring says so


def ragged(loss: Loss) -> Sample:
    return next(sample for sample in loss.samples if sample.size == "ragged")


def rows_of(loss: Loss) -> tuple[dict[str, Any], list[Tensor]]:
    """The arguments of the first ragged sample, and the learning tensors among them."""
    arguments = cast(ragged(loss).make(torch.Generator().manual_seed(1)), torch.float64)
    names = loss.learning(arguments)
    return arguments, [each for name in names for each in floating(arguments[name]) if each.ndim]


def test_uniformity_of_collapse_is_the_worst_value() -> None:
    assert uniformity_loss(ZEROS).item() == pytest.approx(0, abs=1e-8)
    assert uniformity_loss(ZEROS, normalize=False).item() == pytest.approx(0, abs=1e-6)
    assert hypersphere_loss(ZEROS, ZEROS).item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("num_zeros", [1, 3, 7])
def test_uniformity_of_some_zero_rows_is_that_of_the_rows_as_they_are(
    num_zeros: int, cpu_backend: str
) -> None:
    require_dtype(cpu_backend, torch.float32, *LOSSES["UniformityLoss"].primitives)
    rows = torch.nn.functional.normalize(
        torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    )
    rows[:num_zeros] = 0
    expected = torch.pdist(rows.double()).square().mul(-2).exp().mean().log()
    torch.testing.assert_close(uniformity_loss(rows).double(), expected, rtol=1e-6, atol=1e-6)
    unnormalised = uniformity_loss(rows, normalize=False)
    torch.testing.assert_close(unnormalised.double(), expected, rtol=1e-6, atol=1e-6)


def test_uniformity_compiles_with_zero_rows() -> None:
    """Nothing is read of a value there: the correction is part of the graph."""
    torch.compiler.reset()
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(uniformity_loss, fullgraph=True, backend="aot_eager")
    for zeros in (0, 2, 6):
        rows[:zeros] = 0
        torch.testing.assert_close(compiled(rows), uniformity_loss(rows))


@every_loss
@pytest.mark.parametrize("share", ["one row", "all rows"])
def test_zero_rows_are_worth_what_the_eager_form_says(loss: Loss, share: str) -> None:
    """In value; W-MSE, which needs full rank, refuses them in words."""
    arguments, held = rows_of(loss)
    with torch.no_grad():
        for rows in held:
            (rows[:1] if share == "one row" else rows).zero_()
    value = or_refused(loss, arguments)
    if value is None or loss.name in OTHERWISE:
        return
    expected = loss.eager(**arguments)
    if not expected.isfinite():  # it divides 0 by 0
        return
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7)


@every_loss
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_rows_that_are_not_finite_do_not_vanish(loss: Loss, value: float) -> None:
    """The loss is not finite, or an error names the argument: at every sample below typical."""
    for sample in loss.samples:
        if sample.size not in ("tiny", "ragged"):
            continue
        arguments = cast(sample.make(torch.Generator().manual_seed(1)), torch.float32)
        names = loss.learning(arguments)
        for rows in [e for n in names for e in floating(arguments[n]) if e.ndim]:
            if not enters(loss, arguments, rows):
                continue
            kept = rows[-1:].clone()
            rows[-1:] = value
            spoiled = or_refused(loss, arguments)
            assert spoiled is None or not spoiled.isfinite(), sample.name
            rows[-1:] = kept


def or_refused(loss: Loss, arguments: dict[str, Any]) -> Tensor | None:
    """The loss, ``None`` where its arguments are refused in words."""
    try:
        value: Tensor = loss.functional(**arguments)
    except ValueError as refusal:
        if "must" not in str(refusal):
            raise
        return None
    return value


def enters(loss: Loss, arguments: dict[str, Any], rows: Tensor) -> bool:
    """Whether the loss depends on the last row: not on a single one without a partner."""
    rows.requires_grad_()
    (gradient,) = torch.autograd.grad(loss.eager(**arguments), rows)
    rows.requires_grad_(False)
    return bool(gradient[-1:].any())


def test_alignment_of_any_power_keeps_a_nan() -> None:
    first, second = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).unbind()
    first[3] = torch.nan
    for alpha in (0.5, 1.0, 1.5, 2.0, 3.0):
        for normalize in (False, True):
            assert alignment_loss(first, second, alpha=alpha, normalize=normalize).isnan()
