"""The clocks of both devices. A reading is a list: one entry a call.

`CudaClock` takes a pair of events around every call of a reading and empties the L2 cache before
each, so that inputs come from memory as they do in training. Nothing waits between the calls: the
host runs ahead while the cache is being emptied, and what is read is the time on the device. Where
the host needs longer than device and flush together, its launches show in the reading, as they
would in training; ``host`` is the time it needs for one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from sslfast.bench.place import Place

FLUSH_FACTOR = 4  # of the L2 cache, so that whatever its policy nothing is left
LEAST_FLUSH = 64 << 20
WARM_UPS = 3
READING_SECONDS, MOST_CALLS = 0.1, 10
HOST_SECONDS = 25.0


@dataclass(frozen=True)
class Taken:
    """One call: seconds on the device, and seconds of the host where they are not the same."""

    seconds: float
    host: float | None = None


class Clock(Protocol):
    """`budget` seconds are spent on one pass of a case.

    `warm_up` says how many calls a reading takes; `read` takes them.
    """

    budget: float

    def warm_up(self, call: Callable[[], object]) -> int: ...

    def read(self, call: Callable[[], object], count: int) -> list[Taken]: ...


class HostClock:
    """Wall time of one call.

    Args:
        seconds: the budget; `HOST_SECONDS` if ``None``.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.budget = seconds or HOST_SECONDS

    def warm_up(self, call: Callable[[], object]) -> int:
        return 1

    def read(self, call: Callable[[], object], count: int) -> list[Taken]:
        taken = []
        for _ in range(count):
            begin = time.perf_counter()
            call()
            taken.append(Taken(time.perf_counter() - begin))
        return taken


class CudaClock:
    """Device time of each call, every one with a cold L2 cache."""

    budget = 2.0

    def __init__(self) -> None:
        cache = int(getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0))
        self._flushed = torch.empty(
            max(FLUSH_FACTOR * cache, LEAST_FLUSH), dtype=torch.int8, device="cuda"
        )

    def warm_up(self, call: Callable[[], object]) -> int:
        """Compile, tune and load; then as many calls as fit into `READING_SECONDS`."""
        for _ in range(WARM_UPS):
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        spent = time.perf_counter() - begin
        return max(1, min(MOST_CALLS, int(READING_SECONDS / max(spent, 1e-9))))

    def read(self, call: Callable[[], object], count: int) -> list[Taken]:
        marks = [(_event(), _event()) for _ in range(count)]
        host = []
        for begin, end in marks:
            self._flushed.zero_()
            began = time.perf_counter()
            begin.record()
            call()
            end.record()
            host.append(time.perf_counter() - began)
        torch.cuda.synchronize()
        return [
            Taken(begin.elapsed_time(end) / 1e3, spent)
            for (begin, end), spent in zip(marks, host, strict=True)
        ]


def clock_of(place: Place, seconds: float | None = None) -> Clock:
    """The clock of a device; `seconds` is the budget on a CPU."""
    return CudaClock() if place.is_gpu else HostClock(seconds)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
