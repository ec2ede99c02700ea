"""The native library: loaded once, and the reason kept where it cannot be.

`libsslfast.so` registers the CPU kernels as ``torch.ops.sslfast_native.*``; the pybind11 module
`sslfast._native` reports what was compiled and what this processor can run. `libsslfast_cuda.so`
lists the CUDA kernels by name and starts them. It is a library of its own, and knows nothing of
torch: the CPU kernels must build where nvcc is absent. A build that could not compile leaves
``native_status.json`` with its reasons.
"""

from __future__ import annotations

import ctypes
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


class Isa(NamedTuple):
    """An instruction set that the library was compiled for."""

    name: str
    number: int
    missing: str | None  # why it cannot run here


@cache
def isas() -> Mapping[str, Isa]:
    """Those compiled, by name, the best last; empty without a library."""
    if missing_reason() is not None:
        return {}
    reported = importlib.import_module("sslfast._native").isas()
    return {name: Isa(name, number, missing or None) for name, number, missing in reported}


def compiled_isas() -> tuple[str, ...]:
    """Names of `isas`, the best last."""
    return tuple(isas())


def supported_isas() -> tuple[str, ...]:
    """Those of `compiled_isas` that this processor can run, the best last."""
    return tuple(isa.name for isa in isas().values() if isa.missing is None)


def matrix_products(isa: str, dtype: torch.dtype, float_terms: int = 3) -> int:
    """Products of bfloat16 that one product takes on a set's matrix instructions.

    A float32 counts as so many bfloat16 terms. 0 where the vector instructions multiply, and
    without a library.
    """
    if missing_reason() is not None:
        return 0
    name = str(dtype).removeprefix("torch.")
    native = importlib.import_module("sslfast._native")
    products: int = native.matrix_products(isa, name, float_terms)
    return products


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
    try:
        ask = _cuda_function("error", ctypes.c_char_p, ctypes.c_int)
    except (OSError, AttributeError) as error:
        return f"{CUDA_LIBRARY_NAME} does not load: {error}"
    answer: bytes | None = ask(torch.cuda.current_device())
    if answer is None:
        return None
    return f"{CUDA_LIBRARY_NAME} cannot run on {torch.cuda.get_device_name()}: {answer.decode()}"


def runs_prebuilt(build: str) -> bool:
    """Whether a variant of the ``cuda`` backend (``""``: the default) uses the library."""
    return build == "prebuilt" or (build == "" and cuda_missing_reason() is None)


def _cuda_function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of the CUDA library, see csrc/cuda/device.cu."""
    function = getattr(ctypes.CDLL(str(_PACKAGE / CUDA_LIBRARY_NAME)), f"sslfast_cuda_{name}")
    function.argtypes, function.restype = list(arguments), result
    return function


@cache
def cuda_kernel(name: str) -> int | None:
    """A kernel of the library of CUDA kernels; ``None`` where it has none of this name."""
    address: int | None = _cuda_function("kernel", ctypes.c_void_p, ctypes.c_char_p)(name.encode())
    return address


@cache
def _cuda_launch() -> Any:
    pointer, number = ctypes.c_void_p, ctypes.c_ulonglong
    given = (pointer, pointer, pointer, pointer, number, pointer)
    return _cuda_function("launch", ctypes.c_char_p, *given)


def launch(
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Tensor | int | float],
    *,
    shared: int = 0,
) -> None:
    """Start a kernel of the library of CUDA kernels; arguments as of `sslfast._nvrtc.launch`."""
    device = next(each.device for each in arguments if isinstance(each, Tensor))
    values = [
        ctypes.c_double(each)
        if isinstance(each, float)
        else ctypes.c_longlong(each.data_ptr() if isinstance(each, Tensor) else each)
        for each in arguments
    ]
    places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    blocks, threads = ((ctypes.c_uint * 3)(*(*shape, 1, 1)[:3]) for shape in (grid, block))
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        error = _cuda_launch()(cuda_kernel(kernel), blocks, threads, places, shared, stream)
    if error is not None:
        raise RuntimeError(f"{kernel}: {error.decode()}")


def _build_reason() -> str:
    status = _PACKAGE / STATUS_NAME
    if status.exists():
        return f"the native build failed: {json.loads(status.read_text())['reason']}"
    return (
        f"{LIBRARY_NAME} was not built: install from source with a C++20 compiler and CMake "
        "(pip install .)"
    )
