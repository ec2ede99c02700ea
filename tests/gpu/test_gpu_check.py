"""``make gpu-check`` without a GPU: its plan, its refusal, its bookkeeping, its resumption."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

from sslfast._registry import LOSSES
from sslfast.bench import gpu_check, resume
from sslfast.bench.gpu_check import Check, Stamps, Step

SCRIPT = ROOT / "bench" / "gpu_check.py"
FACTS = {"gpu": "Card 100", "torch": "2.11.0", "cuda": "13.0", "missing": []}


def start(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """The script itself, as ``make gpu-check`` starts it."""
    return subprocess.run(
        [python, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_what_it_would_have_run(tmp_path: Path) -> None:
    done = start("--part", "contrastive", "--out", str(tmp_path / "out"))
    assert done.returncode == gpu_check.NO_GPU
    assert done.stderr.startswith("gpu-check: it cannot run here: there is no GPU: torch")
    assert "would have run" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", sorted({loss.family for loss in LOSSES.values()}))
def test_dry_run_prints_every_command(family: str) -> None:
    done = start("--dry-run", "--part", family)
    assert done.returncode == 0, done.stderr
    for told in (
        "pip install --disable-pip-version-check --no-index --no-deps --upgrade --target",
        f"SSLFAST_FAMILY={family} SSLFAST_REQUIRE_GPU=1",
        "-m gpu",
        f"bench {family} --device cuda",
    ):
        assert told in done.stdout


def test_the_script_needs_nothing_but_python() -> None:
    bare = [sys.executable, "-S", "-E", str(SCRIPT), "--dry-run"]  # without any site-packages
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_starts_the_script() -> None:
    done = subprocess.run(
        ["make", "-n", "gpu-check", "PART=build,tests", "OUT=/tmp/out", "PYTHON=python3.12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "python3.12 bench/gpu_check.py --part 'build,tests' --out '/tmp/out'" in done.stdout


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (FACTS, ""),
        ({**FACTS, "gpu": ""}, "there is no GPU: torch 2.11.0 sees none"),
        ({**FACTS, "gpu": "", "cuda": ""}, "there is no GPU: torch 2.11.0 was built without CUDA"),
        ({**FACTS, "missing": ["nvcc", "rich"]}, "missing: nvcc, rich"),
    ],
)
def test_why_not(facts: dict[str, Any], reason: str) -> None:
    assert gpu_check.why_not(facts) == reason


@pytest.mark.parametrize(
    ("part", "parts", "family"),
    [
        ("", ("machine", "build", "tests", "bench"), ""),
        ("bench,build", ("build", "bench"), ""),
        ("sanitize", ("sanitize",), ""),
        ("contrastive", ("machine", "build", "tests", "bench"), "contrastive"),
    ],
)
def test_parts(part: str, parts: tuple[str, ...], family: str, tmp_path: Path) -> None:
    check = gpu_check.parse(part, tmp_path, "")
    assert (check.parts, check.family) == (parts, family)


@pytest.mark.parametrize(
    ("part", "wheels", "message"),
    [
        ("nonsense", "", "PART must be of .* or a family, got 'nonsense'"),
        ("__pycache__", "", "PART must be of"),
        ("build,contrastive", "", "PART takes one family alone, got 'build,contrastive'"),
        ("", "/no/such/folder", "WHEELS must be a folder, got '/no/such/folder'"),
    ],
)
def test_parts_that_are_not(part: str, wheels: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        gpu_check.parse(part, tmp_path, wheels)


def test_a_family_ends_in_time(tmp_path: Path) -> None:
    check = gpu_check.parse("contrastive", tmp_path, "")
    assert check.seconds_left("build") == gpu_check.FAMILY_SECONDS["build"]
    late = Check(check.parts, check.family, tmp_path, begun=time.monotonic() - 400)
    assert 60 < late.seconds_left("bench") <= gpu_check.FAMILY_LIMIT - 400
    assert Check(("bench",), "", tmp_path, begun=0.0).seconds_left("bench") == 900


def test_wheels_are_installed_beside_the_package(tmp_path: Path) -> None:
    (tmp_path / "memeff-0.3.1-py3-none-any.whl").touch()
    package, wheels, info = gpu_check.steps("build", Check((), "", tmp_path, tmp_path), None)
    assert package.command[-1] == str(ROOT)
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(package.command)
    assert wheels.command[-2:] == (
        str(gpu_check.STATE / "peers"),
        str(tmp_path / "memeff-0.3.1-py3-none-any.whl"),
    )
    assert {"--no-index", "--no-deps"} <= set(wheels.command)
    assert info.command[-2:] == ("sslfast.cli", "info")
    assert len(gpu_check.steps("build", Check((), "", tmp_path), None)) == 2


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parts whose commands are played: exit code and seconds by part, and who was called."""
    played: dict[str, Any] = {"calls": [], "codes": {}, "seconds": {}, "log": tmp_path / "calls"}
    monkeypatch.setattr(gpu_check, "STATE", tmp_path / "state")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path / "root")
    monkeypatch.setattr(gpu_check, "_not_built", lambda: played.get("not_built", ""))
    results = tmp_path / "root" / "bench" / "results"
    results.mkdir(parents=True)
    (results / "contrastive_gpu.csv").write_text("run\n")

    def steps(part: str, check: Check, stamps: Stamps | None) -> list[Step]:
        played["calls"].append(part)
        seconds, code = played["seconds"].get(part, 0), played["codes"].get(part, 0)
        text = f"import sys, time; print('here {part}', flush=True); time.sleep({seconds})"
        command = (sys.executable, "-c", f"{text}; sys.exit({code})")
        return [Step(command, unfinished=(gpu_check.LEFT,))]

    monkeypatch.setattr(gpu_check, "steps", steps)
    return played


