"""What the enumerated tests do not know of `similarity_topk`: order, refusals, threads, values."""

from __future__ import annotations

from typing import Any

import density
import pytest
import torch
from conftest import CPU_BACKENDS, require_backend, require_dtype, widest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
from sslfast._core.similarity.topk import Arguments, Neighbours
from sslfast._registry import PRIMITIVES
from sslfast.ops.similarity.checks import check_neighbours
from sslfast.testing import threads

PRIMITIVE = PRIMITIVES["similarity_topk"]
Q, K = torch.eye(3), torch.eye(4, 3)
IDS3, IDS4 = torch.arange(3), torch.arange(4)

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "queries kind": ({"queries": [[1.0]]}, TypeError, "queries must be a tensor, got list"),
    "queries shape": ({"queries": Q[0]}, ValueError, r"queries must be a matrix \(N, D\)"),
    "keys dtype": ({"keys": K.int()}, TypeError, r"keys must be floating .* got torch\.int32"),
    "keys features": ({"keys": torch.zeros(4, 5)}, ValueError, "keys must have the 3 features"),
    "keys device": ({"keys": K.to("meta")}, ValueError, "keys must be on the device of queries"),
    "k kind": ({"k": 2.0}, TypeError, "k must be an integer, got float"),
    "k bool": ({"k": True}, TypeError, "k must be an integer, got bool"),
    "k zero": ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    "k large": ({"k": 5}, ValueError, "k must be at most the number of keys, 4, got 5"),
    "k large alone": (
        {"keys": None, "k": 4},
        ValueError,
        "k must be at most the number of queries, 3, got 4",
    ),
    "no keys": ({"keys": K[:0]}, ValueError, "k must be at most the number of keys, 0, got 1"),
    "ids alone": ({"query_ids": IDS3}, ValueError, "key_ids must be given together with query_ids"),
    "ids length": (
        {"query_ids": IDS4, "key_ids": IDS4},
        ValueError,
        r"query_ids must have shape \(N,\) = \(3,\), got shape \(4,\)",
    ),
    "ids kind": (
        {"query_ids": IDS3.float(), "key_ids": IDS4},
        TypeError,
        "query_ids must hold integers",
    ),
    "key ids alone": (
        {"keys": None, "query_ids": IDS3, "key_ids": IDS3},
        ValueError,
        "key_ids must be None in the symmetric form",
    ),
    "nothing left": (
        {"query_ids": IDS3, "key_ids": torch.tensor([1, 1, 1, 1])},
        ValueError,
        "query 1 has 0, got k = 1",
    ),
    "too few left": (
        {"k": 3, "query_ids": IDS3, "key_ids": torch.tensor([2, 0, 2, 1])},
        ValueError,
        "keys that a query does not exclude: query 2 has 2, got k = 3",
    ),
    "too few others": (
        {"keys": None, "k": 3, "query_ids": IDS3},
        ValueError,
        "query 0 has 2, got k = 3",
    ),
    "query nan": (
        {"queries": torch.tensor([[1.0, 0, 0], [0, torch.nan, 0]])},
        ValueError,
        "queries must be finite, got nan in row 1, feature 1",
    ),
    "key nan": (
        {"keys": torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, torch.nan]])},
        ValueError,
        "keys must be finite, got nan in row 2, feature 2",
    ),
    "own nan": (
        {"queries": torch.tensor([[1.0, 0, 0], [torch.nan, 0, 0]]), "keys": None},
        ValueError,
        "queries must be finite, got nan in row 1|keys must be finite, got nan in row 1",
    ),
    "key inf": (
        {"keys": torch.tensor([[0.0, 0, torch.inf]])},
        ValueError,
        "keys must be finite, got inf in row 0, feature 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, cpu_backend: str) -> None:
    change, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        sslfast.similarity_topk(**{"queries": Q, "keys": K, "k": 1, **change})


def test_a_sum_that_overflows_is_named() -> None:
    """inf - inf of finite rows, which depends on the order of the sum."""
    rows = torch.tensor([[1e30, 1e30]])
    found = Neighbours(torch.tensor([[torch.nan]]), torch.tensor([[0]]))
    with pytest.raises(ValueError, match="that do not overflow, got nan for query 0"):
        check_neighbours(found, Arguments(rows, -rows, None, None, 1))


def test_values_of_an_excluded_nan_do_not_matter(cpu_backend: str) -> None:
    keys = K.clone()
    keys[3] = torch.nan
    ids = {"query_ids": torch.zeros(3).long(), "key_ids": torch.tensor([1, 1, 1, 0])}
    values, indices = sslfast.similarity_topk(Q, keys, 1, **ids)
    assert values.tolist() == [[1.0]] * 3
    assert indices.tolist() == [[0], [1], [2]]


def test_equal_similarities_come_in_the_order_of_their_keys(cpu_backend: str) -> None:
    """Over many tiles and panels, whatever comes before: the lower index wins its place."""
    keys = torch.zeros(500, 3)
    keys[7::11, 0] = 1.0
    keys[5::50, 0] = 2.0
    keys[::3, 1] = -0.0
    values, indices = sslfast.similarity_topk(torch.tensor([[1.0, 1.0, 0.0]]), keys, 80)
    expected = (keys[:, 0]).sort(descending=True, stable=True)
    assert torch.equal(indices[0], expected.indices[:80])
    assert torch.equal(values[0], expected.values[:80])


@pytest.mark.parametrize("order", ["ascending", "descending", "falling then rising"])
def test_sorted_galleries(order: str, cpu_backend: str) -> None:
    """Every key exceeds those before it, or none does."""
    levels = torch.arange(700.0)
    levels = {"ascending": levels, "descending": -levels}.get(order, (levels - 350).abs())
    for k in (1, 16, 33):
        values, indices = sslfast.similarity_topk(torch.ones(2, 1), levels[:, None], k)
        expected = levels.sort(descending=True, stable=True)
        assert torch.equal(indices, expected.indices[:k].expand(2, k))
        assert torch.equal(values, expected.values[:k].expand(2, k))


@pytest.mark.uninterpreted
@pytest.mark.parametrize("num_rows", [1, 5, 40, 70, 600])
@pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name.startswith("cpu")])
def test_threads_that_share_queries_agree(
    backend: str, num_rows: int, generator: torch.Generator
) -> None:
    """With fewer blocks of queries than threads each takes a part of the keys: bitwise the same."""
    require_backend(backend)
    queries = torch.randn(num_rows, 24, generator=generator)
    keys = torch.randn(3000, 24, generator=generator).round()
    ids = {"query_ids": torch.arange(num_rows) % 7, "key_ids": torch.arange(3000) % 11}
    with sslfast.backend(backend):
        one = sslfast.similarity_topk(queries, keys, 50, **ids)
        for count in (2, 5, 16):
            with threads(count):
                more = sslfast.similarity_topk(queries, keys, 50, **ids)
            assert all(torch.equal(a, b) for a, b in zip(more, one, strict=True)), count


