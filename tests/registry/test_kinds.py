"""The registry holds every kind of primitive, and what enumerates it proves each of them.

The enumerated tests are called with throw-away primitives, right and wrong, that are registered
for a test alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import memory_cases
import pytest
import scratch_primitives
import test_layout
import test_numbers
import test_registration
import test_registry
import torch
from conftest import Case
from scratch_primitives import AVERAGE, CONTRAST, KINDS, NEAREST, POTENTIALS, SQUARE, registered

import sslfast
from sslfast import _info
from sslfast._core.tree import map_tensors
from sslfast._registry import Implementation, Primitive, register_primitive
from sslfast.bench import suite
from sslfast.bench.contestants import Contestant, forward_backward
from sslfast.bench.correctness import Standard
from sslfast.testing import cast

BACKENDS = ("reference", "cpu:baseline")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def scratch(request: pytest.FixtureRequest) -> Iterator[Primitive]:
    with registered(request.param) as spec:
        yield spec


def cases(primitive: Primitive) -> list[Case]:
    return [Case(primitive, sample) for sample in primitive.samples]


def test_it_is_described(scratch: Primitive, generator: torch.Generator) -> None:
    test_registry.test_reference_has_the_signature_of_the_function(scratch)
    test_registry.test_primitive_is_sampled(scratch, generator)
    test_registry.test_samples_are_reproducible(scratch)
    test_registry.test_primitive_is_costed(scratch)
    test_registry.test_primitive_is_implemented(scratch)
    assert scratch.name in _info.readme_table()


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_judged(scratch: Primitive, backend: str, generator: torch.Generator) -> None:
    judged = 0
    for case in cases(scratch):
        for dtype in test_numbers.DTYPES:
            with sslfast.backend(backend):
                try:
                    test_numbers.test_values_and_gradients(case, dtype, backend, generator)
                except pytest.skip.Exception:
                    continue
            judged += 1
    assert judged == len(scratch.samples) * (1 if scratch is CONTRAST else 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_and_repetition(
    scratch: Primitive, backend: str, generator: torch.Generator
) -> None:
    with sslfast.backend(backend):
        for case in cases(scratch):
            test_layout.test_two_runs_agree_bitwise(case, backend, generator)
            for layout in (test_layout.strided, test_layout.transposed):
                test_layout.test_layout_does_not_matter(case, layout, backend, generator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_sees_its_ops(scratch: Primitive, backend: str, generator: torch.Generator) -> None:
    with sslfast.backend(backend):
        for case in cases(scratch)[:2]:
            test_registration.check_ops(scratch, cast(case.sample.make(generator), torch.float32))
        if scratch is not CONTRAST:  # whose dtype is that of its images
            test_registration.test_fake_tensors_have_the_real_dtypes(
                scratch.name, torch.float16, backend, generator
            )
        test_registration.test_fullgraph(scratch.name, False, backend, generator)


def test_its_memory_is_measured(scratch: Primitive, monkeypatch: pytest.MonkeyPatch) -> None:
    form = f"{scratch.name} rows"
    monkeypatch.setitem(memory_cases.FORMS, form, (scratch, scratch.memory["rows"]))
    _, found = memory_cases.prepare(form, "reference", 6, 4)()  # type: ignore[misc]
    assert len(found) == (3 if scratch is SQUARE else 0)


def test_it_is_benchmarked(scratch: Primitive) -> None:
    """As a case of its own, which nobody lists, and judged there."""
    workload = suite.workloads()[f"{scratch.name}[typical]"]
    case = suite.Case(workload, {})
    contestant = Contestant("sslfast", scratch.function, "cpu:baseline")
    assert not Standard(case).judge(contestant).failure
    _, found = forward_backward(contestant, case.inputs(), contestant.leaves(case))
    assert len(found) == (3 if scratch is SQUARE else 0)


def bent(spec: Primitive, **bodies: Any) -> Primitive:
    """The primitive, with another body on the CPU backend."""
    cpu = replace(spec.implementations["cpu"], **bodies)
    return replace(spec, implementations={**spec.implementations, "cpu": cpu})


def _half(body: Any) -> Any:
    """A body whose floating-point results are half of what they should be."""

    def halved(*arguments: Any, **options: Any) -> Any:
        return map_tensors(lambda each: each / 2, body(*arguments, **options))

    return halved


def _last_forgotten(targets: Any, sources: Any, share: float, **options: Any) -> None:
    torch._foreach_lerp_(targets[:-1], sources[:-1], share)


def _next(rows: torch.Tensor, prototypes: torch.Tensor, **options: Any) -> torch.Tensor:
    found = NEAREST.implementations["cpu"].forward(rows, prototypes)
    return torch.where(torch.arange(len(rows)) == 0, (found + 1) % len(prototypes), found)


WRONG = {
    "without a gradient": (
        bent(POTENTIALS, forward=_half(POTENTIALS.implementations["cpu"].forward)),
        "output 0: largest",
    ),
    "in place over lists": (bent(AVERAGE, forward=_last_forgotten), r"targets\[2\] afterwards"),
    "gradient over lists": (
        bent(SQUARE, backward=_half(SQUARE.implementations["cpu"].backward)),
        r"gradient of views\[0\]: largest",
    ),
    "uint8 images": (
        bent(CONTRAST, forward=_half(CONTRAST.implementations["cpu"].forward)),
        "output 0: largest",
    ),
    "integer outputs": (bent(NEAREST, forward=_next), "output 0: . instead of ."),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_one_is_found(
    kind: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    spec, message = WRONG[kind]
    monkeypatch.setattr(scratch_primitives, spec.name.removeprefix("scratch_").upper(), spec)
    with registered(spec), sslfast.backend("cpu:baseline"):
        case = cases(spec)[1]
        with pytest.raises(AssertionError, match=message):
            test_numbers.test_values_and_gradients(case, torch.float32, "cpu:baseline", generator)


def test_half_a_gradient_is_refused() -> None:
    for spec, message in (
        (replace(SQUARE, backward_op=None), "has no backward_op, but differentiable"),
        (replace(SQUARE, differentiable=()), "has a backward_op, but no differentiable"),
        (
            replace(POTENTIALS, implementations={"cpu": Implementation(len, len, ())}),
            "has no backward_op, but backward of cpu",
        ),
        (
            replace(SQUARE, implementations={"cpu": Implementation(len, None, ())}),
            "has a backward_op, but no backward of cpu",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            register_primitive(spec)
