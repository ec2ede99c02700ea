"""The thin suite leaves nothing out altogether."""

from __future__ import annotations

from itertools import product

import density
import pytest
import test_losses
import test_numbers
import torch
from conftest import CPU_BACKENDS

from sslfast._registry import LOSSES, PRIMITIVES

BACKENDS = sorted({*CPU_BACKENDS, "triton"})


def kept(rule: density.Rule, cases: tuple, dtypes: tuple) -> set[tuple[str, torch.dtype, str]]:
    """Subject, dtype and backend of the points that a rule keeps."""
    grid = product(cases, dtypes, BACKENDS)
    points = ({"case": case, "dtype": dtype, "backend": name} for case, dtype, name in grid)
    return {
        (str(at["case"]).partition("-")[0], at["dtype"], at["backend"])
        for at in points
        if rule(density.point(at))
    }


def test_every_primitive_keeps_every_backend_and_dtype() -> None:
    dtypes = test_numbers.DTYPES
    found = kept(density.numbers, test_numbers.CASES, dtypes)
    missing = set(product(PRIMITIVES, dtypes, BACKENDS)) - found
    assert missing == {(name, torch.float64, "triton") for name in PRIMITIVES}  # for the dense one


def test_every_loss_keeps_every_backend_and_by_default_every_dtype() -> None:
    dtypes = test_losses.DTYPES
    found = kept(density.losses, test_losses.CASES, dtypes)
    for name in LOSSES:
        assert {backend for loss, _, backend in found if loss == name} == set(BACKENDS)
        assert {dtype for loss, dtype, on in found if (loss, on) == (name, density.BEST)} == {
            *dtypes
        }


def test_a_word_that_is_no_density_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(density.SWITCH, "dense")
    with pytest.raises(ValueError, match=r"SSLFAST_TESTS must be one of .* got 'dense'"):
        density.is_full()
