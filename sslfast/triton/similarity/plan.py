"""How `similarity_logsumexp` is cut into programs: block sizes by chip, dtype and features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sslfast._core.similarity.logsumexp_keep import GPU_CHUNK_BYTES
from sslfast.triton._launch import Target

# Programs for each processor: short enough that the last wave wastes little.
FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 8, 2
CHUNK_ROWS = 4096  # of G at a time, where the library multiplies


@dataclass(frozen=True)
class Blocks:
    """Tile (m, n) over d features at a time; `resident`: all of them at once.

    Rows are padded to a multiple of d (`layout.padded_features`).
    """

    m: int
    n: int
    d: int
    num_warps: int
    num_stages: int
    resident: bool = True

    def constants(self) -> dict[str, int]:
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_D": self.d}

    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def cdiv(n: int, size: int) -> int:
    return -(-n // size)


def precision(dtype: torch.dtype, target: Target) -> str:
    """How float32 operands multiply, after `torch.get_float32_matmul_precision`."""
    if dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"  # half precision has one way only
    return "ieee" if target.is_amd else "tf32x3"


def fused_features(dtype: torch.dtype, target: Target) -> int:
    """Most features whose gradient one program keeps in registers."""
    if precision(dtype, target) == "tf32x3":
        return 64  # it holds every operand twice
    return 512 // dtype.itemsize


def sum_blocks(target: Target, dtype: torch.dtype, dim: int, resident: bool = True) -> Blocks:
    """Tiles for the sums: square, since the symmetric form needs them square."""
    d = min(dim, 256)
    if dtype.itemsize == 2:
        if target.is_amd:
            return Blocks(128, 128, min(d, 64), 8, 2, resident and d <= 64)
        if d <= 128 and resident:
            return Blocks(128, 128, d, 8, 3)
        return Blocks(128, 128, min(d, 64), 8, 4 if target.shared > 200_000 else 3, False)
    if precision(dtype, target) == "tf32x3" and target.arch == "sm_80":
        return Blocks(64, 64, min(d, 16), 4, 2, False)
    if d <= 64 and resident and not target.is_amd:
        return Blocks(64, 64, d, 4, 2)
    return Blocks(64, 64, min(d, 32), 4, 2, False)


def crowded(blocks: Blocks, target: Target) -> Blocks:
    """Where ids (64 bits) and biases stand beside the tile, which then may be oblong."""
    if target.is_amd:
        return replace(blocks, m=64, n=blocks.n // 2, num_warps=4)
    return replace(blocks, n=64)


def redo_blocks(blocks: Blocks) -> Blocks:
    """For what is rarely more than a look: small."""
    return replace(blocks, m=min(blocks.m, 64), n=32, num_warps=4, num_stages=1)


def gradient_blocks(target: Target, dtype: torch.dtype, dim: int) -> Blocks:
    """Tiles beside rows that keep their gradient, or their mean of the keys, in registers."""
    d = dim
    if dtype.itemsize == 2:
        if target.is_amd:
            return Blocks(64, 64 if d <= 128 else 32, d, 4, 1)
        if target.arch.startswith("sm_1") and d > 128:
            return Blocks(64, 64, d, 8, 2)
        return Blocks(128, 64, d, 8, 2)
    if target.is_amd:
        return Blocks(32, 32, d, 4, 1)
    if precision(dtype, target) == "tf32x3" and target.arch == "sm_80":
        return Blocks(32, 32, d, 4, 2)
    return Blocks(64, 32, d, 4, 2)


def groups_symmetric(target: Target, blocks: int) -> int:
    """Blocks a group, with about as many pairs of groups as programs are wanted."""
    wanted = FORWARD_PROGRAMS * target.processors
    groups = min(blocks, max(1, round((2 * wanted) ** 0.5)))
    return cdiv(blocks, groups)


def groups_two_sided(target: Target, row_blocks: int, key_blocks: int) -> tuple[int, int]:
    """Row blocks a group and key blocks a split, about as many of the one as of the other."""
    wanted = FORWARD_PROGRAMS * target.processors
    groups = min(row_blocks, max(1, round(wanted**0.5)))
    splits = min(key_blocks, cdiv(wanted, groups))
    return cdiv(row_blocks, groups), cdiv(key_blocks, splits)


def split_of(wanted: int, owner_blocks: int, other_blocks: int) -> int:
    """Blocks of the others that one program visits, so that there are `wanted` programs."""
    splits = min(other_blocks, cdiv(wanted, owner_blocks))
    return cdiv(other_blocks, splits)


def chunk_rows(num_keys: int, itemsize: int, block: int) -> int:
    """Queries whose gradient matrix is formed at a time, a multiple of the block."""
    fitting = GPU_CHUNK_BYTES // (num_keys * itemsize)
    return max(1, min(CHUNK_ROWS, fitting) // block) * block
