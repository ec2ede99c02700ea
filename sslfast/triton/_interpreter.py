"""Triton's interpreter, with some of its defects repaired.

It runs kernels on CPU tensors in NumPy, which has no bfloat16: up to Triton 3.9 it stores the bits
as uint16, rounds float32 to them towards zero, and multiplies such matrices as integers. Up to
3.8 it also reads a scalar, an array of one element, in a way that NumPy 2.4 refuses. A comparison
of scalars becomes a block of integers, which 3.9 does not take as a mask.
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def repair() -> None:
    """Round to bfloat16 as a GPU does, multiply it as numbers; scalars as bounds and masks."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot, splat = builder.cast_impl, builder.create_dot, builder.create_splat
    patch_tensor = interpreter._patch_lang_tensor

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        types = source.dtype.scalar, dtype.scalar
        if types == (tl.bfloat16, tl.float32):
            return handle(_widened(source.data), tl.float32)
        if types == (tl.float32, tl.bfloat16):
            return handle(_rounded(source.data), tl.bfloat16)
        if tl.bfloat16 in types:  # by way of float32, from or to any other type
            return cast_impl(self, cast_impl(self, source, tl.float32), dtype)
        return cast(self, source, dtype)

    def create_dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        wide = (
            handle(_widened(each.data), tl.float32) if each.dtype.scalar == tl.bfloat16 else each
            for each in (left, right)
        )
        return dot(self, *wide, *others)

    def create_splat(self: Any, block: Any, scalar: Any) -> Any:
        result = splat(self, block, scalar)
        if scalar.data.dtype == bool:
            result.data, result.dtype = result.data.astype(bool), tl.int1
        return result

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    builder.cast_impl, builder.create_dot, builder.create_splat = (
        cast_impl,
        create_dot,
        create_splat,
    )
    interpreter._patch_lang_tensor = patch_lang_tensor


def _widened(bits: Any) -> Any:
    """float32 of bfloat16 bits in uint16."""
    import numpy as np

    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: Any) -> Any:
    """bfloat16 bits in uint16 of float32, to the nearest, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16).reshape(values.shape)
