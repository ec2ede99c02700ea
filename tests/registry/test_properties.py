"""Identities that every backend keeps, and shapes and scales that nobody thought of."""

from __future__ import annotations

from typing import Any

import density
import pytest
import torch
from conftest import CPU_BACKENDS, require_backend, widest
from hypothesis import given, settings
from hypothesis import strategies as st

import sslfast
from sslfast._registry import PRIMITIVES, Primitive, Property, Tolerance
from sslfast.testing import FLOAT64_FLOOR, cast, check_case

PROPERTIES = [(spec, each) for spec in PRIMITIVES.values() for each in spec.properties]


@pytest.mark.parametrize(
    ("primitive", "identity"),
    PROPERTIES,
    ids=[f"{spec.name}-{each.name}" for spec, each in PROPERTIES],
)
def test_property(
    primitive: Primitive, identity: Property, cpu_backend: str, generator: torch.Generator
) -> None:
    dtype = widest(cpu_backend, primitive.name)

    def function(*arguments: Any, **options: Any) -> Any:
        positional = cast({str(index): each for index, each in enumerate(arguments)}, dtype)
        return primitive.function(*positional.values(), **cast(options, dtype))

    left, right = identity.sides(function, generator)
    limit = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(left, right, rtol=limit, atol=limit, msg=identity.statement)


sizes = st.integers(1, 70)
features = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 257]))
scales = st.floats(-3, 3).map(lambda power: 10.0**power)


@st.composite
def similarity_cases(draw: st.DrawFn) -> dict[str, object]:
    """Arguments in one of the accepted forms, unit rows or not."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    num_rows, num_keys, dim = draw(sizes), draw(sizes), draw(features)
    form = draw(st.sampled_from(["symmetric", "rows", "columns", "options"]))
    scale = draw(scales)
    magnitude = draw(st.sampled_from([0.01, 1.0, 3.0])) / dim**0.5
    case: dict[str, object] = {"queries": magnitude * normal(num_rows, dim)}
    case["scale"] = torch.tensor(scale, dtype=torch.float64)
    if form == "options":
        case["scale"] = scale * normal(num_rows).sigmoid()
        case["bias"] = 4 * normal(num_keys)
    if form != "symmetric":
        case["keys"] = magnitude * normal(num_keys, dim)
        case["columns"] = form == "columns"
    classes = draw(st.sampled_from([0, 1, 2, 50]))
    if classes:
        case["query_ids"] = torch.randint(classes, (num_rows,), generator=generator)
    if classes and form != "symmetric":
        case["key_ids"] = torch.randint(classes, (num_keys,), generator=generator)
    return case


def _near_zero(sums: torch.Tensor | tuple[torch.Tensor, ...]) -> Tolerance:
    """A logarithm near 0 is as far from the truth as the sum whose logarithm it is, which is 1."""
    every = torch.cat(sums) if isinstance(sums, tuple) else sums
    largest = float(every[every.isfinite()].abs().max()) if every.isfinite().any() else 1.0
    floor = FLOAT64_FLOOR / max(min(1.0, largest), 1e-6)
    return Tolerance(floor=floor, reason="nothing limits the conditioning")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(deadline=None, derandomize=True, max_examples=density.examples(60))
@given(case=similarity_cases())
def test_similarity_logsumexp_anywhere(backend: str, case: dict[str, object]) -> None:
    require_backend(backend)
    primitive = PRIMITIVES["similarity_logsumexp"]
    dtype = widest(backend, primitive.name)
    with sslfast.backend(backend):
        check_case(
            primitive.function,
            primitive.reference,
            case,
            dtype=dtype,
            differentiable=primitive.differentiable,
            tolerance=_near_zero(primitive.reference(**case)),
        ).require()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(deadline=None, derandomize=True, max_examples=density.examples(40))
@given(
    num_rows=sizes,
    dim=features.filter(lambda dim: dim > 1),
    scale=scales,
    seed=st.integers(0, 2**31),
)
def test_l2_normalize_anywhere(
    backend: str, num_rows: int, dim: int, scale: float, seed: int
) -> None:
    require_backend(backend)
    primitive = PRIMITIVES["l2_normalize"]
    generator = torch.Generator().manual_seed(seed)
    rows = scale * torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    with sslfast.backend(backend):
        check_case(
            primitive.function, primitive.reference, {"embeddings": rows}, dtype=torch.float32
        ).require()


def test_one_feature_keeps_its_sign_only(cpu_backend: str, generator: torch.Generator) -> None:
    rows = torch.randn(50, 1, generator=generator, requires_grad=True)
    signs = sslfast.l2_normalize(rows)
    torch.testing.assert_close(signs, rows.sign())
    (gradient,) = torch.autograd.grad(signs.sum(), rows)
    torch.testing.assert_close(gradient * rows, torch.zeros_like(rows))
