"""The gradient of `similarity_topk`: two sums of selected rows, in an order of their own.

Every backend hands back the same indices, and with them the gradient is the same for all: k rows a
query are read once and added up where they are read. `embedding_bag` does so without an
(N, k, D) copy, and without atomics since each output row is one bag.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sslfast._core.similarity.topk import MISSING, Gradients


def backward(
    dvalues: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    indices: Tensor,
    need_queries: bool,
    need_keys: bool,
) -> Gradients:
    """dq_i = sum_j dvalue_ij k_index(i, j); dk_m = sum over the (i, j) with index(i, j) = m."""
    empty = dvalues.new_empty(0)
    q = queries.to(dvalues.dtype)  # (N, D)
    k = q if keys is None else keys.to(dvalues.dtype)  # (M, D)
    if indices.numel() == 0:
        dkeys = torch.zeros_like(k) if need_keys and keys is not None else empty
        return Gradients(torch.zeros_like(q) if need_queries else empty, dkeys)
    missing = indices == MISSING  # (N, k)
    weights = dvalues.masked_fill(missing, 0).contiguous()  # (N, k)
    chosen = indices.masked_fill(missing, 0)  # (N, k)
    to_keys = need_queries if keys is None else need_keys
    dkeys = _sum_by_key(weights, chosen, q, len(k)) if to_keys else empty  # (M, D)
    if not need_queries:
        return Gradients(empty, dkeys)
    dqueries = embedding_bag(chosen, k, mode="sum", per_sample_weights=weights)  # (N, D)
    return Gradients(dqueries + dkeys, empty) if keys is None else Gradients(dqueries, dkeys)


def _sum_by_key(weights: Tensor, chosen: Tensor, queries: Tensor, num_keys: int) -> Tensor:
    """(M, D) sum of the queries that chose each key, in ascending order: bags of a sorted list."""
    ordered, order = chosen.flatten().sort(stable=True)  # (N k,)
    keys = torch.arange(num_keys, device=chosen.device)  # (M,)
    first = torch.searchsorted(ordered, keys)  # (M,) where each key's bag begins
    sorted_weights = weights.flatten()[order]  # (N k,)
    rows = order.div_(chosen.shape[1], rounding_mode="floor")  # (N k,) query of each
    return embedding_bag(rows, queries, first, mode="sum", per_sample_weights=sorted_weights)
