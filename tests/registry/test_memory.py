"""Peak memory grows as the contract says: linearly, so that no hidden N x N can exist."""

from __future__ import annotations

import pytest
from conftest import require_backend
from memory_cases import FORMS, arguments_of
from places import SUPPORT

from sslfast.testing import peak_memory_of

MIB = 1 << 20
DIM = 32
NUM_ROWS = 4096
NOISE = 4 * MIB  # pages of the interpreter and of the allocator
ROWS = "similarity_logsumexp rows"
WARM_UP = {"num_rows": 8, "dim": 4}


def peak(form: str, backend: str, num_rows: int) -> int:
    return peak_memory_of(
        "memory_cases:prepare",
        {"form": form, "backend": backend, "num_rows": num_rows, "dim": DIM},
        warm_up={"form": form, "backend": backend, **WARM_UP},
        path=SUPPORT,
    )


def promised(form: str, num_rows: int) -> int:
    primitive, _ = FORMS[form]
    return primitive.peak_bytes(**arguments_of(form, num_rows, DIM))


@pytest.mark.parametrize("form", FORMS)
def test_native_peak_keeps_its_promise(form: str) -> None:
    require_backend("cpu")
    small, large = peak(form, "cpu", NUM_ROWS), peak(form, "cpu", 2 * NUM_ROWS)
    print(f"{form}: {small / MIB:.1f} MiB, then {large / MIB:.1f} MiB")
    assert small <= promised(form, NUM_ROWS) + NOISE
    assert large <= promised(form, 2 * NUM_ROWS) + NOISE
    growth = promised(form, 2 * NUM_ROWS) - promised(form, NUM_ROWS)
    assert large - small <= growth + NOISE


@pytest.mark.parametrize("form", FORMS)
def test_promise_has_no_matrix(form: str) -> None:
    """Twice the rows take at most twice the memory, by the formula alone."""
    for num_rows in (1 << 12, 1 << 14):
        assert promised(form, 2 * num_rows) <= 2 * promised(form, num_rows)


def test_reference_is_caught() -> None:
    """The measurement sees the N x M of the reference: it would fail the test above."""
    small, large = (peak(ROWS, "reference", n) for n in (NUM_ROWS // 2, NUM_ROWS))
    assert large - small > promised(ROWS, NUM_ROWS) + NOISE


def test_measurement_sees_a_matrix() -> None:
    size = 2048
    measured = peak_memory_of(
        "memory_cases:hidden_matrix", {"num_rows": size}, warm_up={"num_rows": 4}, path=SUPPORT
    )
    assert abs(measured - 4 * size * size) < NOISE


def test_failure_in_the_process_is_reported() -> None:
    with pytest.raises(RuntimeError, match="no_such_form"):
        peak_memory_of(
            "memory_cases:prepare",
            {"form": "no_such_form", "backend": "reference", **WARM_UP},
            warm_up={"form": ROWS, "backend": "reference", **WARM_UP},
            path=SUPPORT,
        )
