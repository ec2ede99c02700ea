"""What `similarity_topk` accepts, and the form in which the op takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sslfast.ops._checks import check_count, check_matrix, values_are_read
from sslfast.ops._similarity_arguments import check_id_pair, check_keys

MISSING = -1  # index where a query has no key left; its value is -inf


class Arguments(NamedTuple):
    """What the op takes, in its order: contiguity is up to the launchers.

    Args:
        queries: (N, D) in the dtype of the product.
        keys: (M, D) in the dtype of `queries`; None: the queries themselves.
        query_ids: (N,) int64.
        key_ids: (M,) int64; None where the keys are the queries.
        k: neighbours a query, 1 to M.
    """

    queries: Tensor
    keys: Tensor | None
    query_ids: Tensor | None
    key_ids: Tensor | None
    k: int

    @property
    def all_keys(self) -> Tensor:
        return self.queries if self.keys is None else self.keys

    @property
    def all_key_ids(self) -> Tensor | None:
        return self.query_ids if self.keys is None else self.key_ids


class Neighbours(NamedTuple):
    """What the forward op returns: best first, the lower index first among equals.

    Args:
        values: (N, k) similarities in the accumulator dtype; -inf where no key is left.
        indices: (N, k) int64 rows of the keys; `MISSING` there.
    """

    values: Tensor
    indices: Tensor


class Gradients(NamedTuple):
    """(N, D) and (M, D); (0,) where not asked for."""

    queries: Tensor
    keys: Tensor


def check_arguments(
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
