"""The operands of the Triton `similarity_logsumexp`, and where its cache keeps what.

The cache holds a header, then shift and total of every row and column (exponents in units of
log 2), then the means of the keys or the exponentials where they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslfast._core.similarity import logsumexp_keep as layout
from sslfast._core.similarity.logsumexp import Arguments
from sslfast._core.similarity.logsumexp_keep import Keep
from sslfast.triton._launch import Target, target
from sslfast.triton.similarity import plan as plan


@dataclass(frozen=True)
class Side:
    """One side's sums in units of log 2: exp2(shift) total."""

    shifts: Tensor
    totals: Tensor


@dataclass(frozen=True)
class Problem:
    """Operands as the kernels read them, and where the cache keeps what."""

    queries: Tensor
    keys: Tensor
    scale: Tensor
    bias: Tensor | None
    query_ids: Tensor | None
    key_ids: Tensor | None
    symmetric: bool
    columns: bool
    header: Tensor
    rows: Side
    cols: Side
    means: Tensor | None
    exponentials: Tensor | None
    target: Target

    @property
    def two_sided(self) -> bool:
        return self.symmetric or self.columns

    @property
    def row_scale(self) -> bool:
        return self.scale.numel() > 1

    def tensors(self) -> tuple[Any, ...]:
        """Operand pointers in the kernels' order; what is absent is never read."""
        absent = self.header
        optional = (self.bias, self.query_ids, self.key_ids)
        given = [absent if each is None else each for each in optional]
        return self.queries, self.keys, self.scale, *given, self.header

    def constants(self) -> dict[str, Any]:
        return {
            "ROW_SCALE": self.row_scale,
            "HAS_BIAS": self.bias is not None,
            "HAS_IDS": self.query_ids is not None,
            "PRECISION": plan.precision(self.queries.dtype, self.target),
        }


def problem_of(arguments: Arguments, keep: Keep, cache: Tensor) -> Problem:
    queries = aligned(arguments.queries)
    num_rows, num_keys = len(queries), arguments.num_keys
    symmetric = arguments.keys is None
    keys = queries if arguments.keys is None else aligned(arguments.keys)
    optional = (arguments.bias, arguments.query_ids, arguments.other_ids)
    bias, query_ids, key_ids = (None if e is None else e.contiguous() for e in optional)
    header = cache[: layout.CACHE_HEADER].view(torch.int32)
    sums = cache[layout.CACHE_HEADER :]
    rows = Side(sums[:num_rows], sums[num_rows : 2 * num_rows])
    cols = rows
    if arguments.columns:
        sums = sums[2 * num_rows :]
        cols = Side(sums[:num_keys], sums[num_keys : 2 * num_keys])
    rest = cache[layout.sum_elements(arguments) :]
    means = exponentials = None
    if keep == Keep.MEAN_KEYS:
        means = rest[: queries.numel()].view(queries.shape)
    if keep == Keep.EXPONENTIALS:
        exponentials = rest.view(layout.exponential_dtype(queries.dtype))
        exponentials = exponentials.view(num_rows, layout.exponential_stride(num_keys))
    return Problem(
        queries,
        keys,
        arguments.scale.contiguous(),
        bias,
        query_ids,
        key_ids,
        symmetric,
        arguments.columns,
        header,
        rows,
        cols,
        means,
        exponentials,
        target(queries),
    )


def aligned(rows: Tensor) -> Tensor:
    """Rows that are read 16 bytes at a time: a copy with zeros behind the last feature, if need be.

    Their products and norms are those of the rows; a gradient has zeros there, cut off at the end.
    """
    num_rows, dim = rows.shape
    width = layout.padded_features(dim)
    step = rows.stride(0) * rows.element_size()
    if dim == width and rows.stride(1) == 1 and (step | rows.data_ptr()) % 16 == 0:
        return rows
    copy = rows.new_zeros(num_rows, width)
    copy[:, :dim] = rows
    return copy
