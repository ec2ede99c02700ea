"""On a GPU: registry x backend x precision x sample, memory, streams, graphs, compiled code.

``make gpu-check`` runs what is marked ``gpu``; tests/gpu/test_gpu_harness.py proves the checks on a
CPU. With SSLFAST_REQUIRE_GPU=1 a backend that cannot run fails instead of being skipped.
"""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_harness as harness
import pytest
import torch
from gpu_harness import BackendCase, Step
from memory_cases import FORMS, arguments_of
from test_registration import check_ops
from torch import Tensor

import sslfast
from sslfast import _backends
from sslfast._registry import LOSSES, PRIMITIVES, Loss, Sample
from sslfast.bench.formulas.contrastive import probed_logsumexp
from sslfast.testing import as_tuple, cast, continuous

pytestmark = pytest.mark.gpu

CUDA = "cuda"
LARGE_MEMORY = 40e9  # of the card; the large cases take about 20 GB
MEMORY_ROWS, MEMORY_DIM, NOISE = 12_288, 64, 4 << 20
SLEEP = 20_000_000  # cycles, some 10 ms
KERNEL_BACKENDS = {
    primitive.name: [name for name in harness.backends_of(primitive, CUDA) if name != "reference"]
    for primitive in PRIMITIVES.values()
}
KERNELS = [
    pytest.param(primitive, backend, id=f"{primitive.name}-{backend}")
    for primitive in harness.primitives()
    for backend in KERNEL_BACKENDS[primitive.name]
]
LOSS_SAMPLES = [
    pytest.param(loss, sample, id=f"{loss.name}-{sample.name}")
    for loss in harness.losses()
    for sample in loss.samples
]
ONE_EACH = [
    pytest.param(loss, harness.first_of("ragged", loss.samples), id=loss.name)
    for loss in harness.losses()
]
# The reference is every baseline; its own backward pass is checked in two precisions.
EVERY = [
    case
    for case in harness.backend_cases(CUDA, precisions=tuple(harness.PRECISIONS))
    if case.backend != "reference" or case.precision in ("fp32", "bf16")
]
RAGGED = [c for c in EVERY if c.sample.size == "ragged" and c.precision == "fp32"]
LARGER = [
    case
    for case in EVERY
    if case.sample.size != "tiny"
    and case.precision in ("fp32", "bf16")
    and case.backend != "reference"
]


def need(backend: str) -> None:
    """Skip, or fail under SSLFAST_REQUIRE_GPU=1, with the reason why a backend cannot run."""
    reason = _backends.available()[backend]
    if reason is None:
        return
    if os.environ.get("SSLFAST_REQUIRE_GPU") == "1":
        pytest.fail(f"{backend} cannot run: {reason}")
    pytest.skip(f"{backend}: {reason}")


@pytest.fixture
def large_card() -> Iterator[None]:
    """A card with room for the large cases, and one of them at a time, whoever runs the tests."""
    if torch.cuda.get_device_properties().total_memory < LARGE_MEMORY:
        pytest.skip(f"takes 20 GB of a card with {LARGE_MEMORY / 1e9:.0f} GB")
    with Path(tempfile.gettempdir(), "sslfast-large-card.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        gc.collect()
        torch.cuda.empty_cache()


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_values_and_gradients(case: BackendCase) -> None:
    need(case.backend)
    print(f"error ratio {harness.check_numbers(case, CUDA).ratio:.2f}")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("loss", "sample"), LOSS_SAMPLES)
def test_losses(loss: Loss, sample: Sample, precision: str) -> None:
    print(f"error ratio {harness.check_loss(loss, sample, precision, CUDA).ratio:.2f}")


@pytest.mark.parametrize("case", LARGER, ids=str)
def test_repeats_bitwise_and_writes_every_element(case: BackendCase) -> None:
    need(case.backend)
    harness.check_repeats(case, CUDA)


@pytest.mark.parametrize("layout", harness.LAYOUTS)
@pytest.mark.parametrize("case", RAGGED, ids=str)
def test_layout_does_not_matter(case: BackendCase, layout: Callable[[Tensor], Tensor]) -> None:
    need(case.backend)
    harness.check_layout(case, layout, CUDA)


@pytest.mark.parametrize("case", RAGGED, ids=str)
def test_opcheck(case: BackendCase) -> None:
    need(case.backend)
    with harness.settings(case.backend):
        check_ops(case.primitive, case.arguments(CUDA))


