"""What the enumerated tests of `cross_frobenius` do not reach: strips, subsets, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import widest
from torch import Tensor

import sslfast
from sslfast._core.correlation import frobenius as layout
from sslfast._core.rows.standardize import Scaling
from sslfast.losses.redundancy._standardized import split_frobenius_of_standardized
from sslfast.ops.correlation import frobenius_cost as cost
from sslfast.ops.correlation import frobenius_keep as keep
from sslfast.ops.correlation.frobenius import cross_frobenius, reference
from sslfast.ops.rows.standardize import reference as standardize_reference
from sslfast.testing import check_case, threads

NAME = "cross_frobenius"


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products beyond a few hundred elements are held a strip at a time, and never kept."""
    monkeypatch.setattr(layout, "strip_elements", lambda a, b: 300)


@pytest.mark.parametrize("symmetric", [False, True], ids=["two", "symmetric"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("route", ["gram", "direct"])
@pytest.mark.parametrize("shape", [(83, 45), (45, 83), (120, 31)], ids=str)
def test_strips(
    shape: tuple[int, int],
    route: str,
    split: bool,
    symmetric: bool,
    no_room: None,
    cpu_backend: str,
    generator: torch.Generator,
) -> None:
    arguments: dict[str, Any] = {"a": normal(generator, *shape)}
    if not symmetric:
        arguments["b"] = normal(generator, *shape)
    arguments |= {"split_diagonal": split, "route": route}
    check_case(cross_frobenius, reference, arguments, dtype=torch.float32).require()


@pytest.mark.parametrize("in_strips", [False, True], ids=["whole", "strips"])
@pytest.mark.parametrize(
    ("shape", "route"),
    [
        ((83, 45), "gram"),
        ((83, 45), "direct"),
        ((45, 83), "gram"),
        ((45, 83), "direct"),
        ((64, 96), "gram"),
        ((70, 6), "direct"),
        ((40, 1), "direct"),  # a row of the matrix is no longer than one of its transpose
    ],
    ids=str,
)
def test_columns_treated_as_they_are_read(
    shape: tuple[int, int],
    route: Any,
    in_strips: bool,
    cpu_backend: str,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Far from 0, with a constant column: what the rows stand for is standardised exactly."""
    if in_strips:
        monkeypatch.setattr(layout, "strip_elements", lambda a, b: 300)
    rule = Scaling(ddof=1, eps=0.0, eps_on="variance", unit_variance=True)
    views = {"a": 3 * normal(generator, *shape) + 40, "b": normal(generator, *shape)}
    views["b"][:, 5:6] = 0.7

    def treated(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return split_frobenius_of_standardized(a, b, rule, route)

    def written(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (standardize_reference(view, ddof=1, eps=0.0) for view in (a, b))
        off_diagonal, diagonal = reference(a, b, split_diagonal=True)
        return off_diagonal, diagonal

    check_case(treated, written, views, dtype=torch.float32).require()


def test_strips_hold_no_product(no_room: None, generator: torch.Generator) -> None:
    a = normal(generator, 60, 50)
    assert keep.cache_elements(a, None, "gram", learns=True) == 0
    assert keep.cache_elements(a, None, "direct", learns=True) == 0


@pytest.mark.parametrize("route", ["gram", "direct"])
def test_many_tiles(route: str, cpu_backend: str, generator: torch.Generator) -> None:
    """Several chunks of depth and several blocks in both directions, all of them ragged."""
    if cpu_backend == "triton":
        pytest.skip("sizes that the interpreter takes minutes for; `typical` samples cover them")
    num_rows, dim = (301, 1083) if route == "gram" else (1083, 301)
    arguments = {
        "a": normal(generator, num_rows, dim),
        "b": normal(generator, num_rows, dim),
        "split_diagonal": True,
        "route": route,
    }
    check_case(cross_frobenius, reference, arguments, dtype=torch.float32).require()


@pytest.mark.parametrize("route", ["gram", "direct"])
@pytest.mark.parametrize("wanted", ["a", "b"])
def test_partial_gradients(
    wanted: str, route: Any, cpu_backend: str, generator: torch.Generator
) -> None:
    dtype = widest(cpu_backend, NAME)
    pair = {name: normal(generator, 9, 13).to(dtype) for name in "ab"}
    pair[wanted].requires_grad_()
    off, diagonal = cross_frobenius(**pair, split_diagonal=True, route=route)
    (actual,) = torch.autograd.grad(off + diagonal.sum(), pair[wanted])
    off, diagonal = reference(**pair, split_diagonal=True)
    (expected,) = torch.autograd.grad(off + diagonal.sum(), pair[wanted])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("route", ["gram", "direct"])
@pytest.mark.parametrize("used", [0, 1], ids=["off_diagonal", "diagonal"])
def test_one_output_used(
    used: int, route: Any, cpu_backend: str, generator: torch.Generator
) -> None:
    a = normal(generator, 9, 13).to(widest(cpu_backend, NAME)).requires_grad_()
    actual = cross_frobenius(a, split_diagonal=True, route=route)[used].sum()
    expected = reference(a, split_diagonal=True)[used].sum()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, a), torch.autograd.grad(expected, a))


def test_both_sides_of_one_leaf(cpu_backend: str, generator: torch.Generator) -> None:
    """The symmetric form is asked for by b=None: a matrix given twice has two gradients."""
    a = normal(generator, 7, 11).to(widest(cpu_backend, NAME)).requires_grad_()
    (twice,) = torch.autograd.grad(cross_frobenius(a, a), a)
    (once,) = torch.autograd.grad(cross_frobenius(a), a)
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("route", ["gram", "direct"])
def test_threads_do_not_matter(route: Any, generator: torch.Generator) -> None:
    a = normal(generator, 260, 300).float().requires_grad_()
    b = normal(generator, 260, 300).float().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        outputs = cross_frobenius(a, b, split_diagonal=True, route=route)
        return (*outputs, *torch.autograd.grad(outputs[0] + outputs[1].sum(), (a, b)))

    with threads(1):
        alone = run()
    with threads(2):
        together = run()
    assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_as_a_product_would(
    dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    a, b = (normal(generator, 6, 10).float() for _ in "ab")
    with torch.autocast("cpu", dtype=dtype):
        value = cross_frobenius(a, b)
    assert value.dtype == torch.float32
    assert torch.equal(value, cross_frobenius(a.to(dtype), b.to(dtype)))


def test_half_precision_keeps_its_range(cpu_backend: str, generator: torch.Generator) -> None:
    """Rows of sigma 8 in float16: the usual product of 2048 rows is beyond 65504."""
    rows = (8 * normal(generator, 2048, 6)).half()
    assert (rows.T @ rows).isinf().any()
    off, diagonal = cross_frobenius(rows, split_diagonal=True)
    truth = reference(rows.double(), split_diagonal=True)
    torch.testing.assert_close(off.double(), truth[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(diagonal.double(), truth[1], rtol=1e-5, atol=0)


def test_route_is_the_cheaper_one() -> None:
    """Where the routes cost the same, N (D + E) = 2 D E, the product of features is taken."""
    a = torch.empty(64, 64, device="meta")
    assert keep.choose_route(a, None) == "direct"
    assert keep.choose_route(a[:63], None) == "gram"
    wide = torch.empty(64, 192, device="meta")
    assert keep.choose_route(a, wide) == "gram"  # 64 * 256 < 2 * 64 * 192
    narrow = torch.empty(64, 32, device="meta")
    assert keep.choose_route(a, narrow) == "direct"


@pytest.mark.parametrize("num_rows", [1, 100, 1000])
@pytest.mark.parametrize("dims", [(300,), (300, 300), (700, 20)], ids=str)
def test_costs_choose(num_rows: int, dims: tuple[int, ...]) -> None:
    matrices = [torch.empty(num_rows, dim, device="meta") for dim in dims]
    best = min(cost.flops(*matrices, route=route) for route in ("gram", "direct"))
    assert cost.flops(*matrices) == best


def call(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"a": torch.ones(4, 3), "b": torch.ones(4, 3)}
    return lambda: cross_frobenius(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (call(a=[1.0]), TypeError, "a must be a tensor, got list"),
        (call(a=torch.ones(4, 3).long()), TypeError, "a must be floating point"),
        (call(a=torch.ones(4)), ValueError, r"a must be a matrix \(N, D\)"),
        (call(a=torch.ones(4, 0)), ValueError, "at least one feature"),
        (call(b=torch.ones(4, 3, 1)), ValueError, r"b must be a matrix \(N, E\)"),
        (call(b=torch.ones(5, 3)), ValueError, r"b must have the 4 rows of a, got shape \(5, 3\)"),
        (
            call(b=torch.ones(4, 2), split_diagonal=True),
            ValueError,
            r"b must have the 3 features of a with split_diagonal=True, got shape \(4, 2\)",
        ),
        (call(b=torch.ones(4, 3, device="meta")), ValueError, "b must be on the device of a"),
        (call(route="fast"), ValueError, "route must be one of .*got 'fast'"),
    ],
)
def test_bad_input(function: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        function()


def test_empty_batch(cpu_backend: str) -> None:
    a = torch.empty(0, 3, requires_grad=True)
    off, diagonal = sslfast.cross_frobenius(a, split_diagonal=True)
    assert off == 0
    assert torch.equal(diagonal, torch.zeros(3))
    assert torch.autograd.grad(off, a)[0].shape == (0, 3)
