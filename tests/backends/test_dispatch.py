"""Which backend runs, how one is forced, and what is said where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import require_backend

import sslfast
from sslfast import _backends, _library
from sslfast._registry import PRIMITIVES, Implementation, Primitive

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "missing_reason", lambda: "not built here")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backends that ran, in order."""
    ran: list[str] = []
    choose = _backends.choose

    def spy(primitive: Primitive, name: str, *tensors: torch.Tensor | None) -> _backends.Choice:
        choice = choose(primitive, name, *tensors)
        ran.append(choice.backend)
        return choice

    monkeypatch.setattr(_backends, "choose", spy)
    return ran


def test_native_comes_first(chosen: list[str]) -> None:
    require_backend("cpu")
    sslfast.l2_normalize(ROWS)
    assert chosen == ["cpu"]


@pytest.mark.usefixtures("no_native")
def test_reference_runs_where_nothing_else_can(chosen: list[str]) -> None:
    sslfast.l2_normalize(ROWS)
    assert chosen == ["reference"]


def test_backward_keeps_the_backend_of_its_forward(chosen: list[str]) -> None:
    rows = ROWS.clone().requires_grad_()
    with sslfast.backend("reference"):
        total = sslfast.similarity_logsumexp(rows).sum()
    total.backward()
    assert chosen == ["reference", "reference"]


def _fail_inside(name: str) -> None:
    with sslfast.backend(name):
        assert _backends.forced() == name
        raise ZeroDivisionError


def test_blocks_nest_and_end_after_an_error() -> None:
    outside = _backends.forced()
    with sslfast.backend("reference"):
        with pytest.raises(ZeroDivisionError):
            _fail_inside("cpu")
        assert _backends.forced() == "reference"
    assert _backends.forced() == outside


@pytest.mark.parametrize("isa", _library.supported_isas() or ["baseline"])
def test_instruction_sets_are_forced(isa: str, chosen: list[str]) -> None:
    require_backend(f"cpu:{isa}")
    with sslfast.backend(f"cpu:{isa}"):
        forced = sslfast.similarity_logsumexp(ROWS)
    assert chosen == [f"cpu:{isa}"]
    torch.testing.assert_close(forced, sslfast.similarity_logsumexp(ROWS))


@pytest.mark.usefixtures("no_native")
def test_forced_backend_that_cannot_run_raises() -> None:
    with sslfast.backend("cpu"), pytest.raises(RuntimeError, match="cpu: not built here"):
        sslfast.l2_normalize(ROWS)


def test_forced_instruction_set_that_is_missing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "missing_reason", lambda: None)
    missing = {"baseline": None, "avx2": "this processor has no avx2"}
    isas = {name: _library.Isa(name, 0, reason) for name, reason in missing.items()}
    monkeypatch.setattr(_library, "isas", lambda: isas)
    with sslfast.backend("cpu:avx2"), pytest.raises(RuntimeError, match="processor has no avx2"):
        sslfast.l2_normalize(ROWS)
    with (
        sslfast.backend("cpu:avx512"),
        pytest.raises(RuntimeError, match="not compiled for avx512"),
    ):
        sslfast.l2_normalize(ROWS)


@pytest.mark.parametrize("name", ["gpu", "cpu:sse", "cuda:fast", "reference:fast", ""])
def test_unknown_backend_raises(name: str) -> None:
    with (
        pytest.raises(ValueError, match=f"backend must be one of .*, got '{name}'"),
        sslfast.backend(name),
    ):
        pass


def test_backend_for_another_device_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with sslfast.backend("cuda"), pytest.raises(RuntimeError, match="has no cuda implementation"):
        sslfast.similarity_logsumexp(ROWS)
    present = replace(_backends.BACKENDS["cuda"], missing=lambda variant: None)
    monkeypatch.setitem(_backends.BACKENDS, "cuda", present)
    with sslfast.backend("cuda"), pytest.raises(RuntimeError, match="cuda: tensors are on cpu"):
        sslfast.l2_normalize(ROWS)


def test_rejected_tensors_go_to_the_next_backend(
    monkeypatch: pytest.MonkeyPatch, chosen: list[str]
) -> None:
    """A reason given by the implementation is obeyed and told."""
    monkeypatch.setattr(_library, "missing_reason", lambda: None)
    primitive = PRIMITIVES["l2_normalize"]
    native = primitive.implementations["cpu"]
    picky = Implementation(
        native.forward, native.backward, native.dtypes, lambda rows: "the moon is full"
    )
    monkeypatch.setitem(primitive.implementations, "cpu", picky)
    sslfast.l2_normalize(ROWS)
    assert chosen == ["reference"]
    explanation = sslfast.explain("l2_normalize", ROWS)
    assert explanation.runs == "reference"
    assert explanation.reasons["cpu"] == "the moon is full"


@pytest.mark.usefixtures("no_native")
def test_explain_names_every_reason() -> None:
    explanation = sslfast.explain("similarity_logsumexp", ROWS, None)
    assert str(explanation).splitlines() == [
        "similarity_logsumexp runs on reference",
        "  cpu: not built here",
        "  reference: chosen",
    ]


@pytest.mark.usefixtures("no_native")
def test_explain_a_forced_backend() -> None:
    with sslfast.backend("cpu"):
        explanation = sslfast.explain("l2_normalize", ROWS)
    assert explanation.runs is None
    assert explanation.reasons == {
        "cpu": "not built here",
        "reference": "could run; cpu is forced",
    }
    with sslfast.backend("reference"):
        assert sslfast.explain("l2_normalize", ROWS).runs == "reference"


def test_explain_other_dtypes_and_devices() -> None:
    integers = sslfast.explain("l2_normalize", ROWS.long())
    assert integers.runs is None
    assert "torch.int64 is not among" in integers.reasons["reference"]
    meta = sslfast.explain("l2_normalize", ROWS.to("meta"))
    assert list(meta.reasons) == ["reference"]


def test_explain_refuses() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*, got 'softmax'"):
        sslfast.explain("softmax", ROWS)
    with pytest.raises(ValueError, match="tensors must hold at least the first"):
        sslfast.explain("l2_normalize", None)


def test_environment_forces_a_backend() -> None:
    script = "import torch, sslfast; print(sslfast.explain('l2_normalize', torch.ones(1, 1)).runs)"
    for name, expected in (("reference", "reference"), ("nonsense", "got 'nonsense'")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "SSLFAST_BACKEND": name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert expected in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "libsslfast.so was not built: install from source"),
        ('{"built": false, "reason": "no compiler"}', "the native build failed: no compiler"),
    ],
)
def test_missing_library_has_a_reason(
    content: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / _library.STATUS_NAME).write_text(content)
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path)
    assert reason in str(_library.missing_reason.__wrapped__())


def test_broken_library_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / _library.LIBRARY_NAME).write_text("this is no library")
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path)
    reason = str(_library.missing_reason.__wrapped__())
    assert f"does not load under torch {torch.__version__}" in reason
