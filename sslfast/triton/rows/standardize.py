"""Launchers of the Triton `standardize`.

Programs walk down a strip of BLOCK_D columns, ROWS rows at a time, and keep one sum for each of the
ROWS slots, so that nothing crosses threads before a group of rows ends. Groups leave their sums in
float64, which a kernel of its own merges in order: no atomics, and a large mean costs no digits.
Elements are treated in float32 (float64 for float64 rows); offsets of rows are 64 bits wide.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslfast._core.numerics import FLOATS, accumulator
from sslfast._core.rows.standardize import Columns, Gradients, Scaling
from sslfast.triton._launch import launch, target
from sslfast.triton.rows import standardize_backward as kernels_bwd
from sslfast.triton.rows import standardize_forward as kernels_fwd

DTYPES = FLOATS
ROWS, BLOCK_D = 16, 128  # a tile of 2048 elements: 16 a thread in four warps
LEAST_GROUP, LARGEST_GROUP = 4 * ROWS, 64 * ROWS  # rows whose sums stay in the accumulator
PROGRAMS_PER_PROCESSOR = 4
MERGED = {"GROUPS": 32, "COLUMNS": 32}  # tile of a program that merges groups


def forward(
    embeddings: Tensor, mean: Tensor | None, variance: Tensor | None, rule: Scaling
) -> tuple[Tensor, Columns]:
    x, tiles = _rows(embeddings), _Tiles(embeddings)
    y = embeddings.new_empty(embeddings.shape)
    if mean is None or variance is None:
        columns = _own_columns(x, tiles, rule)
    else:
        columns = Columns(mean.contiguous(), variance.contiguous(), mean.new_empty(0))
    launch(
        kernels_fwd.standardize_fwd_kernel,
        tiles.grid,
        *(x, *columns, y, *x.shape, x.stride(0), tiles.group_rows, rule.eps),
        OWN=mean is None,
        **_scaling(rule),
        **tiles.options,
    )
    if mean is not None:
        columns = Columns(*(mean.new_empty(0) for _ in range(3)))
    return y, columns


def _own_columns(x: Tensor, tiles: _Tiles, rule: Scaling) -> Columns:
    num_rows, dim = x.shape
    wide = accumulator(x.dtype)
    columns = Columns(*(x.new_empty(dim, dtype=wide) for _ in range(3)))
    partial = tiles.new_partial(x)
    launch(
        kernels_fwd.standardize_fwd_moments_kernel,
        tiles.grid,
        *(x, partial, num_rows, dim, x.stride(0), tiles.group_rows),
        **tiles.options,
    )
    launch(
        kernels_fwd.standardize_fwd_columns_kernel,
        (triton.cdiv(dim, MERGED["COLUMNS"]),),
        *(x, partial, *columns, dim, tiles.groups),
        *(float(num_rows), float(tiles.group_rows), float(num_rows - rule.ddof)),
        **MERGED,
    )
    return columns


def backward(
    dstandardized: Tensor,
    dmean: Tensor,
    dvariance: Tensor,
    embeddings: Tensor,
    columns: Columns,
    rule: Scaling,
    need_statistics: bool,
) -> Gradients:
    dy, x, tiles = _rows(dstandardized), _rows(embeddings), _Tiles(embeddings)
    columns = Columns(*(each.contiguous() for each in columns))
    own = not columns.given
    sums = own or need_statistics
    dx = embeddings.new_empty(embeddings.shape)
    partial = tiles.new_partial(x) if sums else columns.mean.new_empty(0)
    sizes = (*x.shape, dy.stride(0), x.stride(0), tiles.group_rows, rule.eps)
    launch(
        kernels_bwd.standardize_bwd_sums_kernel,
        tiles.grid,
        *(dy, x, *columns, dx, partial, *sizes),
        OWN=own,
        SUMS=sums,
        **_scaling(rule),
        **tiles.options,
    )
    if not sums:
        return Gradients(dx, *(partial.new_empty(0) for _ in range(2)))
    result = columns.mean.new_empty(4 if own else 2, x.shape[1])
    launch(
        kernels_bwd.standardize_bwd_columns_kernel,
        (triton.cdiv(x.shape[1], MERGED["COLUMNS"]),),
        *(partial, columns.variance, dmean.contiguous(), dvariance.contiguous(), result),
        *(x.shape[1], tiles.groups, float(len(x)), float(len(x) - rule.ddof), rule.eps),
        OWN=own,
        **MERGED,
        **_scaling(rule),
    )
    if not own:
        return Gradients(dx, result[0].clone(), result[1].clone())
    launch(
        kernels_bwd.standardize_bwd_kernel,
        tiles.grid,
        *(dy, x, *columns, result, dx, *sizes),
        **_scaling(rule),
        **tiles.options,
    )
    return Gradients(dx, *(result.new_empty(0) for _ in range(2)))


class _Tiles:
    """Groups of rows, grid and compile-time constants for a matrix (N, D)."""

    def __init__(self, embeddings: Tensor) -> None:
        num_rows, dim = embeddings.shape
        strips = triton.cdiv(dim, BLOCK_D)
        wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * target(embeddings).processors, strips)
        rows = triton.cdiv(triton.cdiv(num_rows, wanted), ROWS) * ROWS
        self.group_rows = min(max(rows, LEAST_GROUP), LARGEST_GROUP)
        self.groups = triton.cdiv(num_rows, self.group_rows)
        self.grid = (self.groups * strips,)
        self.options: dict[str, Any] = {
            "ROWS": ROWS,
            "BLOCK_D": BLOCK_D,
            "ACC": tl.float64 if embeddings.dtype == torch.float64 else tl.float32,
        }

    def new_partial(self, rows: Tensor) -> Tensor:
        return rows.new_empty(self.groups, 2, rows.shape[1], dtype=torch.float64)


def _scaling(rule: Scaling) -> dict[str, bool]:
    return {"UNIT": rule.unit_variance, "ON_DEVIATION": rule.eps_on == "deviation"}


def _rows(rows: Tensor) -> Tensor:
    """Neighbouring features; copied only where they are not."""
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
