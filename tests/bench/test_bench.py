"""The benchmark: what it enumerates, what it refuses to report, and one case end to end."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import or_skip
from places import ROOT
from torch import Tensor

from sslfast import cli
from sslfast._registry import LOSSES, PRIMITIVES
from sslfast.bench import (
    contrastive,
    correctness,
    ledger,
    machine,
    peers,
    plots,
    suite,
    timing,
    work,
)
from sslfast.bench import worker as worker_module
from sslfast.bench.contestants import EAGER, Contestant, default_backend, enter
from sslfast.bench.formulas import contrastive as formulas
from sslfast.bench.ledger import Row
from sslfast.bench.place import Place
from sslfast.bench.runner import Options, measure
from sslfast.bench.suite import Case, Workload, workloads
from sslfast.bench.work import Work
from sslfast.testing import cast, evaluate

SIZES = {"N": 11, "D": 5, "K": 9, "C": 3, "V": 2}
OTHER_SIZE = 7  # of a letter that a family has for itself
FLOORS = 10  # of the error rule, that a tiny case may be from its oracle
OWN = f"sslfast {default_backend()}"
FAMILY_WORKLOADS = [w for module in suite.family_modules() for w in module.workloads()]
ON_CPU = [workload.name for workload in FAMILY_WORKLOADS if workload.shapes]
FORMULAS = [
    pytest.param(workload.name, name, id=f"{workload.name}-{name}")
    for workload in FAMILY_WORKLOADS
    for name, peer in workload.peers.items()
    if workload.eager is not None and not peer.package
]
HAVE_LIGHTLY = [workload.name for workload in FAMILY_WORKLOADS if "lightly" in workload.peers]


def tiny_case(name: str = "NTXentLoss") -> Case:
    workload = workloads()[name]
    shape = (workload.shapes or workload.gpu_shapes or ({},))[0]
    return workload.at({letter: SIZES.get(letter, OTHER_SIZE) for letter in shape})


def reading(**changes: object) -> Row:
    """A good row of NT-Xent, changed."""
    row = Row(
        run="2026-01-01T00:00:00Z",
        commit="abc",
        sslfast="0.1",
        torch="2.13",
        python="3.11",
        device="a processor",
        isa="avx2",
        threads=2,
        wait_policy="",
        load=0.5,
        family="contrastive",
        case="NTXentLoss N=1024 D=128",
        subject="NTXentLoss",
        N=1024,
        D=128,
        dtype="float32",
        contestant=OWN,
        version="",
        what="forward+backward",
        rounds=7,
        median_ms=2.0,
        min_ms=1.5,
        peak_mib=3.0,
        times_faster=4.0,
        times_smaller=20.0,
        error=1e-7,
        error_ratio=0.9,
        repeatable="yes",
        gflops=100.0,
        gbytes=2.0,
        peak_gflops=200.0,
        peak_gbytes=20.0,
        percent_of_limit=50.0,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_everything_registered_has_a_case() -> None:
    subjects = {case.workload.subject for case in suite.select((), (), None)}
    assert subjects >= {*LOSSES, *PRIMITIVES}


def test_a_loss_without_shapes_of_its_own_runs_on_its_typical_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contrastive, "workloads", tuple)  # no family names shapes
    typical = {s.name for s in suite.typical(LOSSES["NTXentLoss"].samples)}
    found = workloads()
    assert typical
    assert {f"NTXentLoss[{name}]" for name in typical} <= set(found)
    inputs = found[f"NTXentLoss[{min(typical)}]"].at({}).inputs()
    assert {name for name, value in inputs.items() if getattr(value, "requires_grad", False)}
    assert all(v.dtype == torch.float32 for v in inputs.values() if isinstance(v, Tensor))


def test_sizes_replace_those_of_the_cases() -> None:
    shapes = [case.shape for case in suite.select(["contrastive"], [(7, None)], None)]
    assert {shape["N"] for shape in shapes} == {7}
    assert {shape["D"] for shape in shapes} == {128, 512}
    assert (suite.parse_size("4096"), suite.parse_size("4096x64")) == ((4096, None), (4096, 64))


@pytest.mark.parametrize(
    ("shape", "size", "resized"),
    [
        ({"B": 1024, "n": 11}, (7, 5), {"B": 7, "n": 5}),
        ({"N": 512, "K": 65536, "D": 128}, (7, None), {"N": 7, "K": 65536, "D": 128}),
        ({"B": 1024}, (7, 5), {"B": 7}),
    ],
)
def test_rows_come_first_and_their_width_last(
    shape: dict[str, int], size: suite.Size, resized: dict[str, int]
) -> None:
    """Whatever a family calls them."""
    workload = replace(tiny_case().workload, shapes=(shape,))
    (found,) = suite._resized(workload, [size], "cpu")
    assert found == resized
    case = workload.at(found)
    assert case.rows == 7
    assert case.width == (list(resized.values())[-1] if len(resized) > 1 else None)


def test_first_size_of_what_eager_fits() -> None:
    cases = suite.select(["contrastive"], (), None, "cuda", first=True)
    workloads_of = [case.workload for case in cases]
    assert len(workloads_of) == len({workload.name for workload in workloads_of}) > 3
    assert all(workload.eager for workload in workloads_of)
    assert all(case.shape == dict(case.workload.shapes_on("cuda")[0]) for case in cases)


def test_quick_keeps_the_small_cases() -> None:
    sizes = [case.rows or 0 for case in suite.select(["contrastive"], (), 1024)]
    assert sizes
    assert max(sizes) == 1024


@pytest.mark.parametrize("name", ON_CPU)
def test_own_backend_agrees_with_the_oracle(name: str) -> None:
    case = tiny_case(name)
    workload = case.workload
    contestant = Contestant(OWN, workload.fused, default_backend())
    standard = correctness.Standard(case)
    verdict = standard.judge(contestant)
    assert verdict.failure == ""
    floor = standard.tolerance.floor * torch.finfo(torch.float32).eps  # above 8 at low temperatures
    assert 0 <= verdict.error < FLOORS * floor
    assert correctness.repeatability(case, contestant) == "yes"


def test_a_wrong_contestant_gets_no_time() -> None:
    case = tiny_case()
    eager = case.workload.eager
    assert eager is not None
    wrong = replace(case.workload, fused=lambda **inputs: eager(**inputs) * 1.001)
    result = worker_module.time_case(wrong.at(case.shape), request(case, [OWN, EAGER]))
    assert "output 0" in result["failures"][OWN]
    assert set(result["readings"]) == {EAGER}


def test_a_wrong_gradient_gets_no_time() -> None:
    case = tiny_case()
    eager = case.workload.eager
    assert eager is not None

    def detached(embeddings0: Tensor, embeddings1: Tensor) -> Tensor:
        return eager(embeddings0, embeddings1) + 0.1 * (embeddings0 - embeddings0.detach()).sum()

    verdict = correctness.Standard(case).judge(Contestant("wrong", detached))
    assert "gradient of embeddings0" in verdict.failure


def test_an_absent_peer_is_named_and_the_others_run() -> None:
    case = tiny_case()

    def absent() -> peers.Objective:
        raise ImportError("nowhere is not installed: pip install nowhere")

    alone = replace(case.workload, peers={"nowhere": peers.Peer(absent)})
    result = worker_module.time_case(alone.at(case.shape), request(case, [EAGER, "nowhere"]))
    assert result["failures"] == {"nowhere": "nowhere is not installed: pip install nowhere"}
    assert set(result["readings"][EAGER]) == {"forward", "forward+backward"}


def request(case: Case, contestants: list[str]) -> dict[str, object]:
    return {
        "workload": case.workload.name,
        "shape": dict(case.shape),
        "contestants": contestants,
        "threads": torch.get_num_threads(),
        "rounds": 1,
    }


def test_one_case_in_processes_of_its_own(tmp_path: Path) -> None:
    place = Place("cpu", "fp32-high")
    options = Options("now", 1, 2, (default_backend(),), peers=False, memory=True, place=place)
    rows = measure(tiny_case(), options)
    assert [(row.contestant, row.what) for row in rows] == [
        (name, what) for name in (OWN, EAGER) for what in ("forward", "forward+backward")
    ]
    for row in rows:
        assert row.failure == ""
        assert row.rounds == 2
        assert row.threads == 1
        assert row.min_ms is not None
        assert row.median_ms is not None
        assert 0 < row.min_ms <= row.median_ms
        assert row.wait_policy == "PASSIVE"
    assert rows[3].peak_mib is not None
    assert rows[3].times_faster == 1.0
    assert rows[0].repeatable == "yes"
    assert rows[0].gflops is not None
    assert {row.isa for row in rows} == {machine.isa_of(OWN), machine.best_isa()}
    assert {row.dtype for row in rows} == {"float32 high"}
    ledger.append(tmp_path / "results" / "contrastive.csv", rows)
    kept = ledger.read(tmp_path / "results" / "contrastive.csv")
    assert len(kept) == 4
    assert ledger.finished(tmp_path / "results" / "contrastive.csv", "now") == {
        (tiny_case().name, "float32 high")
    }
    assert tuple(kept[0]) == ledger.COLUMNS


def test_work_is_read_off_the_calls() -> None:
    case = tiny_case("CLIPLoss")
    inputs = case.inputs()
    contestant = enter(case.workload, OWN)
    counted = work.of_case([contestant], inputs, Place())
    images, texts, scale = inputs.values()
    arguments = {"queries": images, "keys": texts, "scale": scale, "columns": True}
    primitive = PRIMITIVES["similarity_logsumexp"]
    for what, backward in (("forward", False), ("forward+backward", True)):
        expected = primitive.flops(**arguments, backward=backward)
        assert counted[what][0] == expected > 0


def test_ledger_refuses_failed_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong; it is not reported"):
        ledger.append(tmp_path / "x.csv", [reading(), reading(failure="wrong")])
    assert not (tmp_path / "x.csv").exists()


def test_ledger_refuses_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("case,time\n")
    with pytest.raises(ValueError, match=r"x\.csv has other columns"):
        ledger.append(path, [reading()])


def test_ledger_grows_and_knows_its_last_run(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    ledger.append(path, [reading(), reading(contestant=EAGER, peak_mib=None)])
    ledger.append(path, [reading(run="2026-01-02T00:00:00Z")])
    with path.open(newline="") as file:
        assert len(list(csv.reader(file))) == 4
    rows = ledger.read(path)
    assert [row["peak_mib"] for row in rows] == ["3", "", "3"]
    assert [row["run"] for row in ledger.latest(rows)] == ["2026-01-02T00:00:00Z"]


def test_plots_come_from_the_ledger_alone(tmp_path: Path) -> None:
    path = tmp_path / "contrastive.csv"
    for n in (256, 1024):
        case = f"NTXentLoss N={n} D=128"
        own = reading(case=case, N=n)
        ledger.append(path, [own, replace(own, contestant=EAGER, gflops=None, min_ms=9.0)])
    assert cli.main(["bench", "--replot", "--output", str(tmp_path)]) == 0
    names = {f"contrastive_{kind}.png" for kind in ("time", "memory", "ratios", "roofline")}
    assert {drawn.name for drawn in tmp_path.glob("*.png")} == names
    assert plots.draw(path) == [tmp_path / name for name in sorted(names, key=_plot_order)]


def _plot_order(name: str) -> int:
    return ("time", "memory", "ratios", "roofline").index(name.removesuffix(".png").split("_")[1])


def test_contestants_take_turns() -> None:
    order: list[str] = []
    calls = {name: partial(order.append, name) for name in "abc"}
    readings = timing.interleave(calls, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert all(r.rounds == 3 and 0 <= r.minimum <= r.median for r in readings.values())


def test_limits_say_why_a_peak_is_absent() -> None:
    limits = machine.Limits({}, machine.copy_bandwidth(elements=1 << 16), "no library")
    assert limits.bandwidth > 0
    assert limits.peak("avx2", products=True) is None
    assert limits.seconds(Work(10, 0, 10), "avx2") is None
    known = machine.Limits({"baseline": 10.0, "avx2": 20.0}, bandwidth=4.0)
    assert known.seconds(Work(30, 10, 4), "baseline") == 4.0
    assert known.seconds(Work(30, 10, 4), "") == 2.0
    assert known.seconds(Work(1, 0, 40), "avx2") == 10.0


@pytest.mark.parametrize(("name", "peer"), FORMULAS)
def test_formulas_compute_the_same(name: str, peer: str) -> None:
    case = tiny_case(name)
    inputs = case.inputs()
    expected = case.workload.fused(**inputs)
    torch.testing.assert_close(enter(case.workload, peer).objective(**inputs), expected)


@pytest.mark.parametrize("name", ["NTXentLoss beyond eager", "CLIPLoss beyond eager"])
def test_chunked_forms_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with a last chunk that is not whole."""
    monkeypatch.setattr(formulas, "CHUNK", 4)
    workload = tiny_case(name).workload
    assert workload.chunked is not None
    eager = LOSSES[workload.subject].eager
    whole = partial(eager, temperature=contrastive.TEMPERATURE) if "NTXent" in name else eager
    inputs = cast(tiny_case(name).inputs(), torch.float64)
    expected = evaluate(whole, inputs, workload.leaves)
    for result, value in evaluate(workload.chunked, inputs, workload.leaves).items():
        torch.testing.assert_close(value, expected[result])


@pytest.mark.parametrize("name", HAVE_LIGHTLY)
def test_lightly_computes_the_same(name: str) -> None:
    case = tiny_case(name)
    inputs = case.inputs()
    with or_skip():
        contestant = enter(case.workload, "lightly")
    torch.testing.assert_close(contestant.objective(**inputs), case.workload.fused(**inputs))
    placeholder = sys.modules.get("torchvision")
    assert placeholder is None or placeholder.__spec__ is not None


def test_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        case.name for case in suite.select((), (), None)
    ]


def test_regression_suite_runs_on_tiny_samples() -> None:
    command = ["-m", "pytest", "-q", "-k", "tiny", "--benchmark-disable", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [sys.executable, *command, "bench/test_regression.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "passed" in finished.stdout


def test_workloads_are_named_once() -> None:
    assert all(isinstance(w, Workload) and w.name == name for name, w in workloads().items())
