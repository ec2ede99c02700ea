"""Compiles the CUDA C++ kernels for chips that are not here, with the options of a real run.

A kernel has one cubin for an architecture and a set of macros, whatever is launched, so its name
says its dtype and it has one row; the warps are those of the largest block that it is compiled for.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from sslfast import _nvrtc
from sslfast._registry import Primitive
from sslfast.bench.resources import Row
from sslfast.cuda import specialisations
from sslfast.triton._launch import TARGETS

WARP = 32
RESERVED_SHARED = 1024  # bytes that the system takes of every block since compute capability 9.0
CASES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
NO_CUOBJDUMP = (
    "cuobjdump is neither on PATH nor in triton, which brings one: pip install 'sslfast[triton]'"
)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes, by a thread (registers, bytes of stack and local memory) and a block."""

    registers: int
    stack: int
    local: int
    shared: int
    threads: int


def missing() -> str | None:
    return _nvrtc.missing_compiler() or (None if _cuobjdump() else NO_CUOBJDUMP)


def rows(
    primitives: Sequence[Primitive], archs: Sequence[str], jobs: int, brief: bool = False
) -> list[Row]:
    """See `sslfast.bench.resources`; brief: the first and the last set of macros of a source."""
    wanted = [
        (each.name, arch, defines)
        for each in primitives
        for arch in archs
        if not TARGETS[arch].is_amd
        for defines in _first_and_last(specialisations(each.name), brief)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        return [row for rows in pool.map(_rows, *zip(*wanted, strict=True)) for row in rows]


def _first_and_last(sets: Sequence[_nvrtc.Defines], brief: bool) -> Sequence[_nvrtc.Defines]:
    return sorted({sets[0], sets[-1]}) if brief else sets


def _rows(primitive: str, arch: str, defines: _nvrtc.Defines) -> list[Row]:
    number = int(arch.removeprefix("sm_"))
    cubin = _nvrtc.compile_source(primitive, _nvrtc.architecture(*divmod(number, 10)), defines)
    found = []
    for name, used in usage(cubin).items():
        kernel, _, dtype = name.rpartition("_")
        row = Row(
            backend="cuda",
            primitive=primitive,
            kernel=kernel,
            arch=arch,
            case=CASES[dtype],
            constants=" ".join(each.removeprefix("SSLFAST_") for each in defines),
            warps=used.threads // WARP,
            stages=0,
            registers=used.registers,
            spills=used.stack + used.local,
            shared=used.shared - (RESERVED_SHARED if number >= 90 else 0),
            tensor_memory=0,
            matrix="",
            compiler=f"NVRTC {_nvrtc.version()}",
        )
        found.append(row)
    return found


def usage(cubin: bytes) -> dict[str, Usage]:
    """What every kernel of a cubin takes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernels.cubin")
        Path(path).write_bytes(cubin)
        report, listing = (
            subprocess.run(
                [_cuobjdump(), option, path], check=True, capture_output=True, text=True
            ).stdout
            for option in ("--dump-resource-usage", "--dump-elf")
        )
    used = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", report)
    largest = dict(
        re.findall(
            r"^\.nv\.info\.(\w+)$(?:(?!^\.nv).)*?EIATTR_MAX_THREADS\s.*?Value:\s+(0x\w+) ",
            listing,
            re.MULTILINE | re.DOTALL,
        )
    )
    assert used, report
    return {
        name: Usage(int(registers), int(stack), int(local), int(shared), int(largest[name], 16))
        for name, registers, stack, shared, local in used
    }


def _cuobjdump() -> str | None:
    found = which("cuobjdump")
    if found is None and find_spec("triton") is not None:
        from triton import knobs

        found = knobs.nvidia.cuobjdump.path
    return found
