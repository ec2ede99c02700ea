"""``make gpu-check``: build, gpu tests, benchmark and ledger rows on a machine with an NVIDIA GPU.

Runs on a bare machine, from the sources alone: Python with `MODULES`, `PROGRAMS`, no network, no
environment of its own. Nothing is installed into the machine: the package goes to
``build/gpu-check/site``, libraries that lie as wheels in the folder WHEELS to
``build/gpu-check/peers``.

The parts are done in order, each within a time of its own, and stamped: a further call goes on
where one stopped, by tests and cases, until the sources change. PART names parts with commas; the
name of a family (``contrastive``) stands for its build, tests and benchmark, in `FAMILY_LIMIT`
seconds. Logs, ledger and ``summary.csv`` go to OUT. This file needs Python's own library alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / "build" / "gpu-check"
PARTS = ("machine", "build", "tests", "bench", "sanitize")
DEFAULT = ("machine", "build", "tests", "bench")
SECONDS = {"machine": 90, "build": 240, "tests": 420, "bench": 900, "sanitize": 300}
FAMILY_SECONDS = {"machine": 40, "build": 180, "tests": 150, "bench": 300}
FAMILY_LIMIT = 470  # of all parts together
GRACE = 60  # seconds that the last case of a benchmark may take beyond its time
MOST_WORKERS = 8
PASSED = "passed.txt"  # tests that need not run again
SOURCE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")

MODULES = ("torch", "triton", "pybind11", "setuptools", "pytest", "rich", "numpy")
PROGRAMS = ("nvidia-smi", "nvcc", "cmake", "ninja")
FACTS = """
import importlib.metadata as m, importlib.util as u, json, sys
facts = {"python": sys.version.split()[0], "gpu": "", "missing": []}
for name in %r:
    if u.find_spec(name) is None:
        facts["missing"].append(name)
for name in ("torch", "triton", "cupy-cuda13x", "cuda-bindings", "pytest-xdist", *%r):
    try:
        facts[name] = m.version(name)
    except m.PackageNotFoundError:
        facts[name] = ""
if "torch" not in facts["missing"]:
    import torch
    facts["torch"], facts["cuda"] = torch.__version__, torch.version.cuda or ""
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
print("FACTS" + json.dumps(facts))
"""
SANITIZED = "test_values_and_gradients and ragged and (fp32 or bf16) and not reference"

DONE, BEFORE, UNFINISHED, NOT_RUN = "done", "done before", "unfinished: call again", "not run"
OK, FAILED, NO_GPU, LEFT = 0, 1, 2, 3


@dataclass(frozen=True)
class Check:
    """What was asked for and where it goes."""

    parts: tuple[str, ...]
    family: str  # empty: all
    out: Path
    wheels: Path | None = None
    begun: float = field(default_factory=time.monotonic)

    def seconds(self, part: str) -> float:
        """What a part may take."""
        return FAMILY_SECONDS[part] if self.family else SECONDS[part]

    def seconds_left(self, part: str) -> float:
        """The same, or what is left of the family's whole time."""
        left = FAMILY_LIMIT - (time.monotonic() - self.begun) if self.family else float("inf")
        return min(self.seconds(part), max(left, 1.0))