@pytest.mark.uninterpreted
def test_several_strips_of_keys(cpu_backend: str, generator: torch.Generator) -> None:
    """Keys are packed some 2 MiB at a time; indices count from the first of all."""
    queries = torch.randn(70, 300, generator=generator).round()
    keys = torch.randn(6000, 300, generator=generator).round()
    values, indices = sslfast.similarity_topk(queries, keys, 9)
    expected = PRIMITIVE.reference(queries, keys, 9)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("wanted", ["queries", "keys", "both"])
def test_partial_gradients(wanted: str, cpu_backend: str, generator: torch.Generator) -> None:
    require_dtype(cpu_backend, torch.float64, PRIMITIVE.name)
    queries = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    keys = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    leaves = {"queries": [queries], "keys": [keys]}.get(wanted, [queries, keys])
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.rand(9, 5, generator=generator, dtype=torch.float64)
    values, _ = sslfast.similarity_topk(queries, keys, 5)
    expected, _ = PRIMITIVE.reference(queries, keys, 5)
    torch.testing.assert_close(
        torch.autograd.grad(values, leaves, weights), torch.autograd.grad(expected, leaves, weights)
    )


def test_indices_have_no_gradient(cpu_backend: str) -> None:
    values, indices = sslfast.similarity_topk(Q.clone().requires_grad_(), K, 2)
    assert values.requires_grad
    assert not indices.requires_grad
    assert indices.dtype == torch.int64


