"""The process that one case runs in: reads a request on stdin, writes its result to a file.

``python -m sslfast.bench.worker RESULT`` checks the contestants against the oracle, drops those
that are wrong, and times the others in turns. On a CPU peaks need a process without any history
for each contestant: `memory_run` is what `sslfast.testing.peak_memory_of` starts. On a GPU the
allocator counts, so they are measured here.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sslfast.bench import correctness, gpu, machine, work
from sslfast.bench.clock import clock_of
from sslfast.bench.contestants import SSLFAST, Contestant, enter, forward_backward, passes
from sslfast.bench.place import Place
from sslfast.bench.suite import Case, Inputs, workloads
from sslfast.bench.timing import interleave

Readings = dict[str, dict[str, list[float | None]]]


def main(argv: Sequence[str] | None = None) -> int:
    (target,) = sys.argv[1:] if argv is None else argv
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    case = workloads()[request["workload"]].at(request["shape"])
    Path(target).write_text(json.dumps(time_case(case, request)))
    return 0


def time_case(case: Case, request: dict[str, Any]) -> dict[str, Any]:
    """Readings of every contestant that is there and right, and the reasons of the others."""
    place = Place(*request.get("place", ()))
    place.require()
    load = machine.load()
    present, failures = _enter_all(case, request["contestants"])
    inputs = case.inputs(place)
    with place.matmul_precision():
        errors, repeatable, right = _judge_all(case, present, failures, place, inputs)
        if "lost" in failures:
            return {"lost": failures["lost"]}  # who lost it and how
        before = _limits(place, request["threads"], right)
        readings = _time_all(case, right, request["rounds"], place, inputs)
        limits = machine.best_of(before, _limits(place, request["threads"], right))
        wanted = right if place.is_gpu and request.get("memory") else []
        return {
            "load": load,
            "failures": failures,
            "errors": errors,
            "repeatable": repeatable,
            "readings": readings,
            "memory": {each.name: _device_peak(case, each, inputs, place) for each in wanted},
            "work": work.of_case(right, inputs, place) if case.workload.counted else {},
            "backends": work.backends_of(right, inputs, place),
            "limits": asdict(limits),
        }


def memory_run(
    workload: str, shape: dict[str, int], contestant: str, place: Sequence[str] = ()
) -> Callable[[], object]:
    """What `sslfast.testing.peak_memory_of` measures: forward and backward on ready inputs."""
    case, where = workloads()[workload].at(shape), Place(*place)
    entered, inputs = enter(case.workload, contestant), case.inputs(where)

    def run() -> object:
        with where.matmul_precision():
            return forward_backward(entered, inputs, case.workload.leaves, where)

    return run


def _enter_all(case: Case, names: Sequence[str]) -> tuple[list[Contestant], dict[str, Any]]:
    present: list[Contestant] = []
    failures: dict[str, Any] = {}
    for name in names:
        try:
            present.append(enter(case.workload, name))
        except Exception as error:  # of any library; its name and reason are reported
            failures[name] = _one_line(error)
    return present, failures


def _judge_all(
    case: Case,
    present: Sequence[Contestant],
    failures: dict[str, Any],
    place: Place,
    inputs: Inputs,
) -> tuple[dict[str, list[float]], dict[str, str], list[Contestant]]:
    """Errors, repeatability, and who is right; the reasons of the others go into `failures`."""
    errors: dict[str, list[float]] = {}
    repeatable: dict[str, str] = {}
    right: list[Contestant] = []
    standard = correctness.Standard(case, place)
    for contestant in present:
        try:
            verdict = standard.judge(contestant)
            if contestant.name.startswith(SSLFAST):
                repeatable[contestant.name] = correctness.repeatability(
                    case, contestant, place, inputs
                )
            place.synchronize()
        except Exception as error:  # of any library; its name and reason are reported
            if _device_is_lost(place):
                failures["lost"] = [contestant.name, _one_line(error)]
                break
            failures[contestant.name] = _one_line(error)
            continue
        finally:
            gc.collect()
        place.release()
        errors[contestant.name] = [verdict.error, verdict.ratio]
        if verdict.failure:
            failures[contestant.name] = verdict.failure
        else:
            right.append(contestant)
    return errors, repeatable, right


def _device_is_lost(place: Place) -> bool:
    """After an illegal access every further call of this process fails."""
    try:
        place.synchronize()
    except RuntimeError:
        return True
    return False


def _limits(place: Place, threads: int, contestants: Sequence[Contestant]) -> machine.Limits:
    if place.is_gpu:
        return gpu.measure_limits(place)
    isas = {machine.isa_of(each.name) for each in contestants}
    return machine.measure_limits(threads, place.dtype, isas)


def _time_all(
    case: Case,
    contestants: Sequence[Contestant],
    rounds: int | None,
    place: Place,
    inputs: Inputs,
) -> Readings:
    if not contestants:
        return {}
    clock = clock_of(place, case.workload.seconds)
    calls = {each.name: passes(case, each, inputs, place) for each in contestants}
    readings: Readings = {name: {} for name in calls}
    for what in next(iter(calls.values())):
        taken = interleave({name: named[what] for name, named in calls.items()}, rounds, clock)
        for name, reading in taken.items():
            readings[name][what] = [reading.median, reading.minimum, reading.rounds, reading.host]
    return readings


def _device_peak(case: Case, contestant: Contestant, inputs: Inputs, place: Place) -> int:
    """Most bytes that the allocator had handed out above those before, gradients included."""
    gc.collect()
    place.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = forward_backward(contestant, inputs, contestant.leaves(case), place)
    place.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


if __name__ == "__main__":
    sys.exit(main())