@dataclass(frozen=True)
class Step:
    """One command of a part, with its exit codes that are no failure."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    good: tuple[int, ...] = (0,)
    unfinished: tuple[int, ...] = ()


class Stamps:
    """What is done, kept from call to call as long as sources and machine are the same."""

    def __init__(self, folder: Path, key: str, anew: bool = False) -> None:
        self._path = folder / "stamps.json"
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        if anew or kept.get("key") != key:
            (folder / PASSED).unlink(missing_ok=True)
            kept = {"key": key, "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self._kept: dict[str, Any] = {"done": {}, **kept}
        self._write()

    @property
    def run(self) -> str:
        return str(self._kept["run"])  # its name in the ledger

    def seconds(self, name: str) -> float | None:
        found: float | None = self._kept["done"].get(name)
        return found

    def stamp(self, name: str, seconds: float) -> None:
        self._kept["done"][name] = seconds
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._kept) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        check = parse(args.part, Path(args.out), args.wheels)
    except ValueError as error:
        print(f"gpu-check: error: {error}", file=sys.stderr)
        return NO_GPU
    if args.dry_run:
        _print_plan(check, "would run")
        return OK
    facts = machine_facts()
    reason = why_not(facts)
    if reason:
        print(f"gpu-check: it cannot run here: {reason}", file=sys.stderr)
        _print_plan(check, "would have run")
        return NO_GPU
    return run(check, facts, Stamps(STATE, f"{fingerprint(ROOT)} {facts}", args.anew))


def parse(part: str, out: Path, wheels: str) -> Check:
    """The parts by name, in their order.

    Raises:
        ValueError: a name is neither a part nor a family, or WHEELS is no folder.
    """
    wanted = [name for name in part.split(",") if name] or list(DEFAULT)
    families = [name for name in wanted if name not in PARTS]
    for name in families:
        if name.startswith("_") or not (ROOT / "sslfast" / "losses" / name).is_dir():
            raise ValueError(f"PART must be of {', '.join(PARTS)} or a family, got {name!r}")
    if families and len(wanted) > 1:
        raise ValueError(f"PART takes one family alone, got {part!r}")
    if wheels and not Path(wheels).is_dir():
        raise ValueError(f"WHEELS must be a folder, got {wheels!r}")
    chosen = DEFAULT if families else tuple(name for name in PARTS if name in wanted)
    folder = Path(wheels).resolve() if wheels else None
    return Check(chosen, "".join(families), out.resolve(), folder)


def machine_facts() -> dict[str, Any]:
    """Versions, the GPU by name (empty: none), and what is missing, asked in another process."""
    done = subprocess.run(
        [sys.executable, "-c", FACTS % (MODULES, peers())],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS")]
    if not lines:
        told = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return {"gpu": "", "missing": [f"a torch that imports ({told[0]})"]}
    facts: dict[str, Any] = json.loads(lines[-1].removeprefix("FACTS"))
    facts["missing"] += [name for name in PROGRAMS if shutil.which(name) is None]
    return facts


def peers() -> list[str]:
    """Names of the libraries that may be there to be measured against."""
    lines = "\n".join(path.read_text() for path in sorted((ROOT / "bench").glob("peers*.txt")))
    return [line.partition("==")[0] for line in lines.splitlines() if line and line[0] != "#"]


def why_not(facts: dict[str, Any]) -> str:
    """Why the check cannot run on this machine; empty where it can."""
    if not facts["gpu"] and facts.get("torch"):
        why = "sees none" if facts.get("cuda") else "was built without CUDA"
        return f"there is no GPU: torch {facts['torch']} {why}"
    if facts["missing"]:
        return f"missing: {', '.join(facts['missing'])}"
    return ""


def fingerprint(root: Path) -> str:
    """Of everything that is built or run; another one begins anew."""
    found = hashlib.sha256()
    paths = [root / name for name in ("setup.py", "CMakeLists.txt", "pyproject.toml")]
    for folder in ("sslfast", "bench", "csrc", "tests"):
        paths += (p for p in (root / folder).rglob("*") if p.suffix in SOURCE_SUFFIXES)
    for path in sorted(paths):
        if path.exists():
            found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


def steps(part: str, check: Check, stamps: Stamps | None) -> list[Step]:
    """The commands of a part, run in ``build/gpu-check/site`` beside the installed package."""
    python, site, peers = sys.executable, STATE / "site", STATE / "peers"
    if part == "machine":
        return [Step(("nvidia-smi",)), Step(("nvcc", "--version"))]
    if part == "build":
        install = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-index")
        offline = (*install, "--no-deps", "--upgrade", "--target")
        archs = {"SSLFAST_CUDA_ARCHS": os.environ.get("SSLFAST_CUDA_ARCHS", "native")}
        package = Step((*offline, str(site), "--no-build-isolation", str(ROOT)), archs)
        found = sorted(check.wheels.glob("*.whl")) if check.wheels else []
        wheels = [Step((*offline, str(peers), *map(str, found)))] if found else []
        return [package, *wheels, Step((python, "-m", "sslfast.cli", "info"))]
    if part == "bench":
        return _bench(check, stamps)
    # Only the files that have such tests: others may need packages that are not there.
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    pytest = (python, "-m", "pytest", *sorted(map(str, files)), "-m", "gpu", "-q", "--tb=short")
    pytest += ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider")
    family = {"SSLFAST_FAMILY": check.family, "SSLFAST_REQUIRE_GPU": "1"}
    if part == "sanitize":
        sanitizer = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
        memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return [Step((*sanitizer, *pytest, "-k", SANITIZED), {**family, **memory})]
    resume = {"SSLFAST_RESUME": str(STATE / PASSED), "PYTEST_PLUGINS": "sslfast.bench.resume"}
    pytest += (
        "--continue-on-collection-errors",
        "--durations=10",
        f"--junitxml={check.out / 'tests.xml'}",
        *_workers(),
    )
    # 5: every test is deselected, since all passed before.
    again = (0, 5) if (STATE / PASSED).exists() else (0,)
    return [Step(pytest, {**family, **resume}, good=again)]


def _bench(check: Check, stamps: Stamps | None) -> list[Step]:
    run = stamps.run if stamps else "RUN"
    family = (check.family,) if check.family else ()
    command = (sys.executable, "-m", "sslfast.cli", "bench", *family)
    command += ("--device", "cuda", "--output", str(ROOT / "bench" / "results"), "--run", run)
    # Large matrices in half precision are what people train with; float32 at one size each.
    half = Step((*command, "--dtype", "bf16"), unfinished=(LEFT,))
    single = ("--dtype", "tf32,fp32", "--first", "--no-peers")
    return [half] if check.family else [half, Step((*command, *single), unfinished=(LEFT,))]


def _workers() -> tuple[str, ...]:
    """Kernels are compiled on half of the processors, where pytest-xdist is there."""
    count = min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2)
    there = importlib.util.find_spec("xdist") is not None
    return ("-n", str(count)) if there and count > 1 else ()


def run(check: Check, facts: dict[str, Any], stamps: Stamps) -> int:
    """All parts; 0, or 1 where one failed, or 3 where a further call has to go on."""
    check.out.mkdir(parents=True, exist_ok=True)
    (STATE / "site").mkdir(parents=True, exist_ok=True)
    results: dict[str, tuple[float, str]] = {}
    broken = False
    for part in check.parts:
        name = f"{part}:{check.family}" if part == "tests" else part
        before = stamps.seconds(name) if part in ("build", "tests", "sanitize") else None
        if broken:
            results[part] = (0.0, NOT_RUN)
        elif before is not None:
            results[part] = (before, BEFORE)
        else:
            results[part] = seconds, result = _run_part(part, check, facts, stamps)
            if result == DONE:
                stamps.stamp(name, seconds)
            # What is not built cannot be tested; what fails a test may still be measured.
            broken = part == "build" and result != DONE
    for path in (ROOT / "bench" / "results").glob("*_gpu.csv"):
        shutil.copy2(path, check.out)
    _summarise(check, facts, results)
    wrong = {result for _, result in results.values()} - {DONE, BEFORE}
    return FAILED if wrong - {UNFINISHED} else LEFT if wrong else OK


def _run_part(part: str, check: Check, facts: dict[str, Any], stamps: Stamps) -> tuple[float, str]:
    begin, limit = time.monotonic(), check.seconds_left(part)
    result = DONE
    if part == "build":  # modules that were renamed since must not enter the package
        for stale in (ROOT / "build").glob("lib*"):
            shutil.rmtree(stale)
    with (check.out / f"{part}.log").open("w") as log:
        if part == "machine":
            _tell(log, "".join(f"{name}: {value}\n" for name, value in facts.items()))
        for step in steps(part, check, stamps):
            left = limit - (time.monotonic() - begin)
            if result == DONE or part == "bench":
                found = _run_step(step, part, left, log)
                result = found if result == DONE else result
    if part == "build" and result == DONE:
        result = _not_built() or DONE
    return time.monotonic() - begin, result


def _run_step(step: Step, part: str, left: float, log: Any) -> str:
    command = list(step.command)
    if part == "bench":
        command += ["--budget", str(max(1, int(left - GRACE)))]
    environment = {**os.environ, **step.environment}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(STATE / "site"), str(STATE / "peers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    _tell(log, f"$ {' '.join(command)}\n")
    code = _stream(command, environment, left, log)
    if code in step.good:
        return DONE
    return UNFINISHED if code in (None, *step.unfinished) else f"failed (exit code {code})"


def _stream(command: list[str], environment: dict[str, str], limit: float, log: Any) -> int | None:
    """Exit code with the output in log and terminal; None where the time ended first."""
    process = subprocess.Popen(
        command,
        cwd=STATE / "site",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = threading.Event()

    def end(sent: signal.Signals) -> None:
        late.set()
        if process.poll() is None:
            os.killpg(process.pid, sent)

    after = {max(limit, 1.0): signal.SIGINT, max(limit, 1.0) + 15: signal.SIGKILL}
    timers = [threading.Timer(seconds, end, [sent]) for seconds, sent in after.items()]
    for timer in timers:
        timer.daemon = True
        timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        _tell(log, line)
    code = process.wait()
    for timer in timers:
        timer.cancel()
    return None if late.is_set() else code


def _tell(log: Any, text: str) -> None:
    log.write(text)
    log.flush()
    print(text, end="", flush=True)


def _not_built() -> str:
    """Why a build that pip calls a success has not all kernels; empty where it has."""
    status = STATE / "site" / "sslfast" / "native_status.json"
    kept = json.loads(status.read_text()) if status.exists() else {}
    for kernels, each in (("CPU", kept), ("CUDA", kept.get("cuda", {}))):
        if not each.get("built"):
            return f"failed: no {kernels} kernels: {each.get('reason', 'no record')}"
    return ""


def _summarise(check: Check, facts: dict[str, Any], results: dict[str, tuple[float, str]]) -> None:
    print(f"\ngpu-check on {facts['gpu']}, torch {facts['torch']}, logs in {check.out}")
    with (check.out / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("part", "seconds", "result"))
        for part, (seconds, result) in results.items():
            writer.writerow((part, f"{seconds:.1f}", result))
            print(f"{part:<10}{seconds:>8.1f} s  {result}")


def _print_plan(check: Check, verb: str) -> None:
    print(f"gpu-check {verb}:")
    for part in check.parts:
        print(f"{part}, at most {check.seconds(part)} s")
        for step in steps(part, check, None):
            settings = "".join(f"{name}={value} " for name, value in step.environment.items())
            print(f"    {settings}{' '.join(step.command)}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", default="", help=f"of {', '.join(PARTS)}, or a family")
    parser.add_argument("--out", default=str(ROOT / "runs" / "gpu-check"), help="logs and tables")
    parser.add_argument("--wheels", default="", help="folder with wheels of other libraries")
    parser.add_argument("--anew", action="store_true", help="forget what is done already")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
