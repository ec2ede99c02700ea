"""The native library: loaded once, and the reason kept where it cannot be.

`libsslfast.so` registers the kernels as ``torch.ops.sslfast_native.*``; the pybind11 module
`sslfast._native` reports what was compiled and what this processor can run. A build that could not
compile leaves ``native_status.json`` with its reason.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path

import torch

LIBRARY_NAME = "libsslfast.so"
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


def _build_reason() -> str:
    status = _PACKAGE / STATUS_NAME
    if status.exists():
        return f"the native build failed: {json.loads(status.read_text())['reason']}"
    return (
        f"{LIBRARY_NAME} was not built: install from source with a C++20 compiler and CMake "
        "(pip install .)"
    )
