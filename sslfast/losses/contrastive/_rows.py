"""What the contrastive losses share: rounded operands, positives, the one-sided loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.losses._reduce import mean
from sslfast.ops._checks import accumulator
from sslfast.ops._similarity_arguments import tile_operands
from sslfast.ops.similarity_logsumexp import similarity_logsumexp


def one_sided_loss(
    queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float | Tensor
) -> Tensor:
    """InfoNCE of unit rows (N, D), their positives (N, D) and shared negatives (K, D)."""
    wide = torch.promote_types(queries.dtype, positives.dtype)
    wide = torch.promote_types(wide, negatives.dtype)
    queries, positives = (round_like_tiles(rows.to(wide)) for rows in (queries, positives))
    scale = inverse(temperature, queries)
    lse = similarity_logsumexp(queries, negatives, scale=scale)  # (N,)
    positive = scale * row_dot(queries, positives)
    return -mean(F.logsigmoid(positive - lse))


def round_like_tiles(rows: Tensor) -> Tensor:
    """In the autocast dtype, so that positives have the operands of the other similarities."""
    rounded, _ = tile_operands(rows, None)
    return rounded


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """<left_i, right_i> for each row i, accumulated in float32 or wider."""
    dtype = accumulator(left.dtype)
    return (left.to(dtype) * right.to(dtype)).sum(-1)


def inverse(temperature: float | Tensor, rows: Tensor) -> float | Tensor:
    """1 / temperature: a number, or a 0-dim tensor in the dtype that `rows` accumulate in."""
    if not isinstance(temperature, Tensor):
        return 1 / temperature
    return temperature.reshape(()).to(accumulator(rows.dtype)).reciprocal()
