"""What `similarity_logsumexp` accepts, and the form in which the op takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import (
    check_count,
    check_device,
    check_floating,
    check_ids,
    check_matrix,
    check_vector,
    values_are_read,
)
from sslfast._core.similarity.topk import MISSING, Arguments, Neighbours


def check_logsumexp(
    queries: Tensor,
    keys: Tensor | None,
    scale: float | Tensor,
    bias: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    columns: bool,
) -> None:
    """Kinds, shapes and devices. Values of `scale` and `bias` are checked inside the op."""
    check_matrix("queries", queries, "(N, D)")
    if keys is not None:
        check_keys(queries, keys)
    num_keys = queries.shape[0] if keys is None else keys.shape[0]
    if num_keys == 0:
        name = "queries" if keys is None else "keys"
        raise ValueError(f"{name} must hold at least one row: a sum over no keys has no logarithm")
    per_query = _check_scale(scale, queries)
    if bias is not None:
        check_floating("bias", bias)
        check_vector("bias", bias, "(M,)", num_keys)
        check_device("bias", bias, "queries", queries)
    check_id_pair(queries, keys, query_ids, key_ids)
    _check_combination(queries, keys, per_query, bias, columns)


def scale_tensor(scale: float | Tensor, queries: Tensor, dtype: torch.dtype) -> Tensor:
    """(1,) or (N,) in the accumulator dtype."""
    if isinstance(scale, Tensor):
        return scale.to(dtype).reshape(-1)
    return torch.full((1,), scale, dtype=dtype, device=queries.device)


def check_keys(queries: Tensor, keys: Tensor) -> None:
    """Raises TypeError or ValueError unless (M, D) rows beside (N, D) queries."""
    check_matrix("keys", keys, "(M, D)")
    if keys.shape[1] != queries.shape[1]:
        raise ValueError(
            f"keys must have the {queries.shape[1]} features of queries, "
            f"got shape {tuple(keys.shape)}"
        )
    check_device("keys", keys, "queries", queries)


def _check_scale(scale: float | Tensor, queries: Tensor) -> bool:
    """True where every query has its own scale."""
    if not isinstance(scale, Tensor):
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"scale must be a number or a tensor, got {type(scale).__name__}")
        return False
    check_floating("scale", scale)
    check_device("scale", scale, "queries", queries)
    if scale.ndim == 0 or tuple(scale.shape) == (1,):
        return False
    if scale.ndim != 1 or scale.shape[0] != queries.shape[0]:
        raise ValueError(
            f"scale must have one element or one a query, shape (N,) = ({queries.shape[0]},), "
            f"got shape {tuple(scale.shape)}"
        )
    return True


def check_id_pair(
    queries: Tensor, keys: Tensor | None, query_ids: Tensor | None, key_ids: Tensor | None
) -> None:
    """Raises TypeError or ValueError unless both sides have ids, or neither."""
    if keys is None and key_ids is not None:
        raise ValueError(
            "key_ids must be None in the symmetric form (keys=None): query_ids serve both sides"
        )
    if keys is not None and (query_ids is None) != (key_ids is None):
        missing, given = ("query_ids", "key_ids") if query_ids is None else ("key_ids", "query_ids")
        raise ValueError(f"{missing} must be given together with {given}, got None")
    if query_ids is not None:
        check_ids("query_ids", query_ids, "(N,)", queries.shape[0])
        check_device("query_ids", query_ids, "queries", queries)
    if keys is not None and key_ids is not None:
        check_ids("key_ids", key_ids, "(M,)", keys.shape[0])
        check_device("key_ids", key_ids, "queries", queries)


def _check_combination(
    queries: Tensor, keys: Tensor | None, per_query: bool, bias: Tensor | None, columns: bool
) -> None:
    """Forms whose two sides cannot share one exponential are refused."""
    form = "columns=True" if columns else "the symmetric form (keys=None)"
    if (columns or keys is None) and per_query:
        raise ValueError(
            f"scale must have one element with {form}, got shape ({queries.shape[0]},): with a "
            "scale for each query the two sides would need an exponential each"
        )
    if (columns or keys is None) and bias is not None:
        raise ValueError(
            f"bias must be None with {form}: a bias for each key shifts rows and columns "
            "differently, so they share no exponential"
        )
    if columns and keys is None:
        raise ValueError(
            "columns must be False in the symmetric form (keys=None): there they equal the rows"
        )
    if columns and queries.shape[0] == 0:
        raise ValueError(
            "queries must hold at least one row with columns=True: a sum over no queries has no "
            "logarithm"
        )


def check_topk(
    queries: Tensor,
    keys: Tensor | None,
    k: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
) -> None:
    """Kinds, shapes and devices. What the values leave over is checked inside the op."""
    check_matrix("queries", queries, "(N, D)")
    if keys is not None:
        check_keys(queries, keys)
    check_count("k", k, 1)
    num_keys = queries.shape[0] if keys is None else keys.shape[0]
    if k > num_keys and (keys is not None or num_keys > 0):
        name = "queries" if keys is None else "keys"
        raise ValueError(f"k must be at most the number of {name}, {num_keys}, got {k}")
    check_id_pair(queries, keys, query_ids, key_ids)


def check_neighbours(found: Neighbours, arguments: Arguments) -> None:
    """Raises ValueError where a query has fewer than k keys, or a similarity is NaN."""
    values, indices = found
    if not values_are_read(values):
        return
    unknown = values.isnan().any(1)  # (N,)
    if unknown.any():
        raise ValueError(_why_unknown(int(unknown.nonzero()[0, 0]), arguments))
    missing = indices == MISSING  # (N, k)
    if missing.any():
        row = int(missing.any(1).nonzero()[0, 0])
        raise ValueError(
            f"k must be at most the number of keys that a query does not exclude: query {row} has "
            f"{arguments.k - int(missing[row].sum())}, got k = {arguments.k}"
        )


def _why_unknown(row: int, arguments: Arguments) -> str:
    """Where a similarity that is NaN comes from: the query, a key, or a sum that overflows."""
    for name, first, matrix in (
        ("queries", row, arguments.queries[row : row + 1]),
        ("keys", 0, arguments.all_keys),
    ):
        wrong = matrix.isfinite().logical_not().nonzero()
        if len(wrong):
            at, feature = wrong[0].tolist()
            value = matrix[at, feature].item()
            return f"{name} must be finite, got {value} in row {first + at}, feature {feature}"
    return f"queries must have similarities that do not overflow, got nan for query {row}"
