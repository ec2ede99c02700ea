"""What the GPU is, and the limits it has: its own copy, and its library's matrix product."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from sslfast.bench.clock import CudaClock
from sslfast.bench.machine import Limits
from sslfast.bench.place import Place

GEMM_SIZE = 8192
COPY_BYTES = 4 << 30  # far beyond any cache
COPY_SHARE = 8  # of the free memory at most
READINGS = 10


@dataclass(frozen=True)
class Identity:
    """What the absolute times of a GPU belong to."""

    name: str
    arch: str  # sm_90
    driver: str
    cuda: str  # what torch was built with
    triton: str


@cache
def identity() -> Identity:
    """Of the current device.

    Raises:
        RuntimeError: there is none.
    """
    properties = torch.cuda.get_device_properties()
    return Identity(
        name=properties.name,
        arch=f"sm_{properties.major}{properties.minor}",
        driver=_driver(),
        cuda=torch.version.cuda or "",
        triton=_version("triton"),
    )


def measure_limits(place: Place) -> Limits:
    """Rate of the library's 8192^3 product in this precision, and bandwidth of a device copy."""
    clock = CudaClock()
    return Limits({place.label: _gemm_rate(place, clock)}, _copy_bandwidth(clock))


def _gemm_rate(place: Place, clock: CudaClock) -> float:
    """FLOP/s on random numbers: a product of zeros draws less power and runs faster."""
    generator = torch.Generator("cuda").manual_seed(0)
    left, right = (
        torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda", generator=generator).to(place.dtype)
        for _ in range(2)
    )
    with place.matmul_precision():
        return 2 * GEMM_SIZE**3 / _best(clock, left, right)


def _best(clock: CudaClock, left: torch.Tensor, right: torch.Tensor) -> float:
    product = left @ right  # the library is loaded and has chosen its kernel
    readings = clock.read(lambda: torch.mm(left, right, out=product), READINGS)
    return min(taken.seconds for taken in readings)


def _copy_bandwidth(clock: CudaClock) -> float:
    """Bytes/s read and written."""
    free, _ = torch.cuda.mem_get_info()
    source = torch.ones(min(COPY_BYTES, free // COPY_SHARE), dtype=torch.int8, device="cuda")
    target = torch.zeros_like(source)
    seconds = min(taken.seconds for taken in clock.read(lambda: target.copy_(source), READINGS))
    return 2 * source.nbytes / seconds


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
