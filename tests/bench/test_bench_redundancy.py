"""Redundancy cases of the benchmark: oracles, peers, and what is left out at the largest sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import or_skip
from test_bench import OWN, reading

from sslfast.bench import (
    contestants,
    correctness,
    ledger,
    plots,
    redundancy,
    report,
    runner,
    suite,
    timing,
    worker,
)
from sslfast.bench.clock import Clock
from sslfast.bench.contestants import COMPILE, EAGER, Contestant, enter
from sslfast.bench.place import Place
from sslfast.bench.runner import Options
from sslfast.bench.suite import Case, Workload

WORKLOADS = {workload.name: workload for workload in redundancy.workloads()}
TALL, WIDE = {"N": 21, "D": 5}, {"N": 6, "D": 17}  # either side of where a route is chosen
MAIN = ("BarlowTwinsLoss", "VICRegLoss")


def small_case(workload: Workload, shape: dict[str, int]) -> Case:
    return workload.at({**workload.shapes[0], "V": 2, **shape})


def entered(case: Case, name: str) -> Contestant:
    with or_skip():
        return enter(case.workload, name)


def test_lightly_whitens_the_same_batches() -> None:
    """Of several, each of images drawn at random."""
    case = small_case(WORKLOADS["WMSELoss"], {"N": 2 * redundancy.WHITENED, "D": 5})
    state = torch.random.get_rng_state()
    assert correctness.Standard(case).judge(entered(case, "lightly")).failure == ""
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", MAIN)
def test_a_wrong_value_or_gradient_is_seen_through_the_oracle(name: str) -> None:
    case = small_case(WORKLOADS[name], WIDE)
    fused = case.workload.fused

    def bent(factor: float) -> Callable[..., Any]:
        def objective(**views: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = fused(**views)
            return loss + factor * (loss - loss.detach())

        return objective

    standard = correctness.Standard(case)
    assert "gradient of" in standard.judge(Contestant("bent", bent(1e-3))).failure
    scaled = Contestant("scaled", lambda **views: 1.001 * fused(**views))
    assert "output 0" in standard.judge(scaled).failure


@pytest.mark.parametrize("name", MAIN)
def test_the_oracle_judges_not_eager(name: str) -> None:
    """An eager form that is wrong does not carry anybody through: it is judged itself."""
    case = small_case(WORKLOADS[name], TALL)
    eager = case.workload.eager
    assert eager is not None
    wrong = replace(case.workload, eager=lambda **views: 1.01 * eager(**views))
    standard = correctness.Standard(wrong.at(case.shape))
    assert standard.judge(enter(wrong, EAGER)).error > 1e-3
    assert standard.judge(enter(case.workload, OWN)).error < 1e-5


def test_main_shapes_come_first_and_everywhere() -> None:
    sizes = [(256, 8192), (1024, 8192), (1024, 2048), (4096, 2048)]
    cases = suite.select(["redundancy"], (), None)
    expected = [f"{name} N={n} D={d}" for name in MAIN for n, d in sizes]
    assert [case.name for case in cases][: len(expected)] == expected
    on_gpu = [case.name for case in suite.select(["redundancy"], (), None, "cuda")]
    assert {f"{name} N=2048 D=8192" for name in MAIN} <= set(on_gpu)
    assert on_gpu[0] == f"{MAIN[0]} N=2048 D=8192"


@pytest.mark.parametrize("name", MAIN)
def test_left_out_is_named_and_only_on_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def not_run(case: Case, names: list[str], options: Options) -> dict[str, Any]:
        asked.append(names)
        return {"failures": dict.fromkeys(names, "not run"), "errors": {}, "memory": {}}

    monkeypatch.setattr(runner, "_time", not_run)
    options = Options("now", 1, 1, ("cpu",), peers=True, memory=False)
    everyone = contestants.names(WORKLOADS[name], ["cpu"], True)
    for shape in WORKLOADS[name].shapes:
        case = WORKLOADS[name].at(shape)
        rows = runner.measure(case, options)
        left_out = set(everyone) - set(asked[-1])
        assert left_out == set(case.left_out("cpu"))
        assert not left_out & {"sslfast cpu", EAGER, "lightly"}
        assert bool(left_out) == (shape["D"] == 8192)
        told = [note for note in report.notes(case, rows) if "left out" in note]
        assert len(told) == bool(left_out)
        assert all(other in told[0] for other in left_out)
        assert case.left_out("cuda") == ()
    assert COMPILE in asked[0]


def test_the_budget_of_a_workload_is_that_of_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def interleave(calls: Any, rounds: Any, clock: Clock) -> dict[str, timing.Reading]:
        given.append(clock.budget)
        return dict.fromkeys(calls, timing.Reading(1.0, 1.0, 1))

    monkeypatch.setattr(worker, "interleave", interleave)
    for workload, seconds in ((WORKLOADS["rankme"], redundancy.SECONDS_BESIDE), (None, 25.0)):
        case = small_case(workload or suite.workloads()["NTXentLoss"], TALL)
        worker._time_all(case, [enter(case.workload, EAGER)], 1, Place(), case.inputs())
        assert set(given) == {seconds}
        given.clear()


def test_work_without_a_formula_has_no_limit() -> None:
    """Neither where no primitive is called nor where they do the least of it."""
    request = {"contestants": [OWN, EAGER], "threads": 1, "rounds": 1}
    for name in ("rankme", "TiCoLoss"):
        case = small_case(WORKLOADS[name], TALL)
        result = worker.time_case(case, request)
        assert result["failures"] == {}
        result = {**result, "limits": {"flops": {"avx2": 1e9}, "bandwidth": 1e9}}
        options = Options("now", 1, 1, (), peers=False, memory=False)
        for contestant in (OWN, EAGER):
            for row in runner._rows(case, contestant, result, None, options):
                assert row.min_ms is not None
                assert row.peak_gflops == 1.0
                assert row.gflops is row.percent_of_limit is row.best_possible is None


def test_a_plot_has_one_width(tmp_path: Any) -> None:
    path = tmp_path / "redundancy.csv"
    for n, d in ((256, 8192), (1024, 8192), (1024, 2048)):
        case = f"BarlowTwinsLoss N={n} D={d}"
        ledger.append(path, [reading(family="redundancy", case=case, N=n, D=d)])
    figure = plots._against_size(ledger.read(path), "min_ms", "ms")
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlabel() == "N (D = 8192)"
    assert [list(line.get_xdata()) for line in axes.lines] == [[256, 1024]]
