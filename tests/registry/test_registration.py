"""The ops as torch sees them: schema, fake tensors, autograd, compiled graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import density
import pytest
import torch
from conftest import CASES, Case, require_backend, require_dtype
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sslfast
from sslfast import _backends
from sslfast._core.similarity.logsumexp_keep import Keep
from sslfast._registry import PRIMITIVES, Primitive
from sslfast.testing import as_tuple, cast, continuous

AOT = "test_aot_dispatch_dynamic"
SMALL_CASES = tuple(case for case in CASES if case.sample.size in ("tiny", "ragged"))


class Recorder(TorchDispatchMode):
    """Arguments of every call of the ops of one primitive."""

    def __init__(self, primitive: Primitive) -> None:
        super().__init__()
        self.names = {f"sslfast::{primitive.name}", f"sslfast::{primitive.name}_backward"}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.name() in self.names:
            detached = (a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            self.calls.append((func.name(), tuple(detached)))
        return func(*args, **(kwargs or {}))


def run(primitive: Primitive, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    leaves = {
        name: arguments[name].detach().requires_grad_()
        for name in primitive.differentiable
        if isinstance(arguments.get(name), Tensor)
    }
    outputs = as_tuple(primitive.function(**{**arguments, **leaves}))
    learning = continuous(outputs)
    weights = [torch.linspace(0.5, 1.5, output.numel()).view(output.shape) for output in learning]
    gradients = torch.autograd.grad(
        learning, list(leaves.values()), [w.to(o) for w, o in zip(weights, learning, strict=True)]
    )
    return (*outputs, *gradients)


@pytest.mark.thin(rule=density.one_of_each_backend)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.uninterpreted if case.sample.size == "ragged" else ())
        for case in SMALL_CASES
    ],
    ids=str,
)
def test_opcheck(case: Case, cpu_backend: str, generator: torch.Generator) -> None:
    check_ops(case.primitive, cast(case.sample.make(generator), torch.float32))


def check_ops(primitive: Primitive, arguments: Mapping[str, Any]) -> None:
    """`torch.library.opcheck` of the forward and backward op on what they are called with."""
    with Recorder(primitive) as recorder:
        run(primitive, arguments)
    called = dict(recorder.calls)
    assert set(called) == recorder.names
    forward = called[f"sslfast::{primitive.name}"]
    backward = called[f"sslfast::{primitive.name}_backward"]
    _opcheck(primitive.backward_op, backward)
    _opcheck(primitive.forward_op, _without_cache(primitive, forward))
    _opcheck(primitive.forward_op, forward, "test_schema", "test_faketensor")
    _opcheck(primitive.forward_op, _requiring(_without_cache(primitive, forward)))


def _opcheck(op: Any, arguments: tuple[Any, ...], *only: str) -> None:
    utils = only or ("test_schema", "test_autograd_registration", "test_faketensor", AOT)
    torch.library.opcheck(op, arguments, test_utils=utils)


def _without_cache(primitive: Primitive, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The unused end of a cache is not written, so two calls cannot be compared with one."""
    names = [each.name for each in primitive.forward_op._opoverload._schema.arguments]
    return tuple(
        {"keep": int(Keep.NOTHING), "cache_elements": 0}.get(name, value)
        for name, value in zip(names, arguments, strict=True)
    )


def _requiring(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    )


@pytest.mark.thin(rule=density.one_of_each_backend)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_fake_tensors_have_the_real_dtypes(
    name: str, dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    primitive = PRIMITIVES[name]
    require_dtype(cpu_backend, dtype, name)
    for sample in primitive.samples:
        if sample.size != "ragged":
            continue
        with Recorder(primitive) as recorder:
            run(primitive, cast(sample.make(generator), dtype))
        for op, arguments in recorder.calls:
            suffix = "backward_op" if op.endswith("_backward") else "forward_op"
            torch.library.opcheck(
                getattr(primitive, suffix), arguments, test_utils="test_faketensor"
            )


@pytest.mark.thin(rule=density.best)
@pytest.mark.uninterpreted
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_fullgraph(name: str, dynamic: bool, cpu_backend: str, generator: torch.Generator) -> None:
    """Traced without a break by AOTAutograd; one graph serves other sizes where dynamic."""
    primitive = PRIMITIVES[name]
    torch._dynamo.reset()
    compiled = torch.compile(
        primitive.function, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for sample in primitive.samples:
        if sample.size != "ragged":
            continue
        arguments = cast(sample.make(generator), torch.float32)
        expected = run(primitive, arguments)
        with torch._dynamo.config.patch(recompile_limit=64):
            actual = _run_compiled(primitive, compiled, arguments)
        for left, right in zip(actual, expected, strict=True):
            assert torch.equal(left, right), sample.name


def _run_compiled(primitive: Primitive, compiled: Any, arguments: Any) -> tuple[Tensor, ...]:
    return run(replace(primitive, function=compiled), arguments)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor_compiles_a_whole_loss(dynamic: bool, generator: torch.Generator) -> None:
    """The primitives inside the generated code of the default compiler, forward and backward."""
    torch._dynamo.reset()

    def loss(rows: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
        unit = sslfast.l2_normalize(rows)
        lse = sslfast.similarity_logsumexp(unit, scale=scale, query_ids=ids)
        return (lse - scale * (unit * unit.roll(len(unit) // 2, 0)).sum(-1)).mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic)
    for num_images in (12, 20):
        rows = torch.randn(2 * num_images, 9, generator=generator, requires_grad=True)
        scale = torch.tensor(5.0, requires_grad=True)
        ids = torch.arange(num_images).repeat(2)
        actual, expected = compiled(rows, scale, ids), loss(rows, scale, ids)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, (rows, scale)), torch.autograd.grad(expected, (rows, scale))
        )


def test_compiled_graph_follows_the_forced_backend(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forced name is part of the graph, and changing it is noticed."""
    require_backend("cpu")
    torch._dynamo.reset()
    named: list[str] = []

    def choose(primitive: Primitive, name: str, *tensors: Tensor | None) -> _backends.Choice:
        named.append(name)
        return original(primitive, name, *tensors)

    original = _backends.choose
    monkeypatch.setattr(_backends, "choose", choose)
    compiled = torch.compile(sslfast.l2_normalize, fullgraph=True, backend="aot_eager")
    rows = torch.randn(4, 3, generator=generator)
    for name in ("reference", "cpu", "reference"):
        with sslfast.backend(name):
            compiled(rows)
    assert named == ["reference", "cpu", "reference"]


def test_compiled_graph_checks_values(generator: torch.Generator) -> None:
    """Checks on values are part of the op, not of the traced Python."""
    torch._dynamo.reset()
    compiled = torch.compile(sslfast.similarity_logsumexp, fullgraph=True, backend="aot_eager")
    rows = torch.randn(4, 3, generator=generator)
    compiled(rows, scale=torch.tensor(2.0))
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        compiled(rows, scale=torch.tensor(float("nan")))
