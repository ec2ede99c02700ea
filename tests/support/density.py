"""How densely what can be enumerated is tested: thinly by `make test`, in full by `make test-full`.

SSLFAST_TESTS=full is read here and nowhere else. A test whose parameters are a grid (primitive or
loss x sample x dtype x backend) carries the rule of this file that says which of its points the
thin suite keeps: ``@pytest.mark.thin(rule=density.numbers)``. What makes a kind of fault show is
kept, and each point of it once:

- instruction sets, memory layouts and threads belong to kernels, so they are crossed with
  primitives and not with losses, which hold none;
- a half type is widened on the way in and rounded on the way out, whatever comes between;
- Triton's interpreter is slow, and needs one shape that is a multiple of nothing for each form.
  That a loss uses no form without a sample is a test of its own (`test_forms`).

`planted_faults` shows that the thin suite finds what the dense one finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sslfast import _library
from sslfast._core import devices
from sslfast._registry import Primitive

SWITCH = "SSLFAST_TESTS"
DENSITIES = ("thin", "full")


def is_full() -> bool:
    density = os.environ.get(SWITCH, DENSITIES[0])
    if density not in DENSITIES:
        raise ValueError(f"{SWITCH} must be one of {DENSITIES}, got {density!r}")
    return density == "full"


FULL = is_full()


CHIP = "sm_90a"  # of the architectures that CUDA C++ is compiled for


EMULATED = "emulated"  # matrix instructions in plain loops
GRAPHED = ("NTXentLoss", "SmoothAPLoss", "BarlowTwinsLoss")
MATRIX = tuple(f"cpu:{name}" for name in ("avx512_bf16", "amx", EMULATED))


def best_instruction_set() -> str:
    """The CPU backend that this processor takes by itself."""
    real = [name for name in _library.supported_isas() if name != EMULATED]
    return f"cpu:{real[-1]}" if real else "cpu"


BEST = best_instruction_set()


@dataclass(frozen=True)
class Point:
    """One point of a test's grid; what a test does not vary is empty or ``None``.

    Args:
        size: of the sample.
        is_first: whether the sample is its subject's first of this size.
        dtype: that is tested.
        backend: with its variant.
        params: every parameter by name.
    """

    size: str
    is_first: bool
    dtype: torch.dtype | None
    backend: str
    params: Mapping[str, Any]

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton"

    @property
    def multiplies_matrices(self) -> bool:
        """By instructions for bfloat16; for the other dtypes as the best vectors do."""
        return self.backend in MATRIX

    @property
    def is_best(self) -> bool:
        return self.backend == BEST

    @property
    def is_reference(self) -> bool:
        return self.backend == "reference"

    @property
    def first_ragged(self) -> bool:
        return self.size == "ragged" and self.is_first


Rule = Callable[[Point], bool]


def numbers(at: Point) -> bool:
    """Of a primitive: every sample on the best kernels, ragged ones in every dtype on all."""
    if at.interpreted:
        return at.dtype == torch.float32 or (at.size == "ragged" and at.dtype != torch.float64)
    if at.multiplies_matrices and not at.is_best:
        terms = at.dtype in (torch.bfloat16, torch.float32)  # float32 is a sum of bfloat16
        return at.size != "typical" and (terms or at.first_ragged)
    if at.size == "typical":
        return at.is_best or (at.is_reference and at.dtype in (torch.float32, torch.bfloat16))
    return at.is_best or at.size == "ragged" or at.dtype == torch.float32


def losses(at: Point) -> bool:
    """Every sample by default, oracle against eager in float64, a ragged one everywhere."""
    if at.interpreted:
        return at.first_ragged and at.dtype in (torch.float32, torch.bfloat16)
    if at.is_reference:
        return at.dtype == torch.float64 and at.size != "typical"
    if at.is_best:
        return at.dtype != torch.float16 or at.first_ragged
    return at.first_ragged and at.dtype == torch.float32


def best(at: Point) -> bool:
    """On the kernels that run by default; the others differ in the width of their vectors."""
    return at.is_best


def best_or_interpreted(at: Point) -> bool:
    """Each family of kernels once."""
    return at.is_best or at.interpreted


def one_of_each_backend(at: Point) -> bool:
    """What torch asks of an op is the same for every instruction set."""
    if at.interpreted:
        return at.is_first
    return at.is_best or at.is_reference


def oracle(at: Point) -> bool:
    """Finite differences prove the reference, and the error rule the kernels by the reference."""
    return at.is_reference


def layouts(at: Point) -> bool:
    """Three layouts in one call."""
    mixed = at.params["layout"].__name__ == "mixed"
    return mixed and (at.is_best or at.size == "ragged")


def first_ragged(at: Point) -> bool:
    """One sample of a subject."""
    return at.first_ragged


def one_graph(at: Point) -> bool:
    """Primitives, of which losses are made, and a loss of each family."""
    subject = at.params["subject"]
    return isinstance(subject, Primitive) or subject.name in GRAPHED


def emulated(at: Point) -> bool:
    """CUDA C++ played on the CPU: every sample in float32, which has kernels of its own."""
    return at.dtype == torch.float32 or at.first_ragged


def nowhere(at: Point) -> bool:
    """What another test of the thin suite shows for a part."""
    return False


def one_chip(at: Point) -> bool:
    """The one whose form of the code has everything."""
    return at.params["arch"] == CHIP


def examples(count: int) -> int:
    """Of what hypothesis draws; the interpreter takes a second for each."""
    return count if FULL or not devices.INTERPRETED else count // 4


def thin_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take away the points that the thin suite does without; for `conftest`."""
    if FULL:
        return
    kept = [item for item in items if _is_kept(item)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if not _is_kept(item)])
        items[:] = kept


def _is_kept(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("thin")
    return mark is None or mark.kwargs["rule"](point(item.callspec.params))  # type: ignore[attr-defined]


def point(params: Mapping[str, Any]) -> Point:
    case = params.get("case")
    sample = params.get("sample", getattr(case, "sample", None))
    subject = getattr(case, "primitive", getattr(case, "loss", params.get("spec")))
    size = getattr(sample, "size", "")
    firsts = [each for each in getattr(subject, "samples", ()) if each.size == size]
    return Point(
        size=size,
        is_first=bool(firsts) and firsts[0] is sample,
        dtype=params.get("dtype"),
        backend=str(params.get("cpu_backend", params.get("backend", ""))),
        params=params,
    )
