"""Kernels of `similarity_topk`: neighbours of one part of the keys, and of all parts.

A neighbour is one int64: its similarity, as an integer of the same order, in the upper half and its
index, counted from the end, in the lower half. So the largest is the most similar one and among
equals the one with the lowest index, no two are equal, and what is found depends on no order of
visits.

A program keeps the k best of its queries in registers, in no order. A tile whose best similarity
does not exceed a query's worst neighbour costs one maximum; else the best of each query's tile
takes the place of its worst neighbour until none exceeds it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sslfast.triton.similarity.tiles import load_vector, similarities

LEAST, MOST = tl.constexpr(-(2**63) + 1), tl.constexpr(2**63 - 1)  # below and above any neighbour
LEAST_ORDERED = tl.constexpr(-(2**31))
NO_KEY = tl.constexpr(-2139095041 << 32)  # similarity -inf, which no key can have; and a slot
INDEX = tl.constexpr(2**32 - 1)
SIGN = tl.constexpr(2**31 - 1)


@triton.jit
def _ordered(similarity):
    """int32 of the order of float32: -0 is 0, and NaN the largest."""
    bits = tl.where(similarity == 0.0, 0.0, similarity).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & SIGN)
    return tl.where(similarity != similarity, SIGN, ordered)


@triton.jit
def _similarity(neighbour):
    ordered = (neighbour >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def similarity_topk_fwd_kernel(
    queries,
    keys,
    query_ids,
    key_ids,
    bounds,  # (N,) int64: with CONTINUED only neighbours below it count
    parts,  # (splits, N, SLOTS) int64
    num_rows,
    num_keys,
    dim,
    query_stride,
    key_stride,
    k,
    row_blocks,
    split_blocks,
    HAS_IDS: tl.constexpr,
    CONTINUED: tl.constexpr,
    SLOTS: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The k best neighbours of a block of queries among one split of the keys, in no order."""
    block, split = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.arange(0, BLOCK_D)
    slots = tl.arange(0, SLOTS)
    query_tile = 0
    if RESIDENT:
        at = rows.to(tl.int64)[:, None] * query_stride + features[None, :]
        query_tile = tl.load(queries + at, mask=(rows < num_rows)[:, None], other=0.0)
    if HAS_IDS:
        row_ids = load_vector(query_ids, rows, num_rows, 0)
    if CONTINUED:
        bound = load_vector(bounds, rows, num_rows, 0)
    # A slot beyond the k-th is never the worst, and no two empty slots of a query are equal.
    empty = tl.where(slots < k, NO_KEY + (split * SLOTS + slots).to(tl.int64), MOST)
    found = tl.zeros((BLOCK_M, SLOTS), dtype=tl.int64) + empty[None, :]
    worst = tl.min(found, 1)
    last_j = tl.minimum((split + 1) * split_blocks, tl.cdiv(num_keys, BLOCK_N))
    for j in range(split * split_blocks, last_j):
        columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
        s = similarities(
            queries, query_tile, rows, num_rows, query_stride, keys, columns, num_keys, key_stride,
            dim, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        valid = (rows < num_rows)[:, None] & (columns < num_keys)[None, :]
        if HAS_IDS:
            column_ids = load_vector(key_ids, columns, num_keys, 0)
            valid = valid & (row_ids[:, None] != column_ids[None, :])
        ordered = _ordered(s)
        if CONTINUED:
            index = INDEX - columns.to(tl.int64)
            valid = valid & (((ordered.to(tl.int64) << 32) | index[None, :]) < bound[:, None])
        ordered = tl.where(valid, ordered, LEAST_ORDERED)
        exceeds = tl.max(ordered, 1) > (worst >> 32).to(tl.int32)
        if tl.max(exceeds.to(tl.int32), 0) > 0:
            index = INDEX - columns.to(tl.int64)
            tile = (ordered.to(tl.int64) << 32) | index[None, :]
            best = tl.max(tile, 1)
            while tl.max((best > worst).to(tl.int32), 0) > 0:
                replaced = (found == worst[:, None]) & (best > worst)[:, None]
                found = tl.where(replaced, best[:, None], found)
                tile = tl.where(tile == best[:, None], LEAST, tile)
                worst = tl.min(found, 1)
                best = tl.max(tile, 1)
    part = split.to(tl.int64) * num_rows + rows
    inside = (rows < num_rows)[:, None] & (slots < k)[None, :]
    tl.store(parts + part[:, None] * SLOTS + slots[None, :], found, mask=inside)


@triton.jit
def _load_found(parts, row, index, num_rows, k, splits, SLOTS: tl.constexpr):
    """(BLOCK,) of the neighbours of a row in all parts, by index; what is none is `LEAST`."""
    split, slot = index // SLOTS, index % SLOTS
    at = (split.to(tl.int64) * num_rows + row) * SLOTS + slot
    return tl.load(parts + at, mask=(split < splits) & (slot < k), other=LEAST)


@triton.jit
def similarity_topk_merge_kernel(
    parts,  # (splits, N, SLOTS)
    values,
    indices,
    bounds,
    num_rows,
    k,
    splits,
    stride,
    chunks,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """The k best of all parts, each put where the number of larger ones says.

    `bounds` is the last of them.
    """
    row, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    mine = _load_found(parts, row, chunk * BLOCK + tl.arange(0, BLOCK), num_rows, k, splits, SLOTS)
    rank = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, splits * SLOTS, STEP):
        index = first + tl.arange(0, STEP)
        other = _load_found(parts, row, index, num_rows, k, splits, SLOTS)
        rank += tl.sum((other[None, :] > mine[:, None]).to(tl.int32), 1)
    chosen = (mine > LEAST) & (rank < k)
    value = _similarity(mine)
    index = tl.where(value == float("-inf"), -1, INDEX - (mine & INDEX))
    at = tl.cast(row, tl.int64) * stride + rank
    tl.store(values + at, value, mask=chosen)
    tl.store(indices + at, index, mask=chosen)
    tl.store(bounds + row + tl.zeros_like(rank), mine, mask=chosen & (rank == k - 1))
