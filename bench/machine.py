"""What ran where: versions, processor, load, and the limits that the machine itself has."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from sslfast import _library
from sslfast._core.numerics import float_terms
from sslfast.bench.work import Work

PROBES, PROBE_SECONDS = 20, 0.02
COPY_ELEMENTS = 1 << 26  # 256 MiB of float32, beyond any cache


@dataclass(frozen=True)
class Limits:
    """Measured in the process of the case. Empty ``flops`` comes with its reason.

    On a CPU ``flops`` is float32 FLOP/s of a register-only FMA loop by instruction set, on a GPU
    that of the library's matrix product by dtype. ``products`` is FLOP/s of matrix products in the
    precision of the case, for instruction sets whose matrix instructions take them.
    """

    flops: Mapping[str, float]
    bandwidth: float  # bytes/s of a copy, reads and writes counted
    reason: str = ""
    products: Mapping[str, float] = field(default_factory=dict)

    def peak(self, key: str, *, products: bool) -> float | None:
        """FLOP/s of an instruction set or dtype, or of the best where the name is not known."""
        if not self.flops:
            return None
        best = {**self.flops, **self.products}
        key = key if key in best else max(best, key=lambda name: best[name])
        return best[key] if products else self.flops[key]

    def seconds(self, work: Work, key: str) -> float | None:
        """The least time that this much arithmetic and traffic can take.

        Matrix products and all other arithmetic go on side by side where their units differ.
        """
        matrix, vector = self.peak(key, products=True), self.peak(key, products=False)
        if matrix is None or vector is None:
            return None
        spent = [work.products / matrix, work.others / vector]
        arithmetic = sum(spent) if matrix == vector else max(spent)
        return max(arithmetic, work.moved / self.bandwidth)


def measure_limits(
    threads: int, dtype: torch.dtype = torch.float32, isas: Collection[str] = ()
) -> Limits:
    """Arithmetic peaks of the best and these instruction sets, and copy bandwidth, in a second.

    Products are of matrices of `dtype`, at torch's matmul precision of now. The best of many short
    probes: a neighbour on a shared machine takes a core away for longer than a probe lasts.
    """
    reason = _library.missing_reason()
    if reason is not None:
        return Limits({}, copy_bandwidth(), reason)
    native = import_module("sslfast._native")
    wanted = [isa for isa in _library.supported_isas() if isa in {best_isa(), *isas}]
    taken = {isa: _library.matrix_products(isa, dtype, float_terms()) for isa in wanted}
    flops = dict.fromkeys(wanted, 0.0)
    units = {isa: 0.0 for isa in wanted if taken[isa]}
    for _ in range(PROBES):
        for isa, best in flops.items():
            flops[isa] = max(best, native.fma_peak(isa, "float32", PROBE_SECONDS, threads))
        for isa, best in units.items():
            units[isa] = max(best, native.matrix_peak(isa, PROBE_SECONDS, threads))
    products = {isa: product_rate(flops[isa], units[isa], taken[isa]) for isa in units}
    return Limits(flops, copy_bandwidth(), products=products)


def product_rate(multiply_adds: float, unit: float, taken: int) -> float:
    """FLOP/s of products that take so many of the matrix unit's each, or of multiply-adds."""
    return max(multiply_adds, unit / taken)


def best_of(*limits: Limits) -> Limits:
    """The highest of each limit, of readings at different moments of a run."""
    return Limits(
        _highest(*(each.flops for each in limits)),
        max(each.bandwidth for each in limits),
        limits[0].reason,
        _highest(*(each.products for each in limits)),
    )


def _highest(*rates: Mapping[str, float]) -> dict[str, float]:
    return {name: max(each[name] for each in rates) for name in rates[0]}


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


def isa_of(name: str) -> str:
    """The instruction set that a backend or contestant names, ``cpu:avx2``, else the best."""
    return name.partition(":")[2] or best_isa()


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
