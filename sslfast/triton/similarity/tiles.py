"""What the kernels of `similarity_logsumexp` share: operands, exponents, the common shift.

Exponents are kept in units of log 2: ``x2_ij = <q_i, k_j> scale_i log2(e) + bias_j log2(e)``, one
multiply-add and one ``exp2`` an element. The tile's rows belong to the *owner* (queries, or keys
where the gradient of keys is formed), its columns to the *others*.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Words of the header, zeroed before the first kernel: whether a sum was redone with its own
# shift, and the bits of the largest squared norms, |scale| and bias (all >= 0, where the order of
# floats is that of their bits, so that atomic maxima do not depend on the order of arrival).
REDONE, QUERY_SQUARE, KEY_SQUARE, SCALE, BIAS = (tl.constexpr(word) for word in range(5))

# Exponentials reach exp(HEAD); a sum below its number of terms times 2^TINY may have lost terms.
HEAD = tl.constexpr(60.0)
TINY = tl.constexpr(2.0**-102)


@triton.jit
def load_rows(matrix, rows, features, num_rows, stride):
    """(BLOCK, BLOCK_D) of a matrix, 0 beyond its last row."""
    offsets = rows.to(tl.int64)[:, None] * stride + features[None, :]
    return tl.load(matrix + offsets, mask=(rows < num_rows)[:, None], other=0.0)


@triton.jit
def similarities(
    owner,
    owner_tile,
    owner_rows,
    num_owners,
    owner_stride,
    others,
    other_rows,
    num_others,
    other_stride,
    dim,
    RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) products; the owner's rows lie in `owner_tile` where RESIDENT."""
    features = tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if RESIDENT:
        other_tile = load_rows(others, other_rows, features, num_others, other_stride)
        acc = tl.dot(owner_tile, other_tile.T, acc, input_precision=PRECISION)
    else:
        for first in range(0, dim, BLOCK_D):
            columns = first + features
            a = load_rows(owner, owner_rows, columns, num_owners, owner_stride)
            b = load_rows(others, other_rows, columns, num_others, other_stride)
            acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
    return acc


@triton.jit
def float_of(word):
    return tl.load(word).to(tl.float32, bitcast=True)


@triton.jit
def common_shift(header, scale, ROW_SCALE: tl.constexpr):
    """c in units of log 2, from |s_ij| <= |scale| |q_i| |k_j| + max(bias, 0)."""
    if ROW_SCALE:
        factor = float_of(header + SCALE)
    else:
        factor = tl.abs(tl.load(scale))
    norms = tl.sqrt(float_of(header + QUERY_SQUARE)) * tl.sqrt(float_of(header + KEY_SQUARE))
    bound = factor * norms + float_of(header + BIAS)
    # An infinite bound leaves every sum empty, and each is redone with its own shift.
    return tl.maximum(tl.minimum(bound, 1e30) - HEAD, 0.0) * LOG2E


@triton.jit
def load_vector(vector, index, length, other: tl.constexpr):
    return tl.load(vector + index, mask=index < length, other=other)


@triton.jit
def load_scale(scale, rows, num_rows, ROW_SCALE: tl.constexpr):
    """Scale in units of log 2: () or (BLOCK,)."""
    if ROW_SCALE:
        return load_vector(scale, rows, num_rows, 0.0) * LOG2E
    else:
        return tl.load(scale) * LOG2E


@triton.jit
def load_offset(bias, keys, num_keys, HAS_BIAS: tl.constexpr):
    """(BLOCK,) bias in units of log 2, -inf beyond the last key."""
    if HAS_BIAS:
        offset = load_vector(bias, keys, num_keys, 0.0) * LOG2E
    else:
        offset = tl.zeros_like(keys).to(tl.float32)
    return tl.where(keys < num_keys, offset, float("-inf"))


@triton.jit
def weight_of(gradient, total):
    """gradient / total; an empty sum has none."""
    return tl.where(total == 0.0, 0.0, gradient / total)


@triton.jit
def add_parts(parts, first, last, step, index, inside):
    """Sum of the parts first to last - 1, `step` elements apart, at an index (BLOCK, ...)."""
    total = tl.zeros_like(index).to(tl.float32)
    at = index + tl.cast(first, tl.int64) * step
    for _ in range(first, last):
        total += tl.load(parts + at, mask=inside, other=0.0)
        at += step
    return total
