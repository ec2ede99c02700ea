"""What the CPU kernels' packed operands take, whatever the instruction set."""

from __future__ import annotations

import torch

# Of one number: vector instructions pack it in the accumulator dtype, matrix instructions as
# bfloat16 terms (1 of a bfloat16, 2 of a float16, 3 of a float32).
_BYTES = {torch.float16: 4, torch.bfloat16: 4, torch.float32: 6, torch.float64: 8}
_BLOCK = 32  # rows and depth are padded to it
STRIP_BYTES = 2 << 20  # of packed keys at a time, as the kernels; at least 4 blocks of them
LARGEST_STRIP_ROWS = 4 * 192


def packed_bytes(num_rows: int, depth: int, dtype: torch.dtype) -> int:
    """Most bytes of a (num_rows, depth) operand, packed for one side of a product."""
    return (num_rows + _BLOCK) * (depth + _BLOCK) * _BYTES[dtype]