def check_all(tmp_path: Path, key: str = "k", anew: bool = False) -> tuple[int, dict[str, str]]:
    stamps = Stamps(gpu_check.STATE, key, anew)
    code = gpu_check.run(Check(gpu_check.DEFAULT, "", tmp_path / "out"), FACTS, stamps)
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        return code, {row["part"]: row["result"] for row in csv.DictReader(file)}


def test_all_parts_then_only_what_is_left(story: dict[str, Any], tmp_path: Path) -> None:
    story["codes"]["tests"] = 1
    code, results = check_all(tmp_path)
    assert code == gpu_check.FAILED
    assert results == {
        "machine": "done",
        "build": "done",
        "tests": "failed (exit code 1)",
        "bench": "done",
    }
    assert "here tests" in (tmp_path / "out" / "tests.log").read_text()
    assert "torch: 2.11.0" in (tmp_path / "out" / "machine.log").read_text()
    assert (tmp_path / "out" / "contrastive_gpu.csv").exists()
    story["calls"].clear()
    story["codes"].clear()
    code, results = check_all(tmp_path)
    assert code == gpu_check.OK
    assert results["build"] == "done before"
    assert results["tests"] == "done"
    assert "build" not in story["calls"]


def test_other_sources_and_anew_begin_from_the_start(story: dict[str, Any], tmp_path: Path) -> None:
    check_all(tmp_path)
    passed = gpu_check.STATE / gpu_check.PASSED
    for key, anew in (("other", False), ("other", True)):
        passed.write_text("test_x.py::test_y\n")
        story["calls"].clear()
        check_all(tmp_path, key, anew)
        assert story["calls"] == list(gpu_check.DEFAULT)
        assert not passed.exists()


def test_without_a_build_nothing_is_tested(story: dict[str, Any], tmp_path: Path) -> None:
    story["not_built"] = "failed: no CUDA kernels: nvcc said no"
    code, results = check_all(tmp_path)
    assert code == gpu_check.FAILED
    assert results["build"] == "failed: no CUDA kernels: nvcc said no"
    assert results["tests"] == results["bench"] == "not run"


def test_a_part_that_is_late_is_ended_and_goes_on(
    story: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_check.SECONDS, "tests", 2)
    story["seconds"]["tests"] = 60
    story["codes"]["bench"] = gpu_check.LEFT
    begin = time.monotonic()
    code, results = check_all(tmp_path)
    assert time.monotonic() - begin < 40
    assert code == gpu_check.LEFT
    assert results["tests"] == results["bench"] == "unfinished: call again"
    story["seconds"].clear()
    story["codes"].clear()
    assert check_all(tmp_path)[0] == gpu_check.OK


def test_the_run_of_the_benchmark_keeps_its_name(tmp_path: Path) -> None:
    first = Stamps(tmp_path, "k")
    assert Stamps(tmp_path, "k").run == first.run
    command = gpu_check.steps("bench", Check(("bench",), "contrastive", tmp_path), first)[0].command
    assert command[command.index("--run") + 1] == first.run
    full = gpu_check.steps("bench", Check(("bench",), "", tmp_path), first)
    assert [step.command[step.command.index("--dtype") + 1] for step in full] == [
        "bf16",
        "tf32,fp32",
    ]


def test_fingerprint_follows_the_sources(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    source = tmp_path / "csrc" / "cuda" / "x.cuh"
    source.write_text("int x;")
    first = gpu_check.fingerprint(tmp_path)
    (tmp_path / "csrc" / "notes.txt").write_text("no source")
    assert gpu_check.fingerprint(tmp_path) == first
    source.write_text("int y;")
    assert gpu_check.fingerprint(tmp_path) != first


def test_a_package_without_its_kernels_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "STATE", tmp_path)
    assert gpu_check._not_built() == "failed: no CPU kernels: no record"
    status = tmp_path / "site" / "sslfast" / "native_status.json"
    status.parent.mkdir(parents=True)
    good = {"built": True, "reason": ""}
    status.write_text(json.dumps({**good, "cuda": {"built": False, "reason": "no nvcc"}}))
    assert gpu_check._not_built() == "failed: no CUDA kernels: no nvcc"
    status.write_text(json.dumps({**good, "cuda": good}))
    assert gpu_check._not_built() == ""


def test_tests_that_passed_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run is cut short by a failure; the second takes what is left, then nothing is."""
    (tmp_path / "test_two.py").write_text(
        "import pathlib\n"
        "def test_one(): pass\n"
        "def test_two(): assert pathlib.Path(__file__).with_name('ready').exists()\n"
    )
    passed = tmp_path / "passed.txt"
    monkeypatch.setenv(resume.VARIABLE, str(passed))
    monkeypatch.setenv("PYTEST_PLUGINS", "sslfast.bench.resume")

    def pytest_again() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = pytest_again()
    assert code == 1
    assert "1 failed, 1 passed" in said
    assert resume.passed(passed) == {"test_two.py::test_one"}
    (tmp_path / "ready").touch()
    code, said = pytest_again()
    assert code == 0
    assert "1 passed, 1 deselected" in said
    assert pytest_again()[0] == 5
    monkeypatch.delenv(resume.VARIABLE)
    assert "2 passed" in pytest_again()[1]
