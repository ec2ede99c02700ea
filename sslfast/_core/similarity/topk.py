"""What `similarity_topk` accepts, and the form in which the op takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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
