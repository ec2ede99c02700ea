"""The only chooser of backends.

Candidates are tried in the order of `ORDER`; the first that is available and does not reject the
tensors runs. ``with sslfast.backend("cpu:avx2")`` or the environment variable ``SSLFAST_BACKEND``
forces one, and a forced backend that cannot run raises. `explain` prints the decision.

Triton kernels also run on CPU tensors where ``TRITON_INTERPRET=1`` asks for its interpreter.

The forced name travels with the call as the op's ``backend`` argument (empty: choose). So the
backward pass, which may run in another thread or after the ``with`` block, uses the backend that
the forward pass used, and a compiled graph is guarded on it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sslfast import _library, _nvrtc
from sslfast._core import devices
from sslfast._registry import PRIMITIVES, Implementation, Primitive

LEAST_CAPABILITY = (8, 0)  # bfloat16 conversions; what the prebuilt kernels start from

ORDER: Mapping[str, tuple[str, ...]] = {
    "cuda": ("cuda", "triton", "reference"),
    "cpu": ("cpu", "triton", "reference") if devices.INTERPRETED else ("cpu", "reference"),
}


@dataclass(frozen=True)
class Backend:
    """What a backend needs from the machine, whatever the primitive.

    Args:
        name: as in `ORDER`.
        variants: options that a variant such as ``avx2`` of ``cpu:avx2`` hands to the
            implementation; the empty name is the default.
        missing: reason why this variant cannot run on this machine, ``None`` if it can.
    """

    name: str
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    missing: Callable[[str], str | None] = lambda variant: None


@dataclass(frozen=True)
class Choice:
    """A backend ready to run a primitive."""

    backend: str
    implementation: Implementation
    options: Mapping[str, Any]

    def forward(self, *arguments: Any) -> Any:
        return self.implementation.forward(*arguments, **self.options)

    def backward(self, *arguments: Any) -> Any:
        return self.implementation.backward(*arguments, **self.options)


def _missing_cpu(variant: str) -> str | None:
    reason = _library.missing_reason()
    if reason is not None or not variant:
        return reason
    isa = _library.isas().get(variant)
    return f"the native library was not compiled for {variant}" if isa is None else isa.missing


def _missing_triton(variant: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'sslfast[triton]')"
    if not devices.INTERPRETED and not torch.cuda.is_available():
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
    return None


@cache
def _missing_cuda(variant: str) -> str | None:
    """Asked before every call, and answered once: the first answer loads the library."""
    if torch.version.hip is not None:
        return "torch is built for ROCm, the kernels for NVIDIA GPUs"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"{torch.cuda.get_device_name()} has compute capability {found}, 8.0 is needed"
    prebuilt = None if variant == "nvrtc" else _library.cuda_missing_reason()
    if variant == "prebuilt" or (variant == "" and prebuilt is None):
        return prebuilt
    compiled = _nvrtc.missing_reason()
    if compiled is None or prebuilt is None:
        return compiled
    return f"{prebuilt}; {compiled}"


BACKENDS: dict[str, Backend] = {
    "reference": Backend("reference"),
    "cuda": Backend(
        "cuda",
        {"": {"build": ""}, "prebuilt": {"build": "prebuilt"}, "nvrtc": {"build": "nvrtc"}},
        _missing_cuda,
    ),
    "triton": Backend("triton", missing=_missing_triton),
    "cpu": Backend(
        "cpu",
        {
            "": {"isa": 0},
            "baseline": {"isa": 1},
            "avx2": {"isa": 2},
            "avx512": {"isa": 3},
            "avx512_bf16": {"isa": 4},
            "amx": {"isa": 5},
            "emulated": {"isa": 6},
        },
        _missing_cpu,
    ),
}

_forced = os.environ.get("SSLFAST_BACKEND", "")


def on_gpu(tensor: Tensor) -> bool:
    """Whether a GPU's kernels serve this tensor, be it in the interpreter or while recording."""
    return tensor.is_cuda or devices.INTERPRETED or devices.recording


