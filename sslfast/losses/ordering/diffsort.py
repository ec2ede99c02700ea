"""`DiffSortNet`: diffsort's module over `relaxed_sort` (Petersen et al. 2021 and 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_count, check_lists
from sslfast.losses._module import Objective
from sslfast.ops.sorting.checks import check_rule
from sslfast.ops.sorting.relaxed_sort import relaxed_sort


class DiffSortNet(Objective):
    """Differentiable sorting network, a drop-in for `diffsort.DiffSortNet` 0.2.

    Args:
        sorting_network_type: ``"odd_even"`` or ``"bitonic"``.
        size: n, the length of the lists.
        device: accepted for the signature; the network lies wherever the lists do.
        steepness: factor of the differences, above 0.
        art_lambda: exponent of ``"logistic_phi"``, in [0, 1); the others do not read it.
        interpolation_type: former name of `distribution`.
        distribution: ``"cauchy"``, ``"reciprocal"``, ``"optimal"``, ``"logistic"``,
            ``"logistic_phi"`` or ``"gaussian"``.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: an option is unknown or out of range, or `interpolation_type` and
            `distribution` are both given and differ.

    Differs from diffsort: errors are `ValueError` where its are `AssertionError` and
    `NotImplementedError`; lists must be finite; half precision returns float32; `device` need not
    be that of the lists, and moving the module needs no care; the bitonic network sorts for every
    size (see `sslfast.relaxed_sort`). Where the permutation is not needed, that function does not
    build it.
    """

    def __init__(
        self,
        sorting_network_type: str,
        size: int,
        device: torch.device | str = "cpu",
        steepness: float = 10.0,
        art_lambda: float = 0.25,
        interpolation_type: str | None = None,
        distribution: str = "cauchy",
    ) -> None:
        super().__init__()
        if interpolation_type is not None:
            if distribution not in (None, "cauchy", interpolation_type):
                raise ValueError(
                    "interpolation_type is the former name of distribution, and must agree with "
                    f"{distribution!r}, got {interpolation_type!r}"
                )
            distribution = interpolation_type
        check_count("size", size, 1)
        check_rule(sorting_network_type, distribution, steepness, art_lambda)
        self.sorting_network_type = sorting_network_type
        self.size = size
        self.steepness = steepness
        self.art_lambda = art_lambda
        self.distribution = distribution

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Sort lists softly, in ascending order.

        Args:
            vectors: (B, n) lists, n the module's size.

        Returns:
            (B, n) sorted lists and (B, n, n) permutations P, sorted = x P: ``P[b, i, j]`` is the
            share of input i at rank j.

        Raises:
            TypeError, ValueError: as `sslfast.relaxed_sort`; or n is not the module's size.
        """
        check_lists("vectors", vectors)
        if vectors.shape[1] != self.size:
            raise ValueError(
                f"vectors must be lists of the size {self.size}, got shape {tuple(vectors.shape)}"
            )
        return relaxed_sort(
            vectors,
            network=self.sorting_network_type,
            relaxation=self.distribution,
            steepness=self.steepness,
            art_lambda=self.art_lambda,
            permutation=True,
        )
