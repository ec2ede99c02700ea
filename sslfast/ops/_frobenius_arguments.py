"""What `cross_frobenius` accepts, and the form in which the op takes it."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from sslfast.ops._checks import accumulator, check_choice, check_device, check_matrix

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


def check_arguments(a: Tensor, b: Tensor | None, split_diagonal: bool, route: str) -> None:
    """Kinds, shapes and devices."""
    check_matrix("a", a, "(N, D)")
    if b is not None:
        check_matrix("b", b, "(N, E)")
        check_device("b", b, "a", a)
        if b.shape[0] != a.shape[0]:
            raise ValueError(f"b must have the {a.shape[0]} rows of a, got shape {tuple(b.shape)}")
        if split_diagonal and b.shape[1] != a.shape[1]:
            raise ValueError(
                f"b must have the {a.shape[1]} features of a with split_diagonal=True, "
                f"got shape {tuple(b.shape)}"
            )
    check_choice("route", route, ROUTES)
