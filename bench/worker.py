"""The process that one case runs in: reads a request on stdin, writes its result to a file.

``python -m sslfast.bench.worker RESULT`` checks the contestants against the oracle, drops those
that are wrong, and times the others in turns. Peaks need a process without any history for each
contestant: `memory_run` is what `sslfast.testing.peak_memory_of` starts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sslfast.bench import correctness, machine, work
from sslfast.bench.contestants import SSLFAST, Contestant, enter, forward_backward, passes
from sslfast.bench.suite import Case, workloads
from sslfast.bench.timing import interleave


def main(argv: Sequence[str] | None = None) -> int:
    (target,) = sys.argv[1:] if argv is None else argv
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    case = workloads()[request["workload"]].at(request["shape"])
    Path(target).write_text(json.dumps(time_case(case, request)))
    return 0


def time_case(case: Case, request: dict[str, Any]) -> dict[str, Any]:
    """Readings of every contestant that is there and right, and the reasons of the others."""
    load = machine.load()
    present, failures = _enter_all(case, request["contestants"])
    errors, repeatable = {}, {}
    right: list[Contestant] = []
    standard = correctness.Standard(case)
    for contestant in present:
        try:
            verdict = standard.judge(contestant)
            if contestant.name.startswith(SSLFAST):
                repeatable[contestant.name] = correctness.repeatability(case, contestant)
        except (RuntimeError, ValueError, TypeError) as error:
            failures[contestant.name] = _one_line(error)
            continue
        errors[contestant.name] = [verdict.error, verdict.ratio]
        if verdict.failure:
            failures[contestant.name] = verdict.failure
        else:
            right.append(contestant)
    before = machine.measure_limits(request["threads"])
    readings = _time_all(case, right, request["rounds"])
    limits = machine.best_of(before, machine.measure_limits(request["threads"]))
    return {
        "load": load,
        "failures": failures,
        "errors": errors,
        "repeatable": repeatable,
        "readings": readings,
        "work": work.of_case(case, right),
        "peaks": dict(limits.flops),
        "bandwidth": limits.bandwidth,
        "no_peak": limits.reason,
    }


def memory_run(workload: str, shape: dict[str, int], contestant: str) -> Callable[[], object]:
    """What `sslfast.testing.peak_memory_of` measures: forward and backward on ready inputs."""
    case = workloads()[workload].at(shape)
    entered, inputs = enter(case.workload, contestant), case.inputs()
    return lambda: forward_backward(entered, inputs, case.workload.leaves)


def _enter_all(case: Case, names: Sequence[str]) -> tuple[list[Contestant], dict[str, str]]:
    present, failures = [], {}
    for name in names:
        try:
            present.append(enter(case.workload, name))
        except (ImportError, RuntimeError) as error:
            failures[name] = _one_line(error)
    return present, failures


def _time_all(
    case: Case, contestants: Sequence[Contestant], rounds: int | None
) -> dict[str, dict[str, list[float]]]:
    if not contestants:
        return {}
    inputs = case.inputs()
    calls = {contestant.name: passes(case, contestant, inputs) for contestant in contestants}
    readings: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    for what in next(iter(calls.values())):
        taken = interleave({name: named[what] for name, named in calls.items()}, rounds)
        for name, reading in taken.items():
            readings[name][what] = [reading.median, reading.minimum, reading.rounds]
    return readings


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


if __name__ == "__main__":
    sys.exit(main())
