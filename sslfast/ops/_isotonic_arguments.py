"""Arguments of `isotonic_rank`: how they are grouped, and what is refused."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sslfast.ops._checks import accumulator, check_choice, check_number

OUTPUTS = ("rank", "sort")
REGULARIZATIONS = ("l2", "kl")


class Rule(NamedTuple):
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


def check_rule(output: str, regularization: str, regularization_strength: float) -> Rule:
    """The rule, or TypeError or ValueError that names the argument and what it got."""
    check_choice("output", output, OUTPUTS)
    check_choice("regularization", regularization, REGULARIZATIONS)
    check_number("regularization_strength", regularization_strength, above=0)
    return Rule(output, regularization, float(regularization_strength))


def in_order(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) each row ascending in float32 or wider, and where its values come from."""
    ascending, order = values.to(accumulator(values.dtype)).sort(dim=-1, stable=True)
    return ascending, order
