"""List-wise Wasserstein loss for graded relevance (SyCL, Esfandiarpoor et al. 2025).

With P and Y the softmaxes of scores and relevance over each of B lists, and Gaussians of the mean
mu and the covariance C of the lists of a batch, the squared 2-Wasserstein distance is

    loss = |mu_P - mu_Y|^2 + Tr(C_P + C_Y - 2 (C_P C_Y)^(1/2))

For C = M^T M, M the centred lists over sqrt(B - 1), the trace of the root is the nuclear norm of
the B x B matrix M_P M_Y^T: singular values in place of the complex eigenvalues of its square, and
a gradient that needs no difference of them. C, n x n, is never built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._core.checks import check_temperature
from sslfast._core.numerics import accumulator
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.losses._module import Objective
from sslfast.losses._nuclear import nuclear_norms
from sslfast.losses.ordering._lists import check_grades, check_readable_values, check_scores


def listwise_wasserstein_loss(
    scores: Tensor, relevance: Tensor, *, temperature: float | Tensor = 1.0
) -> Tensor:
    """Squared 2-Wasserstein distance of batches of softmaxes (SyCL, arXiv:2503.23239).

    Args:
        scores: (B, n) lists of scores; float16, bfloat16, float32 or float64.
        relevance: (B, n) grades, floating or integer; higher is more relevant. Or (B, m) with
            n = B m, where every list of scores holds the m documents of each query of the batch
            in turn: the other queries' documents have grade 0. They get a gradient if they ask
            for one.
        temperature: divides the scores; a one-element tensor may be learnable.

    Returns:
        0-dim loss, at least 0 but for rounding, in float32 (float64 for float64 scores); it is
        computed in float64. A single list has no covariance: its loss is the distance of means.

    Raises:
        TypeError: `scores` is not a floating tensor, `relevance` no tensor of numbers, or
            `temperature` no number.
        ValueError: shapes or devices differ, there is no list or no element, `temperature` is not
            finite or below 1e-8, or a score or grade is not finite (read on the CPU; on CUDA under
            ``SSLFAST_CHECK=1``).

    Differs from others: the authors' code takes roots of the general eigenvalues of the squared
    product, which rounding makes complex, after adding 1e-15 to each: its value is off by up to
    6e-8 for each that is 0 (one always is), and its gradient follows their rounding. Directions
    without a singular value have gradient 0 here. Softmaxes of half-precision scores are taken in
    float64 as well.
    """
    check_scores(scores)
    check_grades(relevance, scores)
    check_temperature(temperature, scores.device)
    check_readable_values("scores", scores)
    check_readable_values("relevance", relevance)
    grades = _for_all_documents(relevance, scores)  # (B, n)
    predicted = (scores.double() / temperature).softmax(-1)  # (B, n)
    wanted = grades.double().softmax(-1)  # (B, n)
    mean = predicted.mean(0), wanted.mean(0)  # (n,)
    freedom = max(len(scores) - 1, 1)
    p, y = predicted - mean[0], wanted - mean[1]  # (B, n)
    traces = (p.square().sum() + y.square().sum()) / freedom
    root = nuclear_norms(p @ y.T) / freedom
    loss = (mean[0] - mean[1]).square().sum() + traces - 2 * root
    return loss.to(accumulator(scores.dtype))


class ListwiseWassersteinLoss(Objective):
    """Squared 2-Wasserstein distance of batches of softmaxes (SyCL, arXiv:2503.23239).

    Args:
        temperature: divides the scores; a float, or a one-element tensor or parameter.

    Raises:
        TypeError: `temperature` is not a number or floating tensor.
        ValueError: `temperature` not finite or below 1e-8.

    Differs from others: see `sslfast.functional.listwise_wasserstein_loss`.
    """

    def __init__(self, temperature: float | Tensor = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, scores: Tensor, relevance: Tensor) -> Tensor:
        """Return the 0-dim loss of scores (B, n) and relevance (B, n) or (B, n / B).

        Raises:
            TypeError, ValueError: as `sslfast.functional.listwise_wasserstein_loss`.
        """
        return listwise_wasserstein_loss(scores, relevance, temperature=self.temperature)


def _for_all_documents(relevance: Tensor, scores: Tensor) -> Tensor:
    """(B, n) grades, 0 where a document belongs to another query."""
    if relevance.shape == scores.shape:
        return relevance
    num_lists, length = scores.shape
    if length % num_lists or relevance.shape != (num_lists, length // num_lists):
        raise ValueError(
            f"relevance must have the shape of scores {tuple(scores.shape)}, or (B, n / B) for "
            f"the documents of each query, got {tuple(relevance.shape)}"
        )
    own = torch.eye(num_lists, dtype=torch.bool, device=scores.device)  # (B, B)
    spread = relevance.unsqueeze(1) * own.unsqueeze(-1)  # (B, B, m)
    return spread.flatten(1)


def _wasserstein_eager(
    scores: Tensor, relevance: Tensor, *, temperature: float | Tensor = 1.0
) -> Tensor:
    """Both covariances, in float64 as the authors have it. Oracle and baseline."""
    if relevance.shape != scores.shape:
        relevance = torch.block_diag(*relevance)  # type: ignore[no-untyped-call]
    predicted = (scores / temperature).double().softmax(-1)  # (B, n)
    wanted = relevance.double().softmax(-1)  # (B, n)
    means, centred = [], []
    for lists in (predicted, wanted):
        means.append(lists.mean(0))
        centred.append((lists - means[-1]) / max(len(lists) - 1, 1) ** 0.5)
    covariance = centred[0].T @ centred[0] + centred[1].T @ centred[1]  # (n, n)
    root = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    loss: Tensor = (means[0] - means[1]).square().sum() + covariance.trace() - 2 * root
    return loss.to(scores.dtype)


def _lists(
    name: str,
    size: Size,
    num_lists: int,
    num_documents: int,
    *,
    in_batch: bool = False,
    magnitude: float = 1.0,
    noise: float = 1.0,
    integer: bool = False,
    temperature: float = 1.0,
) -> Sample:
    """Grades 0 to 3; scores are `magnitude` times the grades and noise."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        relevance = torch.randint(4, (num_lists, num_documents), generator=generator)
        length = num_documents * (num_lists if in_batch else 1)
        scores = torch.randn(num_lists, length, generator=generator, dtype=torch.float64)
        grades = _for_all_documents(relevance, scores)
        return {
            "scores": magnitude * (noise * scores + grades.double()),
            "relevance": relevance if integer else relevance.double(),
            "temperature": temperature,
        }

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="ListwiseWassersteinLoss",
        family="ordering",
        module=ListwiseWassersteinLoss,
        functional=listwise_wasserstein_loss,
        eager=_wasserstein_eager,
        primitives=(),
        paper="arXiv:2503.23239, the 2-Wasserstein loss",
        samples=(
            _lists("one_list", "tiny", 1, 7),
            _lists("two_lists", "tiny", 2, 5),
            _lists("ragged", "ragged", 9, 33),
            _lists("in_batch", "ragged", 5, 7, in_batch=True),
            _lists("integers", "ragged", 7, 13, integer=True),
            _lists("more_lists", "ragged", 23, 11, temperature=0.5),
            _lists("synthetic", "typical", 32, 4, in_batch=True),
            _lists("peaked", "extreme", 9, 20, magnitude=20.0),
            _lists("agreeing", "extreme", 9, 20, noise=1e-2),
        ),
    )
)
