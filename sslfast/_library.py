"""The native library: loaded once, and the reason kept where it cannot be.

`libsslfast.so` registers the CPU kernels as ``torch.ops.sslfast_native.*``; the pybind11 module
`sslfast._native` reports what was compiled and what this processor can run. `libsslfast_cuda.so`
registers the CUDA kernels. It is a library of its own because it needs torch's CUDA library: the
CPU kernels must load, and build, where that is absent. A build that could not compile leaves
``native_status.json`` with its reasons.
"""

from __future__ import annotations

import ctypes
import importlib
import json
from functools import cache
from pathlib import Path

import torch

LIBRARY_NAME = "libsslfast.so"
CUDA_LIBRARY_NAME = "libsslfast_cuda.so"
STATUS_NAME = "native_status.json"

_PACKAGE = Path(__file__).parent


@cache
def missing_reason() -> str | None:
    """Load the native library on the first call; why it is absent, or ``None``."""
    path = _PACKAGE / LIBRARY_NAME
    if not path.exists():
        return _build_reason()
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY_NAME} does not load under torch {torch.__version__}: {error}"
    try:
        importlib.import_module("sslfast._native")
    except ImportError as error:
        return f"sslfast._native does not import: {error}"
    return None


@cache
def compiled_isas() -> tuple[str, ...]:
    """Instruction sets that the library was compiled for; empty without a library."""
    return _isas("compiled_isas")


@cache
def supported_isas() -> tuple[str, ...]:
    """Those of `compiled_isas` that this processor can run, the best last."""
    return _isas("supported_isas")


def _isas(report: str) -> tuple[str, ...]:
    if missing_reason() is not None:
        return ()
    return tuple(getattr(importlib.import_module("sslfast._native"), report)())


def cuda_built() -> str | None:
    """Why there is no library of CUDA kernels, ``None`` where there is one. Loads nothing."""
    status = _PACKAGE / STATUS_NAME
    kept = json.loads(status.read_text()).get("cuda") if status.exists() else None
    if kept is not None and not kept["built"]:  # a library may be left from an earlier build
        return f"{CUDA_LIBRARY_NAME} was not built: {kept['reason']}"
    if not (_PACKAGE / CUDA_LIBRARY_NAME).exists():
        return f"{CUDA_LIBRARY_NAME} was not built: install from source with nvcc (pip install .)"
    return None


@cache
def cuda_missing_reason() -> str | None:
    """Load the CUDA kernels on the first call; why they cannot run on the current GPU, or ``None``.

    Needs a GPU that torch sees.
    """
    reason = cuda_built()
    if reason is not None:
        return reason
    path = str(_PACKAGE / CUDA_LIBRARY_NAME)
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        return f"{CUDA_LIBRARY_NAME} does not load under torch {torch.__version__}: {error}"
    ask = ctypes.CDLL(path).sslfast_cuda_error
    ask.argtypes, ask.restype = [ctypes.c_int], ctypes.c_char_p
    answer: bytes | None = ask(torch.cuda.current_device())
    if answer is None:
        return None
    return f"{CUDA_LIBRARY_NAME} cannot run on {torch.cuda.get_device_name()}: {answer.decode()}"


def runs_prebuilt(build: str) -> bool:
    """Whether a variant of the ``cuda`` backend (``""``: the default) uses the library."""
    return build == "prebuilt" or (build == "" and cuda_missing_reason() is None)


def _build_reason() -> str:
    status = _PACKAGE / STATUS_NAME
    if status.exists():
        return f"the native build failed: {json.loads(status.read_text())['reason']}"
    return (
        f"{LIBRARY_NAME} was not built: install from source with a C++20 compiler and CMake "
        "(pip install .)"
    )