def test_keys_that_nobody_chose_have_zero_gradient(cpu_backend: str) -> None:
    keys = torch.tensor([[3.0], [1.0], [2.0]], requires_grad=True)
    queries = torch.tensor([[1.0], [-1.0], [2.0]], requires_grad=True)
    values, indices = sslfast.similarity_topk(queries, keys, 1)
    assert indices.tolist() == [[0], [1], [0]]
    dqueries, dkeys = torch.autograd.grad(values.sum(), (queries, keys))
    assert dqueries.tolist() == [[3.0], [1.0], [3.0]]
    assert dkeys.tolist() == [[3.0], [-1.0], [0.0]]


@pytest.mark.parametrize(
    ("queries", "keys", "answer"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
    ],
)
def test_dtypes_promote_to_the_wider(
    queries: torch.dtype, keys: torch.dtype | None, answer: torch.dtype, cpu_backend: str
) -> None:
    require_dtype(cpu_backend, answer, PRIMITIVE.name)
    left = torch.randn(5, 3, dtype=torch.float64).to(queries).requires_grad_()
    right = None if keys is None else torch.randn(6, 3).to(keys).requires_grad_()
    values, _ = sslfast.similarity_topk(left, right, 3)
    values.sum().backward()
    assert values.dtype == answer
    for leaf in (left,) if right is None else (left, right):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype


def test_autocast_rounds_rows_as_a_product_would(cpu_backend: str) -> None:
    queries, keys = torch.randn(9, 20), torch.randn(7, 20)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sslfast.similarity_topk(queries, keys, 4)
    assert cast[0].dtype == torch.float32
    rounded = sslfast.similarity_topk(queries.bfloat16(), keys.bfloat16(), 4)
    assert all(torch.equal(a, b) for a, b in zip(cast, rounded, strict=True))


def test_missing_neighbours_have_no_gradient() -> None:
    """Where values are not read back, a query with too few keys has -inf and -1."""
    queries, keys = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    backward = PRIMITIVE.implementations["reference"].backward
    indices = torch.tensor([[1, -1], [-1, -1]])
    dqueries, dkeys = backward(torch.ones(2, 2), queries, keys, indices, True, True)
    assert dqueries.tolist() == [[1.0] * 3, [0.0] * 3]
    assert dkeys.tolist() == [[0.0] * 3, [1.0] * 3]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Rows on a grid of so few levels that ties are everywhere, ids that leave k keys."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_rows, num_keys = draw(st.integers(1, 70)), draw(st.integers(1, 200))
    dim, levels = draw(st.integers(1, 40)), draw(st.sampled_from([0, 1, 3, 100]))

    def grid(length: int) -> Tensor:
        return torch.randint(-levels, levels + 1, (length, dim), generator=generator).double()

    case: dict[str, Any] = {"queries": grid(num_rows), "keys": grid(num_keys)}
    left = num_keys
    classes = draw(st.sampled_from([0, 2, 5]))
    if classes:
        case["query_ids"] = torch.randint(classes, (num_rows,), generator=generator)
        case["key_ids"] = torch.randint(classes, (num_keys,), generator=generator)
        left -= int(torch.bincount(case["key_ids"]).max())
    case["k"] = draw(st.integers(1, max(1, min(left, 40))))
    return case


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(deadline=None, derandomize=True, max_examples=density.examples(40))
@given(case=cases())
def test_anywhere(backend: str, case: dict[str, Any]) -> None:
    require_backend(backend)
    expected = PRIMITIVE.reference(**case)
    if (expected[1] < 0).any():
        return
    dtype = widest(backend, PRIMITIVE.name)
    rows = {name: case[name].to(dtype) for name in ("queries", "keys")}
    with sslfast.backend(backend):
        values, indices = sslfast.similarity_topk(**{**case, **rows})
    assert torch.equal(values.double(), expected[0])
    assert torch.equal(indices, expected[1])
