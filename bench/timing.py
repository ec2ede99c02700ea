"""Interleaved clocks: contestants take turns, so that a slow second of the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

FEWEST_ROUNDS, MOST_ROUNDS = 3, 50
BUDGET_SECONDS = 25.0


@dataclass(frozen=True)
class Reading:
    median: float  # seconds
    minimum: float  # seconds
    rounds: int


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int | None) -> dict[str, Reading]:
    """Time every call once a round, in an order that rotates from round to round.

    Without ``rounds`` there are as many as fit the budget, between 3 and 50. One round goes
    ahead unrecorded.
    """
    names = list(calls)
    begin = time.perf_counter()
    for call in calls.values():
        call()
    rounds = rounds or _affordable(time.perf_counter() - begin)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - begin)
    return {name: Reading(median(s), min(s), rounds) for name, s in seconds.items()}


def _affordable(round_seconds: float) -> int:
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(BUDGET_SECONDS / max(round_seconds, 1e-9))))
