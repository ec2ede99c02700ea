"""The benchmark's way on a GPU, as far as it goes without one: a device that is played."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from test_bench import OWN, reading, tiny_case
from torch import Tensor

from sslfast import _backends, cli
from sslfast.bench import (
    clock,
    command,
    contestants,
    correctness,
    gpu,
    ledger,
    machine,
    peers,
    plots,
    report,
    runner,
    suite,
    worker,
)
from sslfast.bench.contestants import CHUNKED, COMPILE, EAGER, Contestant
from sslfast.bench.place import Place
from sslfast.bench.runner import Options

IDENTITY = gpu.Identity("Card 100", "sm_90", "580.1", "13.0", "3.6.0")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class PlayedGpu(Place):
    """A GPU's precisions and its way through the benchmark, on CPU tensors."""

    is_gpu = True  # type: ignore[assignment]

    def __post_init__(self) -> None:
        assert self.device == "cuda"

    def require(self) -> None:
        pass

    def put(self, inputs: Any) -> dict[str, Any]:
        return {
            name: value.to(self.dtype)
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
            else value
            for name, value in inputs.items()
        }

    def autocast(self) -> Any:
        half = self.dtype != torch.float32
        return torch.autocast("cpu", dtype=self.dtype) if half else nullcontext()

    def synchronize(self) -> None:
        pass

    def release(self) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """`worker` runs on a `PlayedGpu` with the CPU's clock, known limits and known peaks."""
    monkeypatch.setattr(worker, "Place", PlayedGpu)
    monkeypatch.setattr(worker, "clock_of", lambda place, seconds: clock.HostClock())
    monkeypatch.setattr(correctness, "cast", lambda inputs, dtype, device: _widened(inputs, dtype))
    limits = machine.Limits({"bfloat16": 1e12, "tf32": 1e12, "float32": 1e12}, 1e11)
    monkeypatch.setattr(gpu, "measure_limits", lambda place: limits)
    monkeypatch.setattr(worker, "_device_peak", lambda *rest: 1 << 20)


