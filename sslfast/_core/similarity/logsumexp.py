"""Records of `similarity_logsumexp`: what its op takes and returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What the op takes, in its order: contiguity is up to the launchers.

    Args:
        queries: (N, D) in the dtype of the product.
        keys: (M, D) in the dtype of `queries`; None: the symmetric form.
        scale: (1,) or (N,) in the accumulator dtype.
        bias: (M,) in the accumulator dtype.
        query_ids: (N,) int64.
        key_ids: (M,) int64; None in the symmetric form.
        columns: the sums over queries too.
    """

    queries: Tensor
    keys: Tensor | None
    scale: Tensor
    bias: Tensor | None
    query_ids: Tensor | None
    key_ids: Tensor | None
    columns: bool

    @property
    def num_keys(self) -> int:
        return len(self.queries if self.keys is None else self.keys)

    @property
    def other_ids(self) -> Tensor | None:
        """Ids of the keys, in the symmetric form too."""
        return self.query_ids if self.keys is None else self.key_ids


class Sums(NamedTuple):
    """What the forward op returns.

    Args:
        rows: (N,) log-sum-exp of each query.
        cols: (M,) log-sum-exp of each key; (0,) without `columns`.
        cache: what the backward pass takes from the forward pass; laid out by the backend.
    """

    rows: Tensor
    cols: Tensor
    cache: Tensor


class Needs(NamedTuple):
    """Which gradients are asked for."""

    queries: bool
    keys: bool
    scale: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients in the order of `Needs`; (0,) where not asked for."""

    queries: Tensor
    keys: Tensor
    scale: Tensor
    bias: Tensor


def no_queries(arguments: Arguments, needs: Needs) -> Gradients:
    """Gradients of a problem without rows."""
    queries, keys, scale, bias, *_ = arguments
    return Gradients(
        queries.new_empty(queries.shape if needs.queries else 0),
        queries.new_zeros(keys.shape if keys is not None and needs.keys else 0),
        scale.new_zeros(scale.shape if needs.scale else 0),
        scale.new_zeros(bias.shape if bias is not None and needs.bias else 0),
    )
