"""The device code of csrc/cuda on the CPU: tests/cpp/emulate.h plays the threads of a block.

A source has a file in the same folder and of the same name in tests/cpp that lists its kernels.
`emulated` sends every launch of a primitive's own launcher there, and every call of a primitive to
its CUDA launcher.
"""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from torch import Tensor

from sslfast import _backends, _nvrtc
from sslfast._registry import PRIMITIVES

HERE = Path(__file__).parent
OPTIONS = ("-std=c++20", "-O1", "-w", "-fPIC", "-fsanitize=alignment")


@dataclass(frozen=True)
class Launch:
    """How a kernel was started."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    defines: tuple[str, ...]


class _Start(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("grid", "x", "y", "shared")]


class _Argument(ctypes.Union):
    _fields_ = [
        ("pointer", ctypes.c_void_p),
        ("integer", ctypes.c_longlong),
        ("number", ctypes.c_double),
    ]


@cache
def _folder() -> Path:
    folder = mkdtemp(prefix="sslfast-emulation-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def library(name: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels of a primitive under these macros, compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    root = _nvrtc.source_root()
    include = [f"-I{folder}" for folder in (HERE / "cpp", root, root / "include")]
    given = [*OPTIONS, *include, *(f"-D{each}" for each in defines)]
    path = _folder() / f"{name}-{library.cache_info().misses}.so"
    place = _nvrtc.sources()[name].relative_to(root / "cuda")
    source, compiled = HERE / "cpp" / place.with_suffix(".cpp"), str(path.with_suffix(".o"))
    subprocess.run([compiler, *given, "-c", str(source), "-o", compiled], check=True)
    subprocess.run([compiler, "-shared", compiled, "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def _argument(value: Tensor | int | float) -> _Argument:
    if isinstance(value, Tensor):
        return _Argument(pointer=value.data_ptr())
    return _Argument(integer=value) if isinstance(value, int) else _Argument(number=value)


def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """The body of a fixture: gives the launches, and fails where a read was not aligned."""
    seen: list[Launch] = []
    used: set[ctypes.CDLL] = set()

    def launch(
        name: str,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Tensor | int | float],
        *,
        shared: int = 0,
        defines: tuple[str, ...] = (),
    ) -> None:
        kernels = library(name, defines)
        start = _Start(*grid, *(*block, 1)[:2], shared)
        values = (_Argument * len(arguments))(*map(_argument, arguments))
        seen.append(Launch(kernel, tuple(grid), tuple(block), shared, defines))
        used.add(kernels)
        getattr(kernels, f"emulated_{kernel}")(ctypes.byref(start), values)

    def choose(primitive: object, name: str, *tensors: Tensor | None) -> _backends.Choice:
        implementation = PRIMITIVES[primitive.name].implementations["cuda"]
        return _backends.Choice("cuda:nvrtc", implementation, {"build": "nvrtc"})

    monkeypatch.setattr(_nvrtc, "launch", launch)
    monkeypatch.setattr(_backends, "choose", choose)
    yield seen
    assert not sum(each.emulation_misaligned() for each in used), "reads that are not aligned"
