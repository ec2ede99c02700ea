"""The spectrum of embeddings that come in batches, on one rank or on several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast.distributed.world import world_size
from sslfast.evaluation._gram import (
    add_feature_gram,
    check_embeddings,
    check_eps,
    effective_rank,
    singular_values,
    smaller_gram,
)
from sslfast.evaluation.diagnostics import check_ddof


class EmbeddingSpectrum:
    """Collects batches (n, D); gives the diagnostics of all N rows seen, to float64 rounding.

        spectrum = EmbeddingSpectrum()
        for images in loader:
            spectrum.update(encoder(images))
        spectrum.all_reduce()
        spectrum.rankme(), spectrum.participation_ratio(), spectrum.feature_std()

    Rows are kept until there are D of them, then go into their D x D Gram matrix in float64 by one
    product: memory stays below D rows more than that matrix, and at N x D for N < D. Mean and
    deviations are kept apart (Chan et al. 1983), so that `feature_std` has no difference of large
    squares.

    Attributes:
        num_rows: N so far.

    Differs from a queue of recent embeddings (stable-pretraining): every row counts, and the
    result is that of all rows at once.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.num_rows = 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None  # (D, D), of the rows that are no longer kept
        self._mean = torch.zeros(0, dtype=torch.float64)  # (D,)
        self._squares = torch.zeros(0, dtype=torch.float64)  # (D,), of deviations from the mean

    @torch.no_grad()
    def update(self, embeddings: Tensor) -> None:
        """Take in a batch (n, D) of any floating-point dtype; no gradient is kept.

        Raises:
            ValueError: not a non-empty, finite, floating-point matrix, or D or the device is not
                that of earlier batches.
        """
        check_embeddings("embeddings", embeddings)
        rows = embeddings.detach()
        if self.num_rows:
            self._check_like("embeddings", rows.shape[1], rows.device)
        mean = rows.double().mean(0)  # (D,)
        self._add_moments(len(rows), mean, (rows.double() - mean).square().sum(0))
        # A copy: the caller may write into its batch again.
        self._rows.append(rows.clone())
        self._fold_if_many()

    @torch.no_grad()
    def merge(self, other: EmbeddingSpectrum) -> None:
        """Take in the rows of another spectrum, which stays as it is.

        Raises:
            ValueError: D or the device differ.
        """
        if other.num_rows == 0:
            return
        if self.num_rows:
            self._check_like("other", len(other._mean), other._mean.device)
        self._add_moments(other.num_rows, other._mean, other._squares)
        self._rows.extend(other._rows)
        if other._gram is not None:
            self._gram = other._gram + (0 if self._gram is None else self._gram)
        self._fold_if_many()

    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Make this the spectrum of the rows of all ranks, which may hold different numbers.

        Moves D^2 float64 numbers. Call it once, after the last batch; without a process group it
        does nothing.

        Raises:
            ValueError: a rank holds no row, or D differs; the same on every rank.
        """
        ranks = world_size(group)
        if ranks == 1:
            return
        sizes: list[tuple[int, int]] = [(0, 0)] * ranks
        dist.all_gather_object(sizes, (self.num_rows, len(self._mean)), group=group)
        if len({dim for _, dim in sizes}) > 1 or min(rows for rows, _ in sizes) == 0:
            raise ValueError(
                "every rank must have taken in rows of the same number of features, "
                f"got (N, D) = {sizes} in rank order"
            )
        total = sum(rows for rows, _ in sizes)
        mean = self._mean * (self.num_rows / total)
        dist.all_reduce(mean, group=group)
        squares = self._squares + self.num_rows * (self._mean - mean).square()
        gram = self._folded()
        for sums in (squares, gram):
            dist.all_reduce(sums, group=group)
        self.num_rows, self._mean, self._squares = total, mean, squares

    @torch.no_grad()
    def singular_values(self) -> Tensor:
        """Descending singular values (min(N, D),) of all rows, in float64.

        Raises:
            ValueError: no batch was taken in.
        """
        self._check_seen()
        values = singular_values(self._smaller_gram())
        return values[: min(self.num_rows, len(self._mean))]

    def rankme(self, *, eps: float = 1e-7) -> float:
        """Effective rank, as `sslfast.evaluation.rankme`.

        Raises:
            ValueError: no batch was taken in, or eps < 0.
        """
        check_eps(eps)
        return effective_rank(self.singular_values(), eps)

    @torch.no_grad()
    def participation_ratio(self, *, center: bool = False) -> float:
        """Number of directions with energy, as `sslfast.evaluation.participation_ratio`.

        Raises:
            ValueError: no batch was taken in.
        """
        self._check_seen()
        gram = self._smaller_gram()
        if center and self._gram is None:
            gram = smaller_gram(torch.cat([rows.double() for rows in self._rows]) - self._mean)
        elif center:
            gram = gram - self.num_rows * torch.outer(self._mean, self._mean)
        energy = float(gram.trace())
        return energy**2 / float(gram.square().sum()) if energy > 0 else 0.0

    def feature_std(self, *, ddof: int = 1) -> Tensor:
        """Standard deviation (D,) of each feature, in float64.

        Raises:
            ValueError: N is not above `ddof`.
        """
        check_ddof(ddof, self.num_rows)
        return (self._squares / (self.num_rows - ddof)).sqrt()

    def _add_moments(self, num_rows: int, mean: Tensor, squares: Tensor) -> None:
        if self.num_rows == 0:
            self._mean, self._squares = torch.zeros_like(mean), torch.zeros_like(mean)
        total = self.num_rows + num_rows
        step = mean - self._mean
        self._squares = self._squares + squares + step.square() * (self.num_rows * num_rows / total)
        self._mean = self._mean + step * (num_rows / total)
        self.num_rows = total

    def _fold_if_many(self) -> None:
        if sum(map(len, self._rows)) > len(self._mean):
            self._folded()

    def _folded(self) -> Tensor:
        """The D x D Gram matrix of all rows, which are no longer kept."""
        if self._gram is None:
            self._gram = self._mean.new_zeros(len(self._mean), len(self._mean))
        if self._rows:
            add_feature_gram(self._gram, torch.cat([rows.double() for rows in self._rows]))
            self._rows = []
        return self._gram

    def _smaller_gram(self) -> Tensor:
        if self._gram is None:
            return smaller_gram(torch.cat([rows.double() for rows in self._rows]))
        return self._folded()

    def _check_seen(self) -> None:
        if self.num_rows == 0:
            raise ValueError("update must have taken in a batch before, got 0 rows")

    def _check_like(self, name: str, dim: int, device: torch.device) -> None:
        seen = len(self._mean), self._mean.device
        if (dim, device) != seen:
            raise ValueError(
                f"{name} must have {seen[0]} features on {seen[1]} as before, got {dim} on {device}"
            )
