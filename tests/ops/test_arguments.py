"""What the primitives accept, in which dtype they answer, and how they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import require_dtype

import sslfast

Q, K = torch.zeros(3, 2), torch.zeros(4, 2)
IDS3, IDS4 = torch.arange(3), torch.arange(4)
META = {"device": "meta"}

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "queries kind": ({"queries": [[1.0]]}, TypeError, "queries must be a tensor, got list"),
    "queries dtype": (
        {"queries": Q.long()},
        TypeError,
        r"queries must be floating .* got torch\.int64",
    ),
    "queries complex": ({"queries": Q.to(torch.complex64)}, TypeError, "queries must be floating"),
    "queries shape": (
        {"queries": Q[0]},
        ValueError,
        r"queries must be a matrix \(N, D\).*got shape \(2,\)",
    ),
    "queries features": ({"queries": Q[:, :0]}, ValueError, "queries .* at least one feature"),
    "queries empty": ({"queries": Q[:0]}, ValueError, "queries must hold at least one row"),
    "queries empty columns": (
        {"queries": Q[:0], "keys": K, "columns": True},
        ValueError,
        "queries must hold at least one row with columns=True",
    ),
    "keys kind": ({"keys": 1.0}, TypeError, "keys must be a tensor, got float"),
    "keys dtype": ({"keys": K.int()}, TypeError, r"keys must be floating .* got torch\.int32"),
    "keys shape": ({"keys": K[None]}, ValueError, r"keys must be a matrix \(M, D\)"),
    "keys features": (
        {"keys": torch.zeros(4, 5)},
        ValueError,
        r"keys must have the 2 features of queries, got shape \(4, 5\)",
    ),
    "keys empty": ({"keys": K[:0]}, ValueError, "keys must hold at least one row"),
    "keys device": (
        {"keys": K.to(**META)},
        ValueError,
        r"keys must be on the device of queries \(cpu\), got meta",
    ),
    "scale kind": ({"scale": "2"}, TypeError, "scale must be a number or a tensor, got str"),
    "scale bool": ({"scale": True}, TypeError, "scale must be a number or a tensor, got bool"),
    "scale dtype": ({"scale": IDS3}, TypeError, "scale must be floating point"),
    "scale nan": ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    "scale inf": (
        {"scale": torch.tensor(-torch.inf)},
        ValueError,
        "scale must be finite, got -inf",
    ),
    "scale rows": (
        {"keys": K, "scale": torch.tensor([1.0, torch.nan, 1.0])},
        ValueError,
        "scale must be finite, got nan at index 1",
    ),
    "scale length": (
        {"keys": K, "scale": torch.ones(4)},
        ValueError,
        r"scale must have one element or one a query, shape \(N,\) = \(3,\), got shape \(4,\)",
    ),
    "scale matrix": ({"keys": K, "scale": torch.ones(3, 1)}, ValueError, "scale must have one"),
    "scale device": (
        {"scale": torch.ones((), **META)},
        ValueError,
        "scale must be on the device of queries",
    ),
    "scale symmetric": (
        {"scale": torch.ones(3)},
        ValueError,
        "scale must have one element with the symmetric form .* exponential each",
    ),
    "scale columns": (
        {"keys": K, "scale": torch.ones(3), "columns": True},
        ValueError,
        "scale must have one element with columns=True",
    ),
    "bias kind": ({"keys": K, "bias": 1.0}, TypeError, "bias must be a tensor, got float"),
    "bias dtype": ({"keys": K, "bias": IDS4}, TypeError, "bias must be floating point"),
    "bias length": (
        {"keys": K, "bias": torch.zeros(3)},
        ValueError,
        r"bias must have shape \(M,\) = \(4,\), got shape \(3,\)",
    ),
    "bias nan": (
        {"keys": K, "bias": torch.tensor([0.0, 0.0, torch.inf, 0.0])},
        ValueError,
        "bias must be finite, got inf at index 2",
    ),
    "bias device": (
        {"keys": K, "bias": torch.zeros(4, **META)},
        ValueError,
        "bias must be on the device of queries",
    ),
    "bias symmetric": (
        {"bias": torch.zeros(3)},
        ValueError,
        "bias must be None with the symmetric form",
    ),
    "bias columns": (
        {"keys": K, "bias": torch.zeros(4), "columns": True},
        ValueError,
        "bias must be None with columns=True",
    ),
    "query_ids kind": ({"query_ids": [0, 1, 2]}, TypeError, "query_ids must be a tensor, got list"),
    "query_ids dtype": (
        {"query_ids": IDS3.float()},
        TypeError,
        r"query_ids must hold integers .* got torch\.float32",
    ),
    "query_ids bool": ({"query_ids": IDS3 > 1}, TypeError, "query_ids must hold integers"),
    "query_ids length": (
        {"query_ids": IDS4},
        ValueError,
        r"query_ids must have shape \(N,\) = \(3,\), got shape \(4,\)",
    ),
    "query_ids shape": ({"query_ids": IDS3[None]}, ValueError, "query_ids must have shape"),
    "query_ids device": (
        {"query_ids": IDS3.to(**META)},
        ValueError,
        "query_ids must be on the device of queries",
    ),
    "query_ids alone": (
        {"keys": K, "query_ids": IDS3},
        ValueError,
        "key_ids must be given together with query_ids, got None",
    ),
    "key_ids alone": (
        {"keys": K, "key_ids": IDS4},
        ValueError,
        "query_ids must be given together with key_ids, got None",
    ),
    "key_ids symmetric": (
        {"query_ids": IDS3, "key_ids": IDS3},
        ValueError,
        r"key_ids must be None in the symmetric form \(keys=None\)",
    ),
    "key_ids length": (
        {"keys": K, "query_ids": IDS3, "key_ids": IDS3},
        ValueError,
        r"key_ids must have shape \(M,\) = \(4,\), got shape \(3,\)",
    ),
    "key_ids dtype": (
        {"keys": K, "query_ids": IDS3, "key_ids": K[:, 0]},
        TypeError,
        "key_ids must hold integers",
    ),
    "key_ids device": (
        {"keys": K, "query_ids": IDS3, "key_ids": IDS4.to(**META)},
        ValueError,
        "key_ids must be on the device of queries",
    ),
    "columns symmetric": (
        {"columns": True},
        ValueError,
        "columns must be False in the symmetric form .* equal the rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_similarity_logsumexp_refuses(name: str) -> None:
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        sslfast.similarity_logsumexp(**{"queries": Q, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": [1.0]}, TypeError, "embeddings must be a tensor, got list"),
        ({"embeddings": IDS3}, TypeError, "embeddings must be floating point"),
        ({"embeddings": torch.tensor(1.0)}, ValueError, r"embeddings must have .* got shape \(\)"),
        ({"embeddings": Q[:, :0]}, ValueError, r"embeddings must have .* got shape \(3, 0\)"),
        ({"embeddings": Q, "eps": "1"}, TypeError, "eps must be a number, got str"),
        ({"embeddings": Q, "eps": 0.0}, ValueError, r"eps must be finite and above 0, got 0\.0"),
        ({"embeddings": Q, "eps": float("nan")}, ValueError, "eps must be finite .* got nan"),
        ({"embeddings": Q, "eps": float("inf")}, ValueError, "eps must be finite .* got inf"),
    ],
)
def test_l2_normalize_refuses(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sslfast.l2_normalize(**arguments)


@pytest.mark.parametrize(
    ("queries", "keys", "answer"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, None, torch.float64),
    ],
)
def test_dtypes_promote_to_the_wider(
    queries: torch.dtype, keys: torch.dtype | None, answer: torch.dtype, cpu_backend: str
) -> None:
    require_dtype(cpu_backend, answer, "similarity_logsumexp")
    left = torch.randn(5, 3, dtype=torch.float64).to(queries).requires_grad_()
    right = None if keys is None else torch.randn(6, 3).to(keys).requires_grad_()
    scale = torch.tensor(2.0, dtype=torch.bfloat16, requires_grad=True)
    rows = sslfast.similarity_logsumexp(left, right, scale=scale)
    rows.sum().backward()
    assert rows.dtype == answer
    for leaf in (left, scale) if right is None else (left, right, scale):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype


@pytest.mark.parametrize("shape", [(), (1,), (5,)], ids=str)
def test_scale_gradient_has_the_shape_of_scale(shape: tuple[int, ...], cpu_backend: str) -> None:
    scale = torch.full(shape, 2.0, requires_grad=True)
    sslfast.similarity_logsumexp(torch.ones(5, 3), torch.ones(6, 3), scale=scale).sum().backward()
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, torch.full(shape, 15.0 if shape != (5,) else 3.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_narrow_ids(dtype: torch.dtype, cpu_backend: str) -> None:
    rows, ids = torch.eye(4), torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(
        sslfast.similarity_logsumexp(rows, query_ids=ids.to(dtype)),
        sslfast.similarity_logsumexp(rows, query_ids=ids),
    )


def test_ids_beyond_32_bits_differ(cpu_backend: str) -> None:
    """Two ids that agree in their lower 32 bits are two ids."""
    ids = torch.tensor([5, 5 + (1 << 32), -(1 << 62), 5])
    rows = sslfast.similarity_logsumexp(torch.zeros(4, 3), query_ids=ids)
    torch.testing.assert_close(rows.exp(), torch.tensor([2.0, 3.0, 3.0, 2.0]))


def test_autocast_rounds_rows_as_a_product_would(cpu_backend: str) -> None:
    queries, keys = torch.randn(9, 20), torch.randn(7, 20)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sslfast.similarity_logsumexp(queries, keys)
    assert cast.dtype == torch.float32
    rounded = sslfast.similarity_logsumexp(queries.bfloat16(), keys.bfloat16())
    assert torch.equal(cast, rounded)


def test_autocast_leaves_float64_alone(cpu_backend: str) -> None:
    require_dtype(cpu_backend, torch.float64, "similarity_logsumexp")
    queries, keys = torch.randn(9, 20).double(), torch.randn(7, 20).double()
    with torch.autocast("cpu", torch.bfloat16):
        rows = sslfast.similarity_logsumexp(queries, keys)
    assert rows.dtype == torch.float64


def test_nan_embeddings_give_nan_where_the_reference_does(cpu_backend: str) -> None:
    queries, keys = torch.randn(5, 4), torch.randn(6, 4)
    queries[2, 1] = torch.nan
    rows = sslfast.similarity_logsumexp(queries, keys)
    assert rows.isnan().tolist() == [False, False, True, False, False]


def test_infinite_temperature_counts_keys(cpu_backend: str) -> None:
    rows = sslfast.similarity_logsumexp(torch.randn(5, 3), torch.randn(8, 3), scale=0.0)
    torch.testing.assert_close(rows, torch.full((5,), 8.0).log())
