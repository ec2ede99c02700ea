"""Sends cases to processes of their own and turns what comes back into rows of the ledger."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sslfast._info import cpu_model
from sslfast.bench import gpu, machine
from sslfast.bench.contestants import COMPILE, EAGER, SSLFAST, backends_of, names
from sslfast.bench.ledger import BOTH, Row
from sslfast.bench.place import Place
from sslfast.bench.suite import Case
from sslfast.bench.work import Work
from sslfast.testing import peak_memory_of

MIB, MILLI, GIGA = 1 << 20, 1e3, 1e9
SMALL_PRODUCT = 1 << 30  # rows * rows * width below which a spinning barrier can outweigh the work
PASSIVE = "PASSIVE"
WARM_UP_SIZE = 8


@dataclass(frozen=True)
class Options:
    run: str  # UTC time at which the run began
    threads: int
    rounds: int | None
    backends: tuple[str, ...]  # empty: those that the case's primitives have here
    peers: bool
    memory: bool
    place: Place = field(default_factory=Place)


def measure(case: Case, options: Options) -> list[Row]:
    """The rows of one case, those of failed contestants included.

    Raises:
        RuntimeError: a process of the case ended without a result.
    """
    device = options.place.device
    backends = options.backends or backends_of(case.workload, device)
    found = names(case.workload, backends, options.peers, device)
    contestants = [name for name in found if name not in case.left_out(device)]
    result = _time_without_lost(case, contestants, options)
    peaks = result["memory"]
    if options.memory and not options.place.is_gpu:
        peaks = {name: _peak(case, name, options) for name in result["readings"]}
    rows = []
    for name in contestants:
        rows += _rows(case, name, result, peaks.get(name), options)
    return _against_eager(rows)


def wait_policy(case: Case) -> str:
    """Threads sleep at barriers in small cases: on a shared machine a spin can cost 100x."""
    rows, width = case.rows or 0, case.width or 0
    return PASSIVE if rows * case.shape.get("K", rows) * width < SMALL_PRODUCT else ""


def _time_without_lost(case: Case, contestants: Sequence[str], options: Options) -> dict[str, Any]:
    """The result of a process in which nobody made the GPU unusable; whoever did has failed."""
    remaining, lost = list(contestants), {}
    while True:
        result = _time(case, remaining, options)
        if "lost" not in result:
            result["failures"].update(lost)
            return result
        name, reason = result["lost"]
        remaining.remove(name)
        lost[name] = f"it left the GPU unusable: {reason}"


def _time(case: Case, contestants: Sequence[str], options: Options) -> dict[str, Any]:
    request = {
        "workload": case.workload.name,
        "shape": dict(case.shape),
        "contestants": list(contestants),
        "threads": options.threads,
        "rounds": options.rounds,
        "place": astuple(options.place),
        "memory": options.memory,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment.pop("OMP_WAIT_POLICY", None)
    if wait_policy(case):
        environment["OMP_WAIT_POLICY"] = wait_policy(case)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "result.json")
        finished = subprocess.run(
            [sys.executable, "-m", "sslfast.bench.worker", str(target)],
            input=json.dumps(request),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if finished.returncode != 0 or not target.exists():
            last = finished.stderr.strip().splitlines()[-1:] or ["no output"]
            raise RuntimeError(f"{case.name}: its process ended ({finished.returncode}): {last[0]}")
        result: dict[str, Any] = json.loads(target.read_text())
        return result


def _peak(case: Case, contestant: str, options: Options) -> int:
    """Peak bytes above the inputs. A compiled form is warmed up at its only size."""
    sizes = {
        "workload": case.workload.name,
        "shape": dict(case.shape),
        "contestant": contestant,
        "place": astuple(options.place),
    }
    small = dict.fromkeys(case.shape, WARM_UP_SIZE) if contestant != COMPILE else dict(case.shape)
    return peak_memory_of(
        "sslfast.bench.worker:memory_run",
        sizes,
        warm_up={**sizes, "shape": small},
        threads=options.threads,
    )


def _rows(
    case: Case, name: str, result: dict[str, Any], peak: int | None, options: Options
) -> list[Row]:
    row = _identity(case, name, result.get("load", 0.0), options)
    error, ratio = result["errors"].get(name, (None, None))
    if name in result["failures"]:
        return [replace(row, error=error, failure=result["failures"][name])]
    limits = machine.Limits(**result["limits"])
    rows = []
    for what, (median, minimum, rounds, host) in result["readings"][name].items():
        both = what == BOTH
        measured = replace(
            row,
            what=what,
            rounds=int(rounds),
            median_ms=median * MILLI,
            min_ms=minimum * MILLI,
            host_ms=None if host is None else host * MILLI,
            peak_mib=peak / MIB if both and peak is not None else None,
            error=error,
            error_ratio=None if name == EAGER else ratio,
            repeatable=result["repeatable"].get(name, ""),
            backends=result["backends"].get(name, "") if options.place.is_gpu else "",
        )
        counted = result["work"].get(what)
        rows.append(_with_rates(measured, limits, counted and Work(*counted), minimum))
    return rows


def _with_rates(row: Row, limits: machine.Limits, work: Work | None, seconds: float) -> Row:
    """Rates on the formula of the primitives; others are held against the same least time."""
    row = replace(row, peak_gbytes=limits.bandwidth / GIGA)
    key = row.dtype if row.driver else row.isa
    peak = limits.peak(key, products=work is None or work.products > 0)
    if peak is not None:
        row = replace(row, peak_gflops=peak / GIGA)
    if work is None or not any(work):  # no primitive was called
        return row
    least = limits.seconds(work, key)
    if not row.contestant.startswith(SSLFAST):
        return replace(row, best_possible=least and seconds / least)
    return replace(
        row,
        gflops=work.flops / seconds / GIGA,
        gbytes=work.moved / seconds / GIGA,
        percent_of_limit=least and 100 * least / seconds,
    )


def _against_eager(rows: Sequence[Row]) -> list[Row]:
    """Fill in the ratios of minima and of peaks to the eager row of the same pass."""
    eager = {row.what: row for row in rows if row.contestant == EAGER and not row.failure}
    compared = []
    for row in rows:
        base = eager.get(row.what)
        if base is not None and not row.failure:
            faster = _ratio(base.min_ms, row.min_ms)
            row = replace(
                row, times_faster=faster, times_smaller=_ratio(base.peak_mib, row.peak_mib)
            )
        compared.append(row)
    return compared


def _ratio(base: float | None, value: float | None) -> float | None:
    return base / value if base and value else None


def _identity(case: Case, name: str, load: float, options: Options) -> Row:
    peer = case.workload.peers.get(name)
    row = Row(
        run=options.run,
        commit=machine.commit(),
        sslfast=_version("sslfast"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=cpu_model(),
        isa=machine.isa_of(name),
        threads=options.threads,
        wait_policy=wait_policy(case),
        load=load,
        family=case.workload.family,
        case=case.name,
        subject=case.workload.subject,
        N=case.rows,
        D=case.width,
        dtype=options.place.label,
        contestant=name,
        version=peer.version if peer is not None else "",
        what="",
        rounds=0,
    )
    if not options.place.is_gpu:
        return row
    found = gpu.identity()
    return replace(
        row,
        device=found.name,
        isa=found.arch,
        driver=found.driver,
        cuda=found.cuda,
        triton=found.triton,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