@pytest.mark.parametrize(("loss", "sample"), ONE_EACH)
def test_inductor_compiles_a_whole_loss(loss: Loss, sample: Sample) -> None:
    torch.compiler.reset()
    compiled = torch.compile(loss.functional, fullgraph=True)
    arguments = _drawn(sample, torch.float32)
    leaves = loss.learning(arguments)
    expected = Step(loss.functional, arguments, leaves)()
    for name, value in Step(compiled, arguments, leaves)().items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize(("loss", "sample"), ONE_EACH)
def test_captured_graph_equals_a_run(loss: Loss, sample: Sample) -> None:
    _check_graph(loss.functional, sample, loss.learning(_drawn(sample, torch.float32)))


@pytest.mark.parametrize(("primitive", "backend"), KERNELS)
def test_captured_kernels_equal_a_run(primitive: Any, backend: str) -> None:
    need(backend)
    sample = harness.first_of("ragged", primitive.samples)
    with sslfast.backend(backend):
        _check_graph(primitive.function, sample, _leaves(primitive, sample))


def _check_graph(function: Callable[..., Any], sample: Sample, leaves: list[str]) -> None:
    """Captured once and replayed on other values: bitwise what a run on them gives."""
    step = Step(function, _drawn(sample, torch.float32), leaves)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    other = _drawn(sample, torch.float32, seed=1)
    step.fill(other, cotangent=1.25)
    graph.replay()
    torch.cuda.synchronize()
    replayed = {name: value.clone() for name, value in captured.items()}
    harness.assert_bitwise(replayed, step())


