"""Precisions of the benchmark on a CPU: who runs in which, and what limit each has."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_bench import OWN, request, tiny_case
from torch import Tensor

from sslfast import _library
from sslfast.bench import machine, report, work, worker
from sslfast.bench.contestants import EAGER, enter
from sslfast.bench.place import MEASURED_ON, PRECISIONS, Place
from sslfast.bench.work import Work


def test_products_and_other_arithmetic_have_a_unit_each() -> None:
    limits = machine.Limits({"avx2": 20.0, "amx": 10.0}, 4.0, products={"amx": 100.0})
    assert limits.peak("amx", products=True) == limits.peak("", products=True) == 100.0
    assert limits.peak("amx", products=False) == 10.0
    assert limits.peak("avx2", products=True) == 20.0
    assert limits.seconds(Work(1000, 20, 4), "amx") == 10.0  # side by side
    assert limits.seconds(Work(1000, 200, 4), "amx") == 20.0
    assert limits.seconds(Work(1000, 200, 4), "avx2") == 60.0  # one after the other
    higher = machine.Limits({"avx2": 30.0, "amx": 5.0}, 3.0, products={"amx": 120.0})
    best = machine.best_of(limits, higher)
    assert best == machine.Limits({"avx2": 30.0, "amx": 10.0}, 4.0, products={"amx": 120.0})


@pytest.mark.parametrize(
    ("precision", "taken"),
    [("bf16", 1), ("fp16", 4), ("fp32", 6), ("fp32-high", 4), ("fp32-medium", 1)],
)
def test_the_limit_of_products_is_that_of_the_precision(
    precision: str, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one, four or six products of the unit, and never below the multiply-adds."""
    multiply_adds, unit = 110.0, 600.0
    reason = _library.missing_reason()
    if reason is not None:
        pytest.skip(reason)
    played = SimpleNamespace(
        fma_peak=lambda isa, dtype, seconds, threads: multiply_adds,
        matrix_peak=lambda isa, seconds, threads: unit,
    )
    monkeypatch.setattr(machine, "import_module", lambda name: played)
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 1.0)
    place = Place("cpu", precision)
    with place.matmul_precision():
        limits = machine.measure_limits(2, place.dtype, ["emulated", "baseline", "no such"])
    assert set(limits.flops) == {machine.best_isa(), "emulated", "baseline"}
    assert limits.peak("emulated", products=True) == max(unit / taken, multiply_adds)
    assert limits.peak("emulated", products=False) == multiply_adds
    assert limits.peak("baseline", products=True) == multiply_adds


def test_the_instruction_set_of_a_contestant() -> None:
    assert machine.isa_of("sslfast cpu:avx2") == machine.isa_of("cpu:avx2") == "avx2"
    assert machine.isa_of("eager") == machine.isa_of("sslfast cpu") == machine.best_isa()


def test_a_small_ratio_is_no_zero() -> None:
    """Of errors far below the rounding that a precision allows."""
    figures = [report._figure(value) for value in (0.0, 0.0014, 0.014, 1.4, 14.0, 140.0)]
    assert figures == ["0.00", "0.001", "0.01", "1.40", "14.0", "140"]


def test_work_tells_products_from_other_arithmetic() -> None:
    """GroCo multiplies and sorts."""
    case = tiny_case("GroCoLoss")
    counted = work.of_case([enter(case.workload, OWN)], case.inputs(), Place())["forward"]
    assert counted.products > 0
    assert counted.others > 0
    assert counted.flops == counted.products + counted.others


PRECISE = [
    (name, precision)
    for name in ("NTXentLoss", "CLIPLoss", "BarlowTwinsLoss", "kNN top-20")
    for precision in MEASURED_ON["cpu"]
]


@pytest.mark.parametrize(("name", "precision"), PRECISE)
def test_every_precision_of_the_cpu(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone in that dtype and under that setting of torch, judged by its rounding."""
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 1.0)
    monkeypatch.setattr(machine, "PROBES", 1)
    case, seen = tiny_case(name), set()

    def noting(*arguments: Any, objective: Any, **named: Any) -> Any:
        seen.add(torch.get_float32_matmul_precision())
        tensors = [each for each in named.values() if isinstance(each, Tensor) and each.dim() > 1]
        seen.update(each.dtype for each in tensors)
        return objective(*arguments, **named)

    workload = case.workload
    watched = replace(workload, fused=partial(noting, objective=workload.fused)).at(case.shape)
    place = Place("cpu", precision)
    asked = {**request(watched, [OWN, EAGER]), "place": ["cpu", precision]}
    result = worker.time_case(watched, asked)
    assert result["failures"] == {}
    assert set(result["readings"]) == {OWN, EAGER}
    assert seen == {place.dtype, PRECISIONS[precision].matmul}
    if _library.missing_reason() is None:
        assert machine.best_isa() in result["limits"]["flops"]
