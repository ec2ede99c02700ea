"""The checks of tests/gpu/test_gpu.py on a CPU: they pass what is right and fail what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_harness as harness
import pytest
import torch
from conftest import require_backend
from gpu_harness import BackendCase, Step
from torch import Tensor

import sslfast
from sslfast._registry import LOSSES, PRIMITIVES, Loss
from sslfast.testing import cast

HERE = Path(__file__).parent
CPU = "cpu"
NATIVE = [
    case
    for case in harness.backend_cases(CPU, "ragged", precisions=("fp32", "bf16"))
    if case.backend in ("reference", "cpu:baseline")
]
SMALL = [case for case in NATIVE if case.sample.name == "ragged" and case.precision == "fp32"]


def changed(change: Callable[[Any], Any]) -> BackendCase:
    """Row normalisation whose result goes through `change`."""
    primitive = PRIMITIVES["l2_normalize"]

    def function(**arguments: Any) -> Any:
        return change(primitive.function(**arguments))

    sample = harness.first_of("ragged", primitive.samples)
    return BackendCase(replace(primitive, function=function), sample, "reference")


@pytest.mark.parametrize("case", NATIVE, ids=str)
def test_right_numbers_pass(case: BackendCase) -> None:
    require_backend(case.backend)
    assert harness.check_numbers(case, CPU).ratio >= 0


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_wrong_numbers_fail(precision: str) -> None:
    with pytest.raises(AssertionError, match="output 0"):
        harness.check_numbers(replace(changed(lambda y: y * 1.1), precision=precision), CPU)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_right_losses_pass_and_wrong_ones_fail(loss: Loss) -> None:
    sample = harness.first_of("ragged", loss.samples)
    harness.check_loss(loss, sample, "bf16", CPU)
    wrong = replace(loss, functional=lambda **arguments: 1.3 * loss.functional(**arguments))
    with pytest.raises(AssertionError, match="output 0"):
        harness.check_loss(wrong, sample, "bf16", CPU)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_repetition_and_layout_pass(case: BackendCase) -> None:
    require_backend(case.backend)
    harness.check_repeats(case, CPU)
    for layout in harness.LAYOUTS:
        harness.check_layout(case, layout, CPU)


def test_an_element_that_is_not_written_fails() -> None:
    def unwritten(normalized: Tensor) -> Tensor:
        fresh = torch.empty_like(normalized)
        fresh[1:] = normalized[1:]
        if not torch.are_deterministic_algorithms_enabled():
            fresh[0] = normalized[0]  # stale memory that happens to be right
        return fresh

    with pytest.raises(AssertionError, match="output 0"):
        harness.check_repeats(changed(unwritten), CPU)


def test_another_result_on_repetition_fails() -> None:
    calls = iter(range(100))
    with pytest.raises(AssertionError, match="output 0"):
        harness.check_repeats(changed(lambda y: y + next(calls)), CPU)


def test_a_kernel_that_ignores_strides_fails() -> None:
    primitive = PRIMITIVES["l2_normalize"]

    def dense(embeddings: Tensor) -> Tensor:
        shape = embeddings.shape
        return primitive.function(embeddings.as_strided(shape, torch.empty(shape).stride()))

    sample = harness.first_of("ragged", primitive.samples)
    case = BackendCase(replace(primitive, function=dense), sample, "reference")
    for layout in (harness.transposed, harness.strided):
        with pytest.raises(AssertionError):
            harness.check_layout(case, layout, CPU)
    harness.check_layout(case, harness.offset, CPU)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_step_follows_its_static_tensors(loss: Loss) -> None:
    """What a captured graph is compared with, and what a late stream is."""
    sample = harness.first_of("ragged", loss.samples)
    first, other = (
        cast(sample.make(torch.Generator().manual_seed(seed)), torch.float32) for seed in (0, 1)
    )
    leaves = loss.learning(first)
    step = Step(loss.functional, first, leaves)
    step.fill(other, cotangent=1.25)
    fresh = Step(loss.functional, other, leaves)
    fresh.fill(other, cotangent=1.25)
    harness.assert_bitwise(step(), fresh())
    step.fill(first, cotangent=1.25)
    assert any(
        not torch.equal(a, b) for a, b in zip(step().values(), fresh().values(), strict=True)
    )
    step.spoil()
    assert all(
        value.isnan().all()
        for value in (*step.static.values(), *step.cotangents)
        if isinstance(value, Tensor) and value.is_floating_point()
    )


def test_promises() -> None:
    harness.check_promise(lambda n: 10 * n, lambda n: 10 * n, 100, noise=0)
    with pytest.raises(AssertionError, match="1001 bytes at 100 rows"):
        harness.check_promise(lambda n: 10 * n + 1, lambda n: 10 * n, 100, noise=0)
    with pytest.raises(AssertionError, match="grows by 1500 bytes"):
        harness.check_promise(lambda n: n * n // 20, lambda n: 10 * n + 1000, 100, noise=0)
    with pytest.raises(AssertionError, match="4000 bytes at 200 rows"):
        harness.check_promise(lambda n: n * n // 10, lambda n: 10 * n, 100, noise=0)


def test_every_backend_and_precision_of_a_gpu_is_enumerated() -> None:
    precisions = tuple(harness.PRECISIONS)
    found = {
        (c.primitive.name, c.backend, c.precision)
        for c in harness.backend_cases("cuda", precisions=precisions)
    }
    for name, primitive in PRIMITIVES.items():
        for backend, implementation in primitive.implementations.items():
            if backend not in ("cuda", "triton", "reference"):
                continue
            for precision, (dtype, _) in harness.PRECISIONS.items():
                there = any(
                    n == name and b.partition(":")[0] == backend and p == precision
                    for n, b, p in found
                )
                assert there == (dtype in implementation.dtypes), (name, backend, precision)


def test_a_family_takes_its_losses_and_their_primitives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "FAMILY", "contrastive")
    assert {loss.family for loss in harness.losses()} == {"contrastive"}
    used = {primitive.name for primitive in harness.primitives()}
    assert used == {"l2_normalize", "similarity_logsumexp"}
    monkeypatch.setattr(harness, "FAMILY", "no_family")
    assert not harness.losses()
    assert not harness.primitives()


def test_settings_end() -> None:
    before = torch.get_float32_matmul_precision()
    with harness.settings("reference", "tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        assert sslfast._backends.forced() == "reference"
    assert torch.get_float32_matmul_precision() == before
    assert sslfast._backends.forced() == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("required", [False, True])
def test_without_a_gpu_tests_are_skipped_or_fail(
    required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLFAST_REQUIRE_GPU", "1" if required else "0")
    only = "test_every_loss_is_covered or (test_opcheck and ragged_filter and triton)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_gpu.py", "-k", only],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    if required:
        assert "triton cannot run: torch sees no GPU" in said
        assert done.returncode == 1
        assert "1 failed, 1 passed" in said
    else:
        assert "needs a CUDA device" in said
        assert done.returncode == 0
        assert "2 skipped" in said
