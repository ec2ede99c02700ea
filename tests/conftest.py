"""What every test enumerates: primitives, samples, backends with their instruction sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

import sslfast
from sslfast import _backends, _library
from sslfast._registry import PRIMITIVES, Primitive, Sample

torch.set_num_threads(1)

REQUIRE_NATIVE = os.environ.get("SSLFAST_REQUIRE_NATIVE") == "1"
CPU_BACKENDS = tuple(
    f"{each.name}:{variant}" if variant else each.name
    for each in _backends.BACKENDS.values()
    if each.name in _backends.ORDER["cpu"]
    for variant in each.variants
    if variant or len(each.variants) == 1
)


@dataclass(frozen=True)
class Case:
    """A primitive at one of its samples."""

    primitive: Primitive
    sample: Sample

    def __str__(self) -> str:
        return f"{self.primitive.name}-{self.sample.name}"


CASES = tuple(Case(spec, sample) for spec in PRIMITIVES.values() for sample in spec.samples)


def require_backend(name: str) -> None:
    """Skip with the reason where a backend cannot run; fail where it must be there."""
    reason = _backends.available()[name]
    if reason is None:
        return
    compiled_elsewhere = _library.missing_reason() is None and "processor" in reason
    if REQUIRE_NATIVE and not compiled_elsewhere:
        pytest.fail(f"SSLFAST_REQUIRE_NATIVE=1, but {name} cannot run: {reason}")
    pytest.skip(f"{name}: {reason}")


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend for CPU tensors in turn, forced."""
    require_backend(request.param)
    with sslfast.backend(request.param):
        yield request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2026)
