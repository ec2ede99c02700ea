"""The device code of csrc/cuda on the CPU: tests/cpp/emulate.h plays the threads of a block.

A source has a file in the same folder and of the same name in tests/cpp that lists its kernels.
`emulated` sends every launch of a primitive's own launcher there, and every call of a primitive to
its CUDA launcher.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from places import TESTS
from torch import Tensor

from sslfast import _backends, _nvrtc
from sslfast._registry import PRIMITIVES

DEVICE = TESTS / "cpp"  # what stands in for the device
FOLDER = TESTS.parent / "build" / "emulation"
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
def library(name: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels of a primitive under these macros, compiled for the CPU."""
    place = _nvrtc.sources()[name].relative_to(_nvrtc.source_root() / "cuda")
    return ctypes.CDLL(str(compiled(DEVICE / place.with_suffix(".cpp"), defines)))


def compiled(source: Path, defines: tuple[str, ...] = ()) -> Path:
    """A shared library, kept in build/emulation under a name that says what it is made of.

    The processes of a run share it, and so does the next run where no source has changed.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    given = (*OPTIONS, *(f"-D{each}" for each in defines))
    made_of = "\n".join((*given, source.read_text(), _headers(compiler)))
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    path = FOLDER / f"{source.stem}-{digest}.so"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=FOLDER) as folder:
            fresh = Path(folder) / path.name
            command = [compiler, *given, *_include(), "-shared", str(source), "-o", str(fresh)]
            subprocess.run(command, check=True)
            fresh.replace(path)
    return path


def _include() -> list[str]:
    root = _nvrtc.source_root()
    return [f"-I{folder}" for folder in (DEVICE, root, root / "include")]


@cache
def _headers(compiler: str) -> str:
    """Whatever a source may include, and who compiles it."""
    root = _nvrtc.source_root()
    folders = (DEVICE, root / "cuda", root / "include")
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True)
    return "\n".join((version.stdout, *(file.read_text() for file in files)))


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
