"""Interleaved readings: contestants take turns, so that a slow second of the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from sslfast.bench.clock import Clock, HostClock, Taken

FEWEST_ROUNDS, MOST_ROUNDS = 3, 50


@dataclass(frozen=True)
class Reading:
    median: float  # seconds
    minimum: float  # seconds
    rounds: int
    host: float | None = None  # median seconds of the host, where it only launches


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int | None, clock: Clock | None = None
) -> dict[str, Reading]:
    """Time every call once a round, in an order that rotates from round to round.

    Without ``rounds`` there are as many as fit the clock's budget, between 3 and 50. Its warm-up
    and one round go ahead unrecorded.
    """
    clock = clock or HostClock()
    names = list(calls)
    counts = {name: clock.warm_up(call) for name, call in calls.items()}
    begin = time.perf_counter()
    for name, call in calls.items():
        clock.read(call, counts[name])
    rounds = rounds or _affordable(time.perf_counter() - begin, clock.budget)
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name] += clock.read(calls[name], counts[name])
    return {name: _reading(readings, rounds) for name, readings in taken.items()}


def _reading(taken: list[Taken], rounds: int) -> Reading:
    seconds = [each.seconds for each in taken]
    host = [each.host for each in taken if each.host is not None]
    return Reading(median(seconds), min(seconds), rounds, median(host) if host else None)


def _affordable(round_seconds: float, budget: float) -> int:
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(budget / max(round_seconds, 1e-9))))