@pytest.mark.parametrize(("primitive", "backend"), KERNELS)
def test_kernels_run_on_the_current_stream(primitive: Any, backend: str) -> None:
    """Operands become right on a side stream that is late; the default stream sees NaN."""
    need(backend)
    sample = harness.first_of("ragged", primitive.samples)
    arguments = _drawn(sample, torch.float32)
    with sslfast.backend(backend):
        step = Step(primitive.function, arguments, _leaves(primitive, sample))
        step.fill(arguments, cotangent=1.25)
        expected = step()  # compiled and loaded from here on
        step.spoil()
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(SLEEP)
            step.fill(arguments, cotangent=1.25)
            actual = step()
        side.synchronize()
    harness.assert_bitwise(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_peak_keeps_its_promise(form: str, backend: str, dtype: torch.dtype) -> None:
    primitive, _ = FORMS[form]
    if backend not in primitive.implementations:
        pytest.skip(f"{primitive.name} has no {backend} implementation")
    need(backend)

    def arguments(num_rows: int) -> dict[str, Any]:
        return cast(arguments_of(form, num_rows, MEMORY_DIM), dtype, CUDA)

    def measure(num_rows: int) -> int:
        with sslfast.backend(backend):
            return _peak(primitive.function, arguments(num_rows))

    def promised(num_rows: int) -> int:
        return primitive.peak_bytes(**arguments(num_rows))

    measure(64)  # compiled and loaded from here on
    harness.check_promise(measure, promised, MEMORY_ROWS, NOISE)


def test_the_measurement_sees_a_matrix(large_card: None) -> None:
    """The reference's N x N breaks the promise that kernels keep."""
    primitive = PRIMITIVES["similarity_logsumexp"]

    def arguments(num_rows: int) -> dict[str, Any]:
        form = f"{primitive.name} rows"
        return cast(arguments_of(form, num_rows, MEMORY_DIM), torch.float32, CUDA)

    def measure(num_rows: int) -> int:
        with sslfast.backend("reference"):
            return _peak(primitive.function, arguments(num_rows))

    def promised(num_rows: int) -> int:
        return primitive.peak_bytes(**arguments(num_rows))

    with pytest.raises(AssertionError, match="bytes at"):
        harness.check_promise(measure, promised, MEMORY_ROWS, NOISE)


def _peak(function: Callable[..., Any], arguments: dict[str, Any]) -> int:
    """Bytes above the inputs that forward and backward hold at most, gradients included."""
    leaves = [v for v in arguments.values() if isinstance(v, Tensor) and v.requires_grad]
    cotangents = [torch.ones_like(o) for o in continuous(function(**arguments))]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = as_tuple(function(**arguments))
    kept = torch.autograd.grad(continuous(outputs), leaves, cotangents)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


@pytest.mark.parametrize("backend", KERNEL_BACKENDS["l2_normalize"])
def test_rows_beyond_32_bit_offsets(backend: str, large_card: None) -> None:
    """(N, D) of more than 2^31 elements; its ends against the reference on these rows alone."""
    need(backend)
    rows = _many_rows()
    function = PRIMITIVES["l2_normalize"].function
    weights = torch.linspace(0.5, 1.5, rows.shape[1], device=CUDA).to(rows.dtype).expand_as(rows)
    with sslfast.backend(backend):
        leaf = rows.requires_grad_()
        unit = function(leaf)
        (drows,) = torch.autograd.grad(unit, leaf, weights)
    for ends in (slice(0, 64), slice(-64, None)):
        part = rows.detach()[ends].double().requires_grad_()
        expected = PRIMITIVES["l2_normalize"].reference(part)
        (dexpected,) = torch.autograd.grad(expected, part, weights[ends].double())
        torch.testing.assert_close(unit[ends].double(), expected, atol=0, rtol=1e-2)
        assert _far(drows[ends], dexpected) < 1e-2


@pytest.mark.parametrize("backend", KERNEL_BACKENDS["similarity_logsumexp"])
def test_queries_beyond_32_bit_offsets(backend: str, large_card: None) -> None:
    """Queries of more than 2^31 elements against few keys."""
    need(backend)
    queries = _many_rows()
    queries *= queries.shape[1] ** -0.5
    keys = torch.randn(24, queries.shape[1], device=CUDA, dtype=queries.dtype)
    keys *= queries.shape[1] ** -0.5
    with sslfast.backend(backend):
        leaf = queries.requires_grad_()
        lse = sslfast.similarity_logsumexp(leaf, keys, scale=8.0)
        (dqueries,) = torch.autograd.grad(lse, leaf, torch.ones_like(lse))
    for ends in (slice(0, 64), slice(-64, None)):
        part = queries.detach()[ends].double().requires_grad_()
        expected = (8.0 * part @ keys.double().T).logsumexp(1)
        (dexpected,) = torch.autograd.grad(expected.sum(), part)
        assert _far(lse[ends], expected) < 1e-3
        assert _far(dqueries[ends], dexpected) < 2e-2


@pytest.mark.parametrize("backend", KERNEL_BACKENDS["similarity_logsumexp"])
def test_matrix_beyond_32_bit_offsets(backend: str, large_card: None) -> None:
    """N x N of more than 2^31 similarities that are never stored; probed rows against torch."""
    need(backend)
    num_rows, dim = 49_152, 32
    generator = torch.Generator(CUDA).manual_seed(3)
    rows = torch.randn(num_rows, dim, device=CUDA, generator=generator)
    rows = sslfast.l2_normalize(rows)
    probe = torch.tensor([0, 1, num_rows // 2, num_rows - 2, num_rows - 1], device=CUDA)
    ids = torch.arange(num_rows // 2, device=CUDA).repeat(2)
    results = []
    for eager, dtype in ((False, torch.float32), (True, torch.float64)):
        leaf = rows.to(dtype).requires_grad_()
        with sslfast.backend(backend):
            lse = probed_logsumexp(leaf, rows=probe, ids=ids, scale=10.0, eager=eager)
        results.append((lse, *torch.autograd.grad(lse.sum(), leaf)))
    for actual, expected in zip(*results, strict=True):
        assert _far(actual, expected) < 1e-4


def _many_rows() -> Tensor:
    """Normal numbers, (2^20, 2056): 4.3 GB in bfloat16."""
    generator = torch.Generator(CUDA).manual_seed(2)
    rows = torch.empty(1 << 20, 2056, device=CUDA, dtype=torch.bfloat16)
    assert rows.numel() > 1 << 31
    return rows.normal_(generator=generator)


def _far(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((actual.double() - expected).detach().norm() / expected.detach().norm())


def _drawn(sample: Sample, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    return cast(sample.make(torch.Generator().manual_seed(seed)), dtype, CUDA)


def _leaves(primitive: Any, sample: Sample) -> list[str]:
    names: list[str] = primitive.learning(sample.make(torch.Generator().manual_seed(0)))
    return names


def test_every_loss_is_covered() -> None:
    assert harness.FAMILY or {loss.name for loss in harness.losses()} == set(LOSSES)
