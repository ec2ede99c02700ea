"""What every test enumerates: primitives, samples, backends with their instruction sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import density
import pytest
import torch
from torch import Tensor

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


@contextmanager
def or_skip() -> Iterator[None]:
    """Skip a test, or a whole module, with the reason, where a peer's library is not there."""
    try:
        yield
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are NaN (the largest integer for integers) until they are written."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The thin suite leaves out what `density` says.

    Without a GPU the tests marked ``gpu`` are skipped; SSLFAST_REQUIRE_GPU=1 runs them.

    Typical samples are large: the interpreter of Triton computes their values alone.
    """
    density.thin_out(config, items)
    for item in items:
        missing = _without_kernels(item)
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        size = getattr(getattr(case, "sample", None), "size", "")
        if size == "typical" and item.path.name != "test_numbers.py":
            item.add_marker("uninterpreted")
    if torch.cuda.is_available() or os.environ.get("SSLFAST_REQUIRE_GPU") == "1":
        return
    skip = pytest.mark.skip(reason=f"needs a CUDA device, torch {torch.__version__} sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def _without_kernels(item: pytest.Item) -> str:
    """Why a test has nothing to run on its backend.

    A test's primitives are those of the case that it enumerates, or those that its mark names.
    """
    params: Mapping[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    backend = str(params.get("cpu_backend", params.get("backend", ""))).partition(":")[0]
    marked = item.get_closest_marker("primitives")
    case = params.get("case")
    subject = getattr(case, "primitive", getattr(case, "loss", params.get("primitive")))
    subject = subject or PRIMITIVES.get(params.get("name", ""))
    if marked:
        names = marked.args
    elif isinstance(subject, Primitive):
        names = (subject.name,)
    else:
        names = getattr(subject, "primitives", ())
    missing = [n for n in names if backend and backend not in PRIMITIVES[n].implementations]
    return f"{', '.join(missing)} without {backend} kernels" if missing else ""


def takes(backend: str, dtype: torch.dtype, *names: str) -> bool:
    """Whether a backend runs these primitives in a dtype."""
    base = backend.partition(":")[0]
    return all(dtype in PRIMITIVES[name].implementations[base].dtypes for name in names)


def require_dtype(backend: str, dtype: torch.dtype, *names: str) -> None:
    """Skip where a backend does not run these primitives in a dtype."""
    if not takes(backend, dtype, *names):
        pytest.skip(f"{backend} does not take {dtype}")


def widest(backend: str, *names: str) -> torch.dtype:
    """float64 where a backend runs these primitives in it, else float32."""
    return torch.float64 if takes(backend, torch.float64, *names) else torch.float32


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend for CPU tensors in turn, forced."""
    require_backend(request.param)
    with sslfast.backend(request.param):
        yield request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2026)


def value_and_gradients(loss: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The 0-dim loss of these leaves, and the gradient of each."""
    value = loss(*tensors)
    return [value.detach(), *torch.autograd.grad(value, tensors)]
