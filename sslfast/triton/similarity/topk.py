"""Launcher of the Triton `similarity_topk`; its gradient is that of every backend.

Registers hold at most `most_slots` neighbours of a query. More are found in several passes, each
below the last neighbour of the one before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.numerics import FLOATS, accumulator
from sslfast._core.similarity.topk import Arguments, Neighbours
from sslfast.triton._launch import Target, launch, target
from sslfast.triton.similarity import plan as plan
from sslfast.triton.similarity import topk_kernels as kernels
from sslfast.triton.similarity.problem import aligned

DTYPES = FLOATS[:3]
LEAST_SLOTS = 16
MERGED = 8192  # most neighbours of a query in all parts: merging compares each with each
MERGED_AT_ONCE = 128


def forward(arguments: Arguments) -> Neighbours:
    queries, _, query_ids, _, k = arguments
    num_rows = len(queries)
    values = queries.new_empty((num_rows, k), dtype=accumulator(queries.dtype))
    indices = queries.new_empty((num_rows, k), dtype=torch.int64)
    bounds = queries.new_empty(num_rows, dtype=torch.int64)
    rows, keys = aligned(queries), aligned(arguments.all_keys)
    ids = [
        bounds if each is None else each.contiguous()  # what is absent is never read
        for each in (query_ids, arguments.all_key_ids)
    ]
    step = most_slots(target(queries))
    for first in range(0, k, step):
        best = Neighbours(*(each[:, first : first + step] for each in (values, indices)))
        _find(rows, keys, ids, query_ids is not None, best, bounds, continued=first > 0)
    return Neighbours(values, indices)


def _find(
    queries: Tensor,
    keys: Tensor,
    ids: list[Tensor],
    has_ids: bool,
    best: Neighbours,
    bounds: Tensor,
    continued: bool,
) -> None:
    """The next best neighbours into `best`, the last of them into `bounds`."""
    (num_rows, dim), (_, k) = queries.shape, best.values.shape
    chip = target(queries)
    # A later pass compares 64 bits a key: with more slots its tiles are smaller.
    slots = max(64 if continued else LEAST_SLOTS, 1 << (k - 1).bit_length())
    blocks = topk_blocks(chip, queries.dtype, dim, slots)
    row_blocks, key_blocks = plan.cdiv(num_rows, blocks.m), plan.cdiv(len(keys), blocks.n)
    wanted = min(plan.BACKWARD_PROGRAMS * chip.processors, max(row_blocks, 1) * MERGED // slots)
    split_blocks = plan.split_of(wanted, max(row_blocks, 1), key_blocks)
    splits = plan.cdiv(key_blocks, split_blocks)
    parts = bounds.new_empty(splits, num_rows, slots)
    launch(
        kernels.similarity_topk_fwd_kernel,
        (row_blocks * splits,),
        queries,
        keys,
        *ids,
        bounds,
        parts,
        num_rows,
        len(keys),
        dim,
        queries.stride(0),
        keys.stride(0),
        k,
        row_blocks,
        split_blocks,
        HAS_IDS=has_ids,
        CONTINUED=continued,
        SLOTS=slots,
        RESIDENT=blocks.resident,
        PRECISION=plan.precision(queries.dtype, chip),
        **blocks.constants(),
        **blocks.launch(),
    )
    block = min(slots, MERGED_AT_ONCE)
    chunks = splits * slots // block
    launch(
        kernels.similarity_topk_merge_kernel,
        (num_rows * chunks,),
        parts,
        *best,
        bounds,
        num_rows,
        k,
        splits,
        best.values.stride(0),
        chunks,
        SLOTS=slots,
        BLOCK=block,
        STEP=min(slots, 32),
        num_warps=min(4, max(1, block // 32)),
    )


def most_slots(chip: Target) -> int:
    """Most neighbours of a query in registers, two each; a power of two."""
    return 256 if chip.is_amd else 512


def topk_blocks(chip: Target, dtype: torch.dtype, dim: int, slots: int) -> plan.Blocks:
    """Tiles beside `slots` neighbours a query."""
    d = min(dim, 64 if dtype.itemsize == 2 else 32)
    if slots > 128:
        return plan.Blocks(16, 64, d, 4 if chip.is_amd else 8, 2, False)
    # Triton 3.6 cannot lay out this loop beside the tensor memory that larger tiles of sm_100 use.
    if chip.arch.startswith("sm_1"):
        return plan.Blocks(32, 64, d, 8, 2, False)
    crowded = plan.precision(dtype, chip) == "tf32x3" and chip.arch == "sm_80"
    if slots > 32 or crowded:
        return plan.Blocks(32, 64, d, 4, 2, False)
    return plan.Blocks(64, 64, d, 4, 2, False)
