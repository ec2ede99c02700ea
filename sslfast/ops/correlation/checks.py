"""What the primitives over correlations of columns refuse."""

from __future__ import annotations

from torch import Tensor

from sslfast._core.checks import check_choice, check_device, check_matrix
from sslfast._core.correlation.frobenius import ROUTES


def check_frobenius(a: Tensor, b: Tensor | None, split_diagonal: bool, route: str) -> None:
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