def _widened(inputs: Any, dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def request(case: suite.Case, names: list[str], precision: str = "bf16") -> dict[str, Any]:
    return {
        "workload": case.workload.name,
        "shape": dict(case.shape),
        "contestants": names,
        "threads": torch.get_num_threads(),
        "rounds": 1,
        "place": ["cuda", precision],
        "memory": True,
    }


GPU_WORKLOADS = [
    name
    for name, workload in suite.workloads().items()
    if workload.shapes_on("cuda") not in ((), ({},))  # shapes that a family names
]


@pytest.mark.parametrize("name", GPU_WORKLOADS)
def test_every_case_in_half_precision(name: str, played: None) -> None:
    """Oracle, autocast, error rule and readings of every case that a GPU measures."""
    case = tiny_case(name)
    names = contestants.names(case.workload, [OWN.split()[1]], with_peers=False, device="cuda")
    result = worker.time_case(case, request(case, names))
    assert result["failures"] == {}
    assert set(result["readings"]) == set(result["memory"]) == set(names)
    assert all(set(each) == {"forward", "forward+backward"} for each in result["readings"].values())
    assert 0 < result["errors"][OWN][0] < 0.2
    assert "cpu" in result["backends"][OWN]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_wrong_contestant_gets_no_time(precision: str, played: None) -> None:
    case = tiny_case()
    eager = case.workload.eager
    assert eager is not None
    wrong = replace(case.workload, fused=lambda **inputs: eager(**inputs) * 1.2)
    result = worker.time_case(wrong.at(case.shape), request(case, [OWN, EAGER], precision))
    assert "output 0" in result["failures"][OWN]
    assert set(result["readings"]) == {EAGER}


def test_a_contestant_that_loses_the_device_is_named(
    played: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiny_case()

    def broken(*tensors: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    def lost(self: PlayedGpu) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    workload = replace(case.workload, peers={"wild": peers.Peer(lambda: broken)})
    monkeypatch.setattr(PlayedGpu, "synchronize", lost)
    result = worker.time_case(workload.at(case.shape), request(case, ["wild", EAGER]))
    reason = "CUDA error: an illegal memory access was encountered"
    assert result == {"lost": ["wild", reason]}
    asked: list[list[str]] = []

    def time(case: suite.Case, names: list[str], options: Options) -> dict[str, Any]:
        asked.append(list(names))
        return result if "wild" in names else {"failures": {}}

    monkeypatch.setattr(runner, "_time", time)
    options = Options("now", 1, 1, (), peers=True, memory=True)
    found = runner._time_without_lost(case, [EAGER, "wild", "lightly"], options)
    assert asked == [[EAGER, "wild", "lightly"], [EAGER, "lightly"]]
    assert found["failures"] == {"wild": f"it left the GPU unusable: {reason}"}


def test_rows_of_a_gpu(played: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a result to the ledger, the table and the plots."""
    monkeypatch.setattr(gpu, "identity", lambda: IDENTITY)
    monkeypatch.setattr(
        runner, "_time", lambda case, names, options: worker.time_case(case, request(case, names))
    )
    options = Options("now", 1, 1, ("cpu",), False, True, place=PlayedGpu("cuda", "bf16"))
    case = tiny_case("CLIPLoss")
    rows = [replace(row, host_ms=0.25) for row in runner.measure(case, options)]
    assert [(row.contestant, row.failure) for row in rows[::2]] == [
        ("sslfast cpu", ""),
        (EAGER, ""),
    ]
    own = rows[1]
    assert (own.device, own.isa, own.driver, own.cuda, own.triton) == (
        IDENTITY.name,
        IDENTITY.arch,
        IDENTITY.driver,
        IDENTITY.cuda,
        IDENTITY.triton,
    )
    assert own.dtype == "bfloat16"
    assert own.backends == "similarity_logsumexp:cpu"
    assert own.peak_mib == 1.0
    assert own.peak_gflops == 1e3
    assert own.min_ms is not None
    assert own.gflops is not None
    assert own.percent_of_limit == pytest.approx(
        100 * max(own.gflops / 1e3, (own.gbytes or 0) / 100), rel=1e-6
    )
    path = tmp_path / "contrastive_gpu.csv"
    ledger.append(path, rows, ledger.GPU_COLUMNS)
    kept = ledger.read(path)
    assert kept[1]["driver"] == "580.1"
    assert "threads" not in kept[1]
    assert ledger.is_ledger(path)
    assert ledger.finished(path, "now") == {(case.name, "bfloat16")}
    assert ledger.finished(path, "then") == set()
    lines = report.notes(case, rows)
    assert lines[0] == "Card 100, bfloat16, L2 cache flushed before every call"
    assert "sslfast cpu: similarity_logsumexp:cpu" in lines
    assert "host\nms" in [column.header for column in report.table(case, rows).columns]
    assert {each.name for each in plots.draw(path)} >= {"contrastive_gpu_ratios.png"}


def test_the_ledger_of_the_cpu_keeps_its_columns() -> None:
    with (ROOT / "bench" / "results" / "contrastive.csv").open() as file:
        assert tuple(file.readline().strip().split(",")) == ledger.COLUMNS
    assert {"driver", "cuda", "triton", "host_ms"} <= set(ledger.GPU_COLUMNS)
    assert not {"threads", "load", "failure"} & set(ledger.GPU_COLUMNS)


def test_plots_keep_to_one_dtype(tmp_path: Path) -> None:
    path = tmp_path / "x_gpu.csv"
    rows = [
        reading(dtype=dtype, contestant=name, driver="1", min_ms=ms)
        for dtype, names in (("bfloat16", ("sslfast triton", EAGER)), ("tf32", (EAGER,)))
        for name, ms in zip(names, (1.0, 3.0), strict=False)
    ]
    ledger.append(path, rows, ledger.GPU_COLUMNS)
    drawn: list[set[str]] = []
    original = plots._ratios

    def ratios(rows: Any) -> Any:
        drawn.append({row["dtype"] for row in rows})
        return original(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_ratios", ratios)
        plots.draw(path)
    assert drawn == [{"bfloat16"}]


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("tpu", "fp32", "device must be cpu or cuda, got 'tpu'"),
        ("cuda", "int8", "dtype must be one of fp32, tf32, bf16, fp16 on cuda, got 'int8'"),
        ("cuda", "fp32-high", "fp16 on cuda, got 'fp32-high'"),
        ("cpu", "tf32", "one of fp32, fp32-high, fp32-medium, bf16, fp16 on cpu, got 'tf32'"),
    ],
)
def test_places_that_are_not(device: str, precision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Place(device, precision)


def test_precisions() -> None:
    assert [Place("cuda", p).label for p in ("fp32", "tf32", "bf16", "fp16")] == [
        "float32",
        "tf32",
        "bfloat16",
        "float16",
    ]
    before = torch.get_float32_matmul_precision()
    with Place("cuda", "tf32").matmul_precision():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    assert Place("cuda", "tf32").rounding == torch.finfo(torch.float16).eps
    put = PlayedGpu("cuda", "bf16").put(
        {"rows": torch.ones(2, 3), "scale": torch.tensor(1.1), "ids": torch.arange(2), "x": 3}
    )
    assert put["rows"].dtype == torch.bfloat16
    assert put["scale"].dtype == torch.float32
    assert put["ids"].dtype == torch.int64
    assert put["x"] == 3


@no_gpu
@pytest.mark.parametrize(
    "arguments", [["--device", "cuda"], ["--device", "cuda", "--dtype", "tf32"]]
)
def test_an_absent_gpu_is_said_at_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "contrastive", *arguments]) == cli.BAD_INPUT
    assert "device cuda is not there: torch" in capsys.readouterr().err


def test_shapes_belong_to_their_device(capsys: pytest.CaptureFixture[str]) -> None:
    on_cpu, on_gpu = (
        {case.name for case in suite.select(["contrastive"], (), None, device)}
        for device in ("cpu", "cuda")
    )
    assert "CLIPLoss beyond eager N=65536 D=1024" in on_gpu - on_cpu
    assert "NTXentLoss N=16384 D=128" in on_gpu - on_cpu
    assert "NTXentLoss N=256 D=128" in on_cpu - on_gpu
    assert "InfoNCELoss with a queue N=512 K=65536 D=128" in on_cpu & on_gpu
    resized = suite.select(["contrastive"], [(7, None)], None, "cuda")
    assert all(case.rows == 7 and case.workload.eager for case in resized)
    assert cli.main(["bench", "--list", "--device", "cuda"]) == 0
    assert "CLIPLoss beyond eager" in capsys.readouterr().out


def test_backends_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that run everything; the chooser's mixture where one runs a part."""
    loss, primitive = tiny_case("NTXentLoss").workload, tiny_case("l2_normalize").workload

    def there(*names: str) -> None:
        reasons = {name: None if name in names else "absent" for name in _backends.available()}
        monkeypatch.setattr(_backends, "available", lambda: reasons)

    there("cuda", "triton", "reference")
    assert contestants.backends_of(primitive, "cuda") == ["cuda", "triton"]
    assert contestants.backends_of(loss, "cuda") == ["", "triton"]
    assert contestants.names(loss, ["", "triton"], False)[:2] == ["sslfast", "sslfast triton"]
    there("triton", "reference")
    assert contestants.backends_of(loss, "cuda") == ["triton"]
    there("reference")
    assert contestants.backends_of(loss, "cuda") == [""]
    assert contestants.enter(loss, "sslfast").forcing().__class__ is nullcontext
    monkeypatch.setattr(_backends, "_forced", "triton")
    assert contestants.backends_of(loss, "cuda") == ["triton"]


def test_who_meets_whom() -> None:
    clip, beyond = tiny_case("CLIPLoss").workload, tiny_case("CLIPLoss beyond eager").workload
    assert contestants.names(clip, [], True, "cpu") == [EAGER, COMPILE, "open_clip formula"]
    assert contestants.names(clip, [], True, "cuda")[-2:] == ["Inf-CL", "memeff"]
    assert contestants.names(beyond, [], True, "cuda") == [CHUNKED, "Inf-CL", "memeff"]
    assert contestants.names(beyond, [], True, "cpu") == []
    with pytest.raises(RuntimeError, match="not run by anything that builds the matrix"):
        contestants.enter(beyond, EAGER)
    assert contestants.enter(beyond, CHUNKED).objective is beyond.chunked


@pytest.mark.parametrize(("name", "package"), [("Inf-CL", "inf-cl"), ("memeff", "memeff")])
def test_absent_peers_are_named(name: str, package: str) -> None:
    peer = tiny_case("CLIPLoss").workload.peers[name]
    if peer.version:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ImportError, match=f"{package} is not installed: pip install --no-deps"):
        peer.load()


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for member, value in members.items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_inf_cl_is_asked_for_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the formula behind its function's signature: (N,) losses of scaled queries."""

    def cal_flash_loss(q: Tensor, k: Tensor, labels: Any = None, scale: Any = None) -> Tensor:
        assert q.dtype == k.dtype == torch.float32
        return F.cross_entropy(scale * q @ k.T, torch.arange(len(q)), reduction="none")

    pretend(monkeypatch, "inf_cl", cal_flash_loss=cal_flash_loss)
    case = tiny_case("CLIPLoss")
    narrow = contestants.enter(case.workload, "Inf-CL")
    with pytest.raises(ValueError, match="Inf-CL needs D in multiples of 256"):
        narrow.objective(**case.inputs())
    inputs = case.workload.at({"N": 5, "D": 256}).inputs()
    torch.testing.assert_close(narrow.objective(**inputs), case.workload.fused(**inputs))
    assert not narrow.autocast


def test_memeff_has_no_gradient_of_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    class MemoryEfficientCLIPLoss:
        def __init__(self, temperature: float, normalized_inputs: bool, stable: bool) -> None:
            assert normalized_inputs
            assert not stable
            self.scale = 1 / temperature

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            logits, labels = self.scale * x @ y.T, torch.arange(len(x))
            return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    pretend(monkeypatch, "memeff", MemoryEfficientCLIPLoss=MemoryEfficientCLIPLoss)
    case = tiny_case("CLIPLoss")
    entered = contestants.enter(case.workload, "memeff")
    assert entered.leaves(case) == ["image_features", "text_features"]
    assert correctness.Standard(case).judge(entered).failure == ""
    shifted = replace(entered, objective=lambda **inputs: 1.01 * entered.objective(**inputs))
    assert "output 0" in correctness.Standard(case).judge(shifted).failure


class PlayedEvent:
    """A device whose time goes on by a millisecond a call, and a hundred a flush."""

    now = 0.0

    def record(self) -> None:
        self.at = PlayedEvent.now

    def elapsed_time(self, end: PlayedEvent) -> float:
        return end.at - self.at


def test_the_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events around each call alone, a flush before it, and no waiting between the calls."""
    story: list[str] = []

    def passing(name: str, milliseconds: float) -> Callable[[], None]:
        def go() -> None:
            story.append(name)
            PlayedEvent.now += milliseconds

        return go

    buffers: list[int] = []

    def empty(size: int, **options: Any) -> SimpleNamespace:
        assert options == {"dtype": torch.int8, "device": "cuda"}
        buffers.append(size)
        return SimpleNamespace(zero_=passing("flush", 100.0))

    monkeypatch.setattr(clock, "_event", PlayedEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", passing("wait", 0.0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=50 << 20)
    )
    monkeypatch.setattr(clock.torch, "empty", empty)
    tested = clock.CudaClock()
    taken = tested.read(passing("call", 1.0), 3)
    assert story == ["flush", "call"] * 3 + ["wait"]
    story.clear()
    assert tested.warm_up(passing("call", 1.0)) == clock.MOST_CALLS
    assert story == ["call"] * clock.WARM_UPS + ["wait", "call", "wait"]
    assert tested.warm_up(lambda: time.sleep(0.12)) == 1
    assert [each.seconds for each in taken] == [1e-3] * 3
    assert all(each.host is not None and each.host >= 0 for each in taken)
    assert buffers == [200 << 20]


def passes(**changes: Any) -> list[ledger.Row]:
    return [reading(what=what, **changes) for what in (ledger.FORWARD, ledger.BOTH)]


def test_runs_go_on_where_they_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--budget begins no further case, --run leaves out what the ledger has."""
    asked: list[str] = []
    ticks = iter(range(0, 10_000, 4))

    def measure(case: suite.Case, options: Options) -> list[ledger.Row]:
        asked.append(case.name)
        return passes(case=case.name, run=options.run, dtype=options.place.label)

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    line = ["bench", "contrastive", "--device", "cpu", "--run", "r1", "--output", str(tmp_path)]
    assert cli.main([*line, "--budget", "9"]) == command.CUT_SHORT
    assert "--run r1 goes on" in capsys.readouterr().out.replace("\n", " ")
    first = list(asked)
    assert 0 < len(first) < len(suite.select(["contrastive"], (), None))
    assert cli.main(line) == 0
    assert asked == [case.name for case in suite.select(["contrastive"], (), None)]
    assert cli.main(line) == 0
    assert len(ledger.read(tmp_path / "contrastive.csv")) == 2 * len(asked)


@pytest.mark.parametrize(
    ("changes", "named", "code"),
    [
        ({"failure": "output 0: ..."}, [], 1),
        ({"failure": "no such kernel", "error": None}, [], 1),
        ({"failure": "no such kernel", "error": None}, ["--backend", "reference"], 0),
        ({"failure": "output 0: ...", "contestant": "lightly"}, [], 0),
    ],
)
def test_what_makes_a_run_fail(
    changes: dict[str, Any],
    named: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """sslfast wrong, or not running unasked; a case that has that is not kept."""

    def measure(case: suite.Case, options: Options) -> list[ledger.Row]:
        failed = reading(**{"contestant": OWN, "case": case.name, **changes})
        return [failed, *passes(case=case.name, contestant=EAGER)]

    monkeypatch.setattr(runner, "measure", measure)
    line = ["bench", "contrastive", "--device", "cpu", "--sizes", "7", "--output", str(tmp_path)]
    assert cli.main([*line, *named]) == code
    assert (tmp_path / "contrastive.csv").exists() == (code == 0)


def test_a_case_whose_process_ended_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: suite.Case, options: Options) -> list[ledger.Row]:
        if case.workload.name == "NTXentLoss":
            raise RuntimeError("its process ended (-9): no output")
        return passes(case=case.name)

    monkeypatch.setattr(runner, "measure", measure)
    line = ["bench", "contrastive", "--device", "cpu", "--sizes", "7", "--output", str(tmp_path)]
    assert cli.main(line) == 1
    assert "NTXentLoss N=7 D=128 failed: its process ended" in capsys.readouterr().out
    assert len(ledger.read(tmp_path / "contrastive.csv")) > 2


def test_an_unforced_contestant_takes_what_is_chosen() -> None:
    case = tiny_case("l2_normalize")
    chosen = Contestant("sslfast", case.workload.fused, "")
    found = worker.work.backends_of([chosen], case.inputs(), Place())
    runs = contestants.runnable_backends()[0]
    assert found == {"sslfast": f"l2_normalize:{runs}"}


def test_commit_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*command: Any, **options: Any) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(machine.subprocess, "run", no_git)
    monkeypatch.delenv("SSLFAST_COMMIT", raising=False)
    assert machine.commit() == "unknown"
    monkeypatch.setenv("SSLFAST_COMMIT", "abc123")
    assert machine.commit() == "abc123"
    monkeypatch.setattr(gpu.subprocess, "run", partial(no_git))
    assert gpu._driver() == "unknown"
