"""What the contrastive losses share: rounded operands, positives, InfoNCE in its two shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.numerics import (
    inverse,
    mean,
    round_like_tiles,
    row_dot,
    tile_operands,
)
from sslfast.distributed import all_gather_rows, exchange_rows, rank, world_size
from sslfast.ops.similarity.logsumexp import similarity_logsumexp


def one_sided_loss(
    queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float | Tensor
) -> Tensor:
    """InfoNCE of rows (N, D), their positives (N, D) and shared negatives (K, D)."""
    wide = torch.promote_types(queries.dtype, positives.dtype)
    wide = torch.promote_types(wide, negatives.dtype)
    queries, positives = (round_like_tiles(rows.to(wide)) for rows in (queries, positives))
    scale = inverse(temperature, queries)
    # First, so that its gradient is formed last, when the kernel's memory is free again.
    positive = scale * row_dot(queries, positives)  # (N,)
    lse = similarity_logsumexp(queries, negatives, scale=scale)  # (N,)
    return -mean(F.logsigmoid(positive - lse))


def paired_loss(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    *,
    both_directions: bool,
    gather_distributed: bool,
) -> Tensor:
    """InfoNCE of rows (N, D) and keys (N, D), row i the positive of key i, the rest negatives.

    Both directions come from one pass over the similarities, with ranks too: a rank has the rows
    of its queries and, for every rank's keys, its part of the columns. Exchanging these parts
    takes W N numbers and saves a second pass and the gather of the queries.
    """
    queries, keys = tile_operands(queries, keys)
    ranks = world_size() if gather_distributed else 1
    # First, so that its gradient is formed last, when the kernel's memory is free again.
    positive = scale * row_dot(queries, keys)  # (N,)
    all_keys = all_gather_rows(keys) if ranks > 1 else keys  # (W N, D)
    key_ids = torch.arange(len(all_keys), device=keys.device)
    query_ids = key_ids[: len(queries)] + (rank() * len(queries) if ranks > 1 else 0)
    ids: dict[str, Any] = {"query_ids": query_ids, "key_ids": key_ids}
    if not both_directions:
        rows = similarity_logsumexp(queries, all_keys, scale=scale, **ids)  # (N,)
        return -mean(F.logsigmoid(positive - rows))
    rows, columns = similarity_logsumexp(queries, all_keys, scale=scale, columns=True, **ids)
    if ranks > 1:
        columns = exchange_rows(columns).view(ranks, -1).logsumexp(0)  # (W N,) to (N,)
    return -mean(F.logsigmoid(positive - torch.stack((rows, columns))))


def largest_logit(arguments: Mapping[str, Any]) -> float:
    """Of unit rows: the inverse temperature."""
    return 1 / float(arguments.get("temperature", 1.0))
