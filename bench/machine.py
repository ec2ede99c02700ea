"""What ran where: versions, processor, load, and the limits that the machine itself has."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from sslfast import _library

PROBES, PROBE_SECONDS = 20, 0.02
COPY_ELEMENTS = 1 << 26  # 256 MiB of float32, beyond any cache


@dataclass(frozen=True)
class Limits:
    """Measured in the process of the case. Empty ``flops`` comes with its reason.

    On a CPU ``flops`` is float32 FLOP/s of a register-only FMA loop by instruction set, on a GPU
    that of the library's matrix product by dtype.
    """

    flops: Mapping[str, float]
    bandwidth: float  # bytes/s of a copy, reads and writes counted
    reason: str = ""

    def peak(self, key: str) -> float | None:
        """FLOP/s of an instruction set or dtype, or the best where the name is not known."""
        return self.flops.get(key) or max(self.flops.values(), default=None)

    def seconds(self, flops: int, moved: int, key: str) -> float | None:
        """The least time that this much arithmetic and traffic can take."""
        peak = self.peak(key)
        return None if peak is None else max(flops / peak, moved / self.bandwidth)


def measure_limits(threads: int) -> Limits:
    """Arithmetic peak of every instruction set and copy bandwidth, in about two seconds.

    The best of many short probes: a neighbour on a shared machine takes a core away for longer
    than a probe lasts.
    """
    reason = _library.missing_reason()
    if reason is not None:
        return Limits({}, copy_bandwidth(), reason)
    probe = import_module("sslfast._native").fma_peak
    flops = dict.fromkeys(_library.supported_isas(), 0.0)
    for _ in range(PROBES):
        for isa, best in flops.items():
            flops[isa] = max(best, float(probe(isa, "float32", PROBE_SECONDS, threads)))
    return Limits(flops, copy_bandwidth())


def best_of(*limits: Limits) -> Limits:
    """The highest of each limit, of readings at different moments of a run."""
    flops = {isa: max(each.flops[isa] for each in limits) for isa in limits[0].flops}
    return Limits(flops, max(each.bandwidth for each in limits), limits[0].reason)


def copy_bandwidth(elements: int = COPY_ELEMENTS, repeats: int = 10) -> float:
    """Bytes/s read and written by torch's copy of a float32 tensor, the best of some."""
    source, target = torch.ones(elements), torch.zeros(elements)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / min(seconds)


def best_isa() -> str:
    """The best instruction set that was compiled and runs here; empty without the library."""
    return (_library.supported_isas() or ("",))[-1]


def load() -> float:
    return os.getloadavg()[0]


def commit() -> str:
    """The commit of the sources, with ``-dirty`` where files differ.

    Outside git it is what ``SSLFAST_COMMIT`` says, as for a copy of a working tree on another
    machine, or ``unknown``.
    """
    root = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SSLFAST_COMMIT") or "unknown"
    return described.stdout.strip()
