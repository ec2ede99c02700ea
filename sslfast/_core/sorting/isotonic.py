"""Arguments of `isotonic_rank`: how they are grouped, and what is refused."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sslfast._core.numerics import accumulator

OUTPUTS = ("rank", "sort")
REGULARIZATIONS = ("l2", "kl")


class Projection(NamedTuple):
    """What is projected, and by which divergence; see `isotonic_rank`."""

    output: str
    regularization: str
    strength: float

    @property
    def ranks(self) -> bool:
        return self.output == "rank"

    @property
    def entropic(self) -> bool:
        return self.regularization == "kl"


def in_order(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) each row ascending in float32 or wider, and where its values come from."""
    ascending, order = values.to(accumulator(values.dtype)).sort(dim=-1, stable=True)
    return ascending, order
