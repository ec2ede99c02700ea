"""``sslfast info``: what is installed, what this processor can do, and what would run where."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import sslfast
from sslfast import _backends, _library, _nvrtc
from sslfast._core.numerics import TERMS
from sslfast._registry import LOSSES, PRIMITIVES, Primitive

README_MARKERS = ("<!-- op table: sslfast info --markdown -->", "<!-- end of op table -->")

_DTYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
_OPTIONAL = (
    "cuda-bindings",
    "cupy",
    "lightly",
    "matplotlib",
    "pillow",
    "pytest-benchmark",
    "rich",
    "scikit-learn",
    "tqdm",
    "triton",
)
_OTHER_NAMES = {"cupy": ("cupy-cuda13x", "cupy-cuda12x")}  # a wheel is built for one CUDA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What is installed here, what this processor can run, and for every primitive the "
        "backend that would run it with the reason why the others would not."
    )
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the table of primitives and backends as it stands in the README",
    )


def run(args: argparse.Namespace) -> int:
    print(readme_table() if args.markdown else report())
    return 0


def report() -> str:
    """Everything that ``sslfast info`` prints."""
    sections = (
        ("versions", _versions()),
        ("processor", _processor()),
        ("native library", _native()),
        ("backends", _backend_lines()),
        ("primitives, for float32 on this processor", _primitive_lines()),
        ("losses", _loss_lines()),
    )
    return "\n\n".join("\n".join((title, *_columns(rows))) for title, rows in sections)


def readme_table() -> str:
    """The op x backend table in Markdown; the same on every machine."""
    names = _backend_names()
    head = ("primitive", "computes", "never builds", "serves", *names)
    rows = (
        (
            f"`{primitive.name}`",
            f"`{primitive.equation}`".replace("|", "\\|"),
            primitive.never_builds,
            ", ".join(primitive.serves),
            *(_dtypes(primitive, name) for name in names),
        )
        for primitive in PRIMITIVES.values()
    )
    return "\n".join(_markdown_row(row) for row in (head, ["---"] * len(head), *rows))


def _backend_names() -> list[str]:
    """Backends that a primitive has, in the order in which they are tried."""
    tried = dict.fromkeys(name for order in _backends.ORDER.values() for name in order)
    present = [n for n in tried if any(n in p.implementations for p in PRIMITIVES.values())]
    return sorted(present, key=lambda name: name == "reference")


def _dtypes(primitive: Primitive, backend: str) -> str:
    implementation = primitive.implementations.get(backend)
    if implementation is None:
        return ""
    return " ".join(_DTYPES.get(dtype, str(dtype)) for dtype in implementation.dtypes)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _versions() -> list[tuple[str, str]]:
    rows = [
        ("sslfast", _version("sslfast") or "not installed: run from its sources"),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
    ]
    return rows + [(name, _version(name) or "absent") for name in _OPTIONAL]


def _version(package: str) -> str | None:
    for name in (package, *_OTHER_NAMES.get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _processor() -> list[tuple[str, str]]:
    return [
        ("model", cpu_model()),
        ("processors", f"{len(os.sched_getaffinity(0))} for this process"),
        ("torch uses", torch.backends.cpu.get_cpu_capability()),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
    ]


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _native() -> list[tuple[str, str]]:
    reason = _library.missing_reason()
    threads = f"{torch.get_num_threads()} (torch.set_num_threads)"
    cuda = [
        ("CUDA kernels", _library.cuda_built() or "built"),
        ("CUDA compiler", _nvrtc.missing_compiler() or f"NVRTC {_nvrtc.version()}, on first use"),
    ]
    if reason is not None:
        return [
            ("state", f"missing: {reason}"),
            (
                "to get it",
                "pip install --no-build-isolation . with a C++20 compiler, in its sources",
            ),
            ("threads", threads),
            *cuda,
        ]
    native = import_module("sslfast._native")
    rows = [
        ("state", "loaded"),
        ("in use", _isa_in_use(_library.supported_isas())),
        *((f"  {isa.name}", _isa_line(isa)) for isa in reversed(tuple(_library.isas().values()))),
        ("threads", f"{threads}; a parallel loop ran on {native.distinct_threads()}"),
    ]
    built = native.build_info().items()
    return rows + cuda + [(f"built: {key}", str(value)) for key, value in built if key != "isas"]


def _isa_in_use(supported: Sequence[str]) -> str:
    variant = _backends.forced().partition(":")[2]
    return variant or supported[-1]


def _isa_line(isa: _library.Isa) -> str:
    """Whether it can run, and how many products of bfloat16 one product of each precision takes."""
    taken = [
        f"{name} in {products}"
        for name, dtype, terms in _precisions()
        if (products := _library.matrix_products(isa.name, dtype, terms))
    ]
    multiplies = f"bf16 products for {', '.join(taken)}" if taken else "multiply-adds alone"
    return f"{isa.missing or 'can run'}; {multiplies}"


def _precisions() -> list[tuple[str, torch.dtype, int]]:
    """What matrix instructions may multiply: name, dtype and terms of a float32."""
    half = [(_DTYPES[dtype], dtype, TERMS["highest"]) for dtype in (torch.bfloat16, torch.float16)]
    return half + [(f"fp32 {name}", torch.float32, terms) for name, terms in TERMS.items()]


def _backend_lines() -> list[tuple[str, str]]:
    """Backends and variants by the reason they share, in the order of the chooser."""
    grouped: dict[str, list[str]] = {}
    for name, reason in _backends.available().items():
        marked = f"{name} (forced)" if name == _backends.forced() else name
        grouped.setdefault(reason or "can run", []).append(marked)
    return [(", ".join(names), reason) for reason, names in grouped.items()]


def _primitive_lines() -> list[tuple[str, str]]:
    """Per primitive what would run float32 CPU tensors, then each backend with its reason."""
    missing = _backends.available()
    rows = []
    for primitive in PRIMITIVES.values():
        explained = sslfast.explain(primitive.name, torch.empty(1, 1))
        rows.append((primitive.name, f"runs on {explained.runs or 'nothing'}"))
        for backend, reason in explained.reasons.items():
            shown = "cannot run, see above" if missing.get(backend) else reason
            rows.append((f"  {backend}", f"{shown}; {_dtypes(primitive, backend)}"))
    return rows


def _loss_lines() -> list[tuple[str, str]]:
    return [
        (loss.name, f"{loss.family}, on {', '.join(loss.primitives)}; {loss.paper}")
        for loss in LOSSES.values()
    ]


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
