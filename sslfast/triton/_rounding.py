"""Root and quotient as IEEE 754 rounds them; Triton's own are approximations in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def root(square):
    return tl.sqrt(square) if square.dtype == tl.float64 else tl.sqrt_rn(square)


@triton.jit
def quotient(values, divisor):
    return values / divisor if values.dtype == tl.float64 else tl.div_rn(values, divisor)
