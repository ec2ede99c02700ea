"""What `cross_frobenius` accepts, and the form in which the op takes it."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from sslfast._core.numerics import accumulator

Route = Literal["auto", "gram", "direct"]
ROUTES = ("auto", "gram", "direct")


class Arguments(NamedTuple):
    """What the op takes, in its order: contiguity is up to the launchers.

    Args:
        a: (N, D) in the dtype of the product.
        b: (N, E) in the dtype of `a`; None: the symmetric form, b is a.
        split_diagonal: the diagonal of a^T b apart from the rest (D = E).
        route: ``"gram"`` or ``"direct"``.
        a_columns: (3, D) in the accumulator dtype: mean, what rounding took from it, and scale of
            a's columns. Then a stands for ((a - mean) - rest) scale, and its gradient is the
            gradient of that. Not for the public function: see
            `sslfast.losses.redundancy._standardized`.
        b_columns: (3, E), together with b and `a_columns`.
    """

    a: Tensor
    b: Tensor | None
    split_diagonal: bool
    route: str
    a_columns: Tensor | None = None
    b_columns: Tensor | None = None

    def standardized(self) -> Arguments:
        """With the rows that columns stand for, in the operands' dtype: no columns are left."""
        if self.a_columns is None:
            return self
        a = _treated(self.a, self.a_columns)
        b = None if self.b is None else _treated(self.b, self.b_columns)
        return self._replace(a=a, b=b, a_columns=None, b_columns=None)

    @property
    def widths(self) -> tuple[int, int]:
        """D and E."""
        return self.a.shape[1], (self.a if self.b is None else self.b).shape[1]


def _treated(rows: Tensor, columns: Tensor | None) -> Tensor:
    if columns is None:
        return rows
    mean, rest, scale = columns  # (D,) each
    treated: Tensor = ((rows.to(columns.dtype) - mean) - rest) * scale
    return treated.to(rows.dtype)


class Sums(NamedTuple):
    """What the forward op returns.

    Args:
        total: () sum of squares, of the off-diagonal elements where the diagonal is split off.
        diagonal: (D,) diagonal of a^T b; (0,) where it is not split off.
        cache: the Grams, or a^T b, for the backward pass; laid out by the backend.
    """

    total: Tensor
    diagonal: Tensor
    cache: Tensor


class Gradients(NamedTuple):
    """Gradients of `a` and `b`; (0,) where not asked for. Without b, `a` has both sides'."""

    a: Tensor
    b: Tensor


def no_rows(arguments: Arguments, cache_elements: int) -> Sums:
    """The sums of a problem without rows: nothing."""
    zeros = partial(arguments.a.new_zeros, dtype=accumulator(arguments.a.dtype))
    return Sums(
        zeros(()),
        zeros(arguments.a.shape[1] if arguments.split_diagonal else 0),
        zeros(cache_elements),
    )


def no_rows_gradients(arguments: Arguments, needs: tuple[bool, bool]) -> Gradients:
    """Gradients of a problem without rows."""
    a, b = arguments.a, arguments.b
    return Gradients(
        a.new_empty(a.shape if needs[0] else 0),
        a.new_empty(b.shape if b is not None and needs[1] else 0),
    )


# Products are held whole, and kept for the backward pass, where they take no more than the operands
# (the cheaper route never does) or than this.
CACHE_BYTES = 16 << 20
# On a GPU: elements before the products; at a time float32 parts of tiles, the operands' bytes if
# those are more; rows and bytes of a product that is not kept.
CACHE_HEADER, GPU_PARTS_BYTES = 8, 20 << 20
GPU_STRIP_ROWS, GPU_STRIP_BYTES = 128, 16 << 20


def padded(length: int) -> int:
    """Columns of a matrix as a GPU's tiles have them where a contraction runs over them."""
    return max(16, 1 << (length - 1).bit_length()) if length <= 64 else -(-length // 64) * 64


def strip_elements(a: Tensor, b: Tensor | None) -> int:
    """Elements of the products that are held at a time, in the accumulator dtype."""
    operands = a.numel() + (0 if b is None else b.numel())
    return max(operands, CACHE_BYTES // accumulator(a.dtype).itemsize)
