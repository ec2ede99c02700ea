"""Compiles the CUDA sources of the package on first use, where no prebuilt library can run.

NVRTC (through ``cuda.bindings``) makes a cubin for the very GPU that is there; it needs neither a
driver nor a CUDA toolkit. The cubin is kept in memory and under ``$XDG_CACHE_HOME/sslfast/nvrtc``
(``~/.cache`` by default), under a name that depends on sources, options and compiler. CuPy loads
it and launches its kernels on torch's current stream; that part needs a driver.

A source may leave something open, such as the length of its loops: macros say it, and each set of
them makes a cubin of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Defines = tuple[str, ...]  # macros: ("SSLFAST_N=11",)

INSTALL = "pip install 'sslfast[cuda]'"
DIGEST_BYTES = hashlib.sha256().digest_size

_PACKAGE = Path(__file__).parent


class CompileError(RuntimeError):
    """NVRTC refused a source; the message holds its log."""


@cache
def missing_compiler() -> str | None:
    """Why nothing can be compiled here, ``None`` if it can. Needs no GPU."""
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        return f"cuda-bindings cannot be imported ({error}): {INSTALL}"
    try:
        _check(nvrtc.nvrtcVersion())
    except Exception as error:  # the bindings raise errors of several kinds for an absent library
        return f"NVRTC cannot be loaded ({' '.join(str(error).split())[:200]}): {INSTALL}"
    if not sources():
        return f"the CUDA sources are not where they belong, under {source_root()}"
    return None


@cache
def missing_reason() -> str | None:
    """Why no kernel can be compiled and launched on a GPU that is there, ``None`` if it can."""
    reason = missing_compiler()
    if reason is None and find_spec("cupy") is None:
        return f"cupy is not installed: {INSTALL}"
    return reason


@cache
def source_root() -> Path:
    """The folder of the CUDA and shared sources: in the package, or beside it in a checkout."""
    installed = _PACKAGE / "csrc"
    return installed if installed.is_dir() else _PACKAGE.parent / "csrc"


def sources() -> dict[str, Path]:
    """What can be compiled: the file of each primitive that has CUDA kernels, by its name.

    Files lie in the folder of their family; what they are of is told by the names of their
    kernels, ``<primitive>_fwd_kernel_...``.
    """
    found = {}
    for file in sorted((source_root() / "cuda").rglob("*.cuh")):
        text = file.read_text()
        kernel = re.search(r"\b(\w+)_fwd_kernel_", text)
        if kernel is not None and "__global__" in text:
            found[kernel[1]] = file
    return found


def architecture(major: int, minor: int) -> str:
    """What to compile for a compute capability: since 9.0 with all that only this chip has."""
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


def options(arch: str, defines: Defines = ()) -> tuple[str, ...]:
    """The compiler's options for an architecture such as ``"sm_90a"``, the folders last."""
    root = source_root()
    given = (f"--gpu-architecture={arch}", "--std=c++17", *(f"-D{each}" for each in defines))
    return (*given, f"-I{root}", f"-I{root / 'include'}")


def compile_source(name: str, arch: str, defines: Defines = ()) -> bytes:
    """The cubin of a primitive's kernels.

    Args:
        name: one of `sources`.
        arch: as `architecture` gives it.
        defines: macros, as in `sslfast.cuda.specialisations`.

    Raises:
        CompileError: with the compiler's log.
    """
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    path = sources()[name]
    program = _check(nvrtc.nvrtcCreateProgram(path.read_bytes(), path.name.encode(), 0, None, None))
    given = [option.encode() for option in options(arch, defines)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
    try:
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytes(_check(nvrtc.nvrtcGetProgramLogSize(program)))
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode(errors="replace").strip() or str(status)
            what = " ".join((path.name, *defines))
            raise CompileError(f"NVRTC {version()} cannot compile {what} for {arch}:\n{text}")
        cubin = bytes(_check(nvrtc.nvrtcGetCUBINSize(program)))
        _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return cubin


def version() -> str:
    """Of the compiler: ``"13.0"``."""
    major, minor = _check(importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion())
    return f"{major}.{minor}"


@cache
def cubin(name: str, arch: str, defines: Defines = ()) -> bytes:
    """As `compile_source`, from memory or disk where it has been compiled before."""
    path = cache_folder() / f"{name}-{arch}-{_key(arch, defines)}.cubin"
    kept = _read(path)
    if kept is not None:
        return kept
    fresh = compile_source(name, arch, defines)
    _write(path, fresh)
    return fresh


def cache_folder() -> Path:
    """Where cubins are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sslfast" / "nvrtc"


def _key(arch: str, defines: Defines) -> str:
    """Of all that a cubin depends on: any of the sources may be included by another."""
    root = source_root()
    state = hashlib.sha256(repr((version(), options(arch, defines)[:-2])).encode())
    for file in sorted((*root.glob("cuda/**/*.cuh"), *root.glob("include/**/*.h"))):
        state.update(f"\0{file.relative_to(root)}\0".encode() + file.read_bytes())
    return state.hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    """A kept cubin without its digest, which stands at its end; ``None`` if absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    kept, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return kept if kept and hashlib.sha256(kept).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    """Put a cubin in its place in one step, so that no process ever reads half of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content + hashlib.sha256(content).digest())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        warnings.warn(f"compiled kernels cannot be kept: {error}", stacklevel=2)


def launch(
    name: str,
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Tensor | int | float],
    *,
    shared: int = 0,
    defines: Defines = (),
) -> None:
    """Start a kernel on torch's current stream of the device of its first tensor.

    Args:
        name: of the source, see `sources`.
        kernel: its ``extern "C"`` name.
        grid, block: blocks, and threads of a block, by dimension.
        arguments: tensors become pointers, ints ``long long``, floats ``double``.
        shared: bytes of shared memory of a block beyond what the kernel declares.
        defines: macros that its source is compiled with, as in `sslfast.cuda.specialisations`.
    """
    cupy = importlib.import_module("cupy")
    numpy = importlib.import_module("numpy")
    device = next(each.device for each in arguments if isinstance(each, Tensor))
    values = [
        numpy.int64(each.data_ptr())
        if isinstance(each, Tensor)
        else numpy.int64(each)
        if isinstance(each, int)
        else numpy.float64(each)
        for each in arguments
    ]
    with torch.cuda.device(device):
        stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
        function = _function(name, kernel, device.index, defines)
        blocks, threads = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        function(blocks, threads, values, shared_mem=shared, stream=stream)


@cache
def _function(name: str, kernel: str, device: int, defines: Defines) -> Any:
    return _module(name, device, defines).get_function(kernel)


@cache
def _module(name: str, device: int, defines: Defines) -> Any:
    """A cubin, loaded into the context of the current device, which is this one."""
    module = importlib.import_module("cupy").cuda.Module()
    arch = architecture(*torch.cuda.get_device_capability(device))
    module.load(cubin(name, arch, defines))
    return module


def _check(returned: tuple[Any, ...]) -> Any:
    """The results of a call of the bindings, without its status."""
    status, *results = returned
    if int(status) != 0:
        raise RuntimeError(f"NVRTC failed: {status!r}")
    return results[0] if len(results) == 1 else tuple(results)
