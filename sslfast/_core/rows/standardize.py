"""Records of `standardize`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scaling(NamedTuple):
    """How a column is scaled; see `standardize`."""

    ddof: int
    eps: float
    eps_on: str
    unit_variance: bool


class Columns(NamedTuple):
    """Statistics of the columns, (D,) each, float32 or wider.

    `rest` is what rounding `mean` has left of the exact mean, and empty where the statistics were
    given: those are exact by definition. Far from 0 it keeps the digits of x - mean: the float32
    mean of a column that lies 10^4 deviations away is wrong by up to 5 10^-4 of a deviation.
    """

    mean: Tensor
    variance: Tensor
    rest: Tensor

    @property
    def given(self) -> bool:
        return self.rest.numel() == 0


class Gradients(NamedTuple):
    """(N, D), and (D,) each of the statistics where they were given and learn, else empty."""

    dembeddings: Tensor
    dmean: Tensor
    dvariance: Tensor