def forced() -> str:
    """Name of the backend that is forced now, empty if none is."""
    return _forced


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for the calls inside the ``with`` block and for their backward passes.

    Args:
        name: ``"cpu"`` (best instruction set), ``"cpu:amx"``, ``"cpu:avx512_bf16"``,
            ``"cpu:avx512"``, ``"cpu:avx2"``, ``"cpu:baseline"``, ``"cpu:emulated"`` (the matrix
            kernels without matrix instructions, for tests), ``"cuda"`` (prebuilt where it can run,
            else compiled on first use), ``"cuda:prebuilt"``, ``"cuda:nvrtc"``, ``"triton"`` or
            ``"reference"``. The setting holds for the whole process, not for one thread.

    Raises:
        ValueError: no such backend.
        RuntimeError: by a call inside the block, where the backend cannot run; with the reason.
    """
    global _forced
    _parse(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def available() -> dict[str, str | None]:
    """Every backend and variant, e.g. ``"cpu:avx2"``, with why it cannot run (``None``: it can)."""
    return {
        f"{each.name}:{variant}" if variant else each.name: each.missing(variant)
        for each in BACKENDS.values()
        for variant in each.variants
    }


def choose(primitive: Primitive, name: str, *tensors: Tensor | None) -> Choice:
    """The backend that runs these tensors: `name`, or the first that can if it is empty.

    Raises:
        RuntimeError: the named backend, or every backend, cannot run; with the reasons.
        ValueError: no such backend.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    reasons = []
    for candidate in (name,) if name else ORDER.get(given[0].device.type, ("reference",)):
        reason, choice = _consider(primitive, candidate, given)
        if choice is not None:
            return choice
        reasons.append(f"{candidate}: {reason}")
    raise RuntimeError(f"{primitive.name} cannot run on " + "; ".join(reasons))


@dataclass(frozen=True)
class Explanation:
    """What would run and why the others would not; print it."""

    primitive: str
    runs: str | None
    reasons: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.primitive} runs on {self.runs or 'nothing'}"]
        lines += [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def explain(name: str, *tensors: Tensor | None) -> Explanation:
    """Which backend would run a primitive on these tensors, and why the others would not.

    Args:
        name: of a primitive, e.g. ``"similarity_logsumexp"``.
        tensors: its tensor arguments, at least the first.

    Raises:
        ValueError: no such primitive, or no tensor.
    """
    if name not in PRIMITIVES:
        raise ValueError(f"name must be one of {sorted(PRIMITIVES)}, got {name!r}")
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        raise ValueError("tensors must hold at least the first tensor argument, got none")
    order = ORDER.get(given[0].device.type, ("reference",))
    candidates = ((_forced,) if _forced else ()) + tuple(n for n in order if n != _forced)
    runs: str | None = None
    reasons: dict[str, str] = {}
    for candidate in candidates:
        reason, choice = _consider(PRIMITIVES[name], candidate, given)
        if reason is None and runs is not None:
            reason = f"could run; {runs} comes first"
        elif reason is None and _forced and candidate != _forced:
            reason = f"could run; {_forced} is forced"
        elif choice is not None:
            runs = candidate
            reason = "forced" if candidate == _forced else "chosen"
        reasons[candidate] = str(reason)
    return Explanation(name, runs, reasons)


def _consider(
    primitive: Primitive, name: str, tensors: list[Tensor]
) -> tuple[str | None, Choice | None]:
    base, variant = _parse(name)
    implementation = primitive.implementations.get(base)
    if implementation is None:
        return f"{primitive.name} has no {base} implementation", None
    reason = BACKENDS[base].missing(variant) or _reject(implementation, base, tensors)
    if reason is not None:
        return reason, None
    return None, Choice(name, implementation, BACKENDS[base].variants[variant])


def _reject(implementation: Implementation, base: str, tensors: list[Tensor]) -> str | None:
    first = tensors[0]
    if base not in ORDER.get(first.device.type, ("reference",)):
        return f"tensors are on {first.device}"
    if first.dtype not in implementation.dtypes:
        accepted = ", ".join(str(dtype) for dtype in implementation.dtypes)
        return f"{first.dtype} is not among {accepted}"
    return None if implementation.reject is None else implementation.reject(*tensors)


def _parse(name: str) -> tuple[str, str]:
    base, _, variant = name.partition(":")
    if base not in BACKENDS or variant not in BACKENDS[base].variants:
        raise ValueError(f"backend must be one of {sorted(available())}, got {name!r}")
    return base, variant
