"""How `cross_frobenius` is cut into programs: tiles by chip and dtype, splits by their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sslfast._core.correlation.frobenius import GPU_STRIP_BYTES, GPU_STRIP_ROWS
from sslfast.triton._launch import Target
from sslfast.triton.similarity.plan import cdiv, precision

# Storing a float32 part of a tile and adding it up takes about as long as multiplying this much.
PART_DEPTH = 700
MOST_SPLITS = 32
# Contraction after which a matrix unit's sum is added up apart: its own additions round towards
# zero (measured by Fasi et al. 2021, PeerJ CS 7:e330), some 2^-24 of the sum each, and a total that
# is judged by float32's digits may not lose more than a few of these.
CHAIN_DEPTH = 256
COMBINE_ROWS = 16
# Chips with so much of it multiply from shared memory; on others operands pass through registers.
LARGE_SHARED = 200_000


@dataclass(frozen=True)
class Tiles:
    """(m, n) of a product, k of the contraction at a time."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int

    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def forward_tiles(target: Target, dtype: torch.dtype, largest: int) -> Tiles:
    """Square tiles of a product of at most `largest` rows or columns."""
    if target.is_amd:
        half = dtype.itemsize == 2
        return Tiles(128, 128, 64, 8, 2) if half and largest > 64 else _small(target, dtype)
    if largest <= 64 or precision(dtype, target) == "tf32x3":
        return _small(target, dtype)
    if target.shared < LARGE_SHARED:
        return Tiles(128, 128, 32, 8, 4 if dtype.itemsize == 2 else 3)
    return Tiles(128, 128, 128 // dtype.itemsize, 8, 4)


def _small(target: Target, dtype: torch.dtype) -> Tiles:
    if dtype.itemsize == 2:
        if target.is_amd:
            return Tiles(64, 64, 64, 4, 2)
        return Tiles(64, 64, 64 if target.shared > LARGE_SHARED else 32, 4, 3)
    if target.arch.startswith("sm_1"):
        return Tiles(64, 64, 32, 8, 2)
    # three products hold every operand twice
    tight = precision(dtype, target) == "tf32x3" and target.arch != "sm_90"
    return Tiles(64, 64, 16 if tight else 32, 4, 2)


def backward_tiles(target: Target, dtype: torch.dtype, rows: int, columns: int) -> Tiles:
    """Tiles of a gradient (rows, columns), as large as leaves no processor idle."""
    # addresses of rows that are not 16 bytes apart would take the registers
    wide = dtype.itemsize == 2 and target.shared > LARGE_SHARED and columns % 8 == 0
    if wide and cdiv(rows, 128) * cdiv(columns, 256) >= target.processors:
        return Tiles(128, 256, 64, 8, 3)
    square = forward_tiles(target, dtype, min(rows, columns))
    enough = cdiv(rows, square.m) * cdiv(columns, square.n) >= target.processors
    return square if enough else _small(target, dtype)


def chain(target: Target, dtype: torch.dtype, k: int) -> int:
    """Blocks of the contraction that a matrix unit adds up; 0: all of them.

    Three products of tf32 are added up apart anyway, one has fewer digits than that takes.
    """
    return 0 if target.is_amd or dtype.itemsize == 4 else CHAIN_DEPTH // k


@dataclass(frozen=True)
class Work:
    """How the programs divide the tiles of a product, or of two.

    Args:
        depth: contraction of one program, a multiple of k.
        splits: programs that share a tile's contraction.
        at_once: tiles of a product whose parts exist at the same time.
    """

    depth: int
    splits: int
    at_once: int


def divide(
    target: Target, count: int, products: int, depth: int, k: int, in_parts: bool, most: int
) -> Work:
    """So that all programs together end early.

    Args:
        count: tiles of each product.
        in_parts: tiles are stored as parts even if no contraction is split.
        most: parts of a product that may exist at the same time.
    """

    def time(splits: int) -> float:
        stored = 0 if splits == 1 and not in_parts else PART_DEPTH
        return cdiv(count * products * splits, target.processors) * (depth / splits + stored)

    splits = max(1, min(MOST_SPLITS, depth // (4 * k), most // count))
    each = cdiv(cdiv(depth, min(range(1, splits + 1), key=time)), k) * k
    return Work(each, cdiv(depth, each), min(count, max(1, most)))


def strip_rows(columns: int) -> int:
    """Rows of a product with so many columns that are formed at a time, a multiple of 64."""
    return max(GPU_STRIP_ROWS, GPU_STRIP_BYTES // (4 * columns) // 64 * 64)
