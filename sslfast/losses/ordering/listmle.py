"""ListMLE (Xia et al. 2008, "Listwise approach to learning to rank: theory and algorithm").

For a list of n elements with scores s, in the order pi of descending relevance, the likelihood of
that order in the model of Plackett and Luce gives the likelihood loss

    loss = -1/B sum_lists sum_i log( exp(s_pi(i)) / sum_{k >= i} exp(s_pi(k)) )

The sums are one cumulative log-sum-exp from the last element to the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_device, values_are_read
from sslfast._core.numerics import mean
from sslfast._registry import Loss, Sample, register_loss
from sslfast.losses._module import Objective
from sslfast.losses.ordering._cases import graded_lists
from sslfast.losses.ordering._lists import check_lists, check_padded_value, padding_of, widened


def listmle_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    tie_order: Tensor | None = None,
    padded_value_indicator: float | None = -1.0,
) -> Tensor:
    """Negative log-likelihood of the order of relevance (Xia et al. 2008).

    Args:
        scores: (B, n) lists of scores; float16, bfloat16, float32 or float64.
        relevance: (B, n) grades, floating or integer; higher is more relevant. Only their order
            counts, so that they get no gradient.
        tie_order: (n,) a permutation of the positions, int64: of elements of the same grade, the
            one that it names first is ranked first. ``None``: the one that stands first.
        padded_value_indicator: relevance of what is no element but fills a list up to n; ``None``
            where lists are full and any grade, -1 included, is a grade.

    Returns:
        0-dim loss, the mean over lists of a sum over their elements, in float32 (float64 for
        float64 scores); at least 0. A list of one element, or of nothing but padding, counts as 0.

    Raises:
        TypeError: `scores` is not a floating tensor, `relevance` no tensor of numbers,
            `tie_order` not int64, or `padded_value_indicator` no number.
        ValueError: shapes or devices differ, there is no list or no element, a score or grade that
            is not padding is not finite, or `tie_order` is no permutation (values are read on the
            CPU; on CUDA under ``SSLFAST_CHECK=1``).

    Differs from others: allRank's `listMLE` always draws `tie_order` at random, from the CPU's
    generator; `ListMLELoss` does so where it is asked to. It adds 1e-10 to each sum before the
    logarithm, relative to the best score of the list: an element whose successors all lie 23 below
    it has the wrong value and hardly a gradient. Here the log-sum-exp is exact.
    """
    check_lists(scores, relevance, padded_value_indicator)
    padding = padding_of(relevance, padded_value_indicator)  # (B, n)
    wide, grades = widened(scores, relevance.detach())  # (B, n)
    if tie_order is not None:
        _check_tie_order(tie_order, scores)
        wide, grades, padding = (each[:, tie_order] for each in (wide, grades, padding))
    grades = grades.masked_fill(padding, -torch.inf)
    order = grades.argsort(dim=-1, descending=True, stable=True)  # (B, n), padding last
    padding = padding.gather(-1, order)
    # Padding far below every score, and finite: the gradient of a cumulative sum of -inf is NaN.
    # In float64, since that gradient goes through logarithms as large as the scores.
    ranked = (
        wide.gather(-1, order).double().masked_fill(padding, torch.finfo(torch.float64).min / 2)
    )
    rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)  # (B, n)
    terms = (rest - ranked).masked_fill(padding, 0)  # (B, n)
    return mean(terms.sum(-1)).to(wide.dtype)


class ListMLELoss(Objective):
    """Negative log-likelihood of the order of relevance (Xia et al. 2008).

    Args:
        padded_value_indicator: relevance of padding; ``None`` where lists are full.
        shuffle_ties: draw the order of elements of the same grade anew in each call, as allRank
            does, with torch's default generator of the scores' device. False: by position.

    Raises:
        TypeError, ValueError: `padded_value_indicator` is no finite number.

    Differs from others: see `sslfast.functional.listmle_loss`.
    """

    def __init__(
        self, padded_value_indicator: float | None = -1.0, shuffle_ties: bool = True
    ) -> None:
        super().__init__()
        check_padded_value(padded_value_indicator)
        self.padded_value_indicator = padded_value_indicator
        self.shuffle_ties = shuffle_ties

    def forward(self, scores: Tensor, relevance: Tensor, tie_order: Tensor | None = None) -> Tensor:
        """Return the 0-dim loss of scores (B, n) and relevance (B, n).

        Args:
            tie_order: (n,) as `sslfast.functional.listmle_loss`; given, nothing is drawn.

        Raises:
            TypeError, ValueError: as `sslfast.functional.listmle_loss`.
        """
        if self.shuffle_ties and tie_order is None:
            check_lists(scores, relevance, self.padded_value_indicator)
            tie_order = torch.randperm(scores.shape[-1], device=scores.device)
        return listmle_loss(
            scores,
            relevance,
            tie_order=tie_order,
            padded_value_indicator=self.padded_value_indicator,
        )


def _check_tie_order(tie_order: Tensor, scores: Tensor) -> None:
    if not isinstance(tie_order, Tensor) or tie_order.dtype != torch.int64:
        kind = tie_order.dtype if isinstance(tie_order, Tensor) else type(tie_order).__name__
        raise TypeError(f"tie_order must be an int64 tensor, got {kind}")
    length = scores.shape[-1]
    if tie_order.shape != (length,):
        raise ValueError(
            f"tie_order must be a permutation of the n = {length} positions, "
            f"got shape {tuple(tie_order.shape)}"
        )
    check_device("tie_order", tie_order, "scores", scores)
    if torch.compiler.is_compiling() or not values_are_read(tie_order):
        return
    if not torch.equal(tie_order.sort().values, torch.arange(length, device=tie_order.device)):
        raise ValueError(
            f"tie_order must be a permutation of the n = {length} positions, "
            f"got {tie_order.tolist()}"
        )


def _listmle_eager(
    scores: Tensor,
    relevance: Tensor,
    *,
    tie_order: Tensor | None = None,
    padded_value_indicator: float | None = -1.0,
) -> Tensor:
    """Sorted, and summed from the last to the first, in their dtype. Oracle and baseline."""
    if tie_order is not None:
        scores, relevance = scores[:, tie_order], relevance[:, tie_order]
    padding = padding_of(relevance, padded_value_indicator)  # (B, n)
    grades = relevance.to(scores.dtype).masked_fill(padding, -torch.inf)
    _, order = grades.sort(dim=-1, descending=True, stable=True)
    padding = padding.gather(-1, order)
    ranked = scores.gather(-1, order).masked_fill(padding, torch.finfo(scores.dtype).min / 2)
    rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)  # (B, n)
    return (rest - ranked).masked_fill(padding, 0).sum(-1).mean()


def _tie_order(name: str, num_lists: int, length: int) -> Sample:
    plain = graded_lists(name, "ragged", num_lists, length, padded=True)

    def make(generator: torch.Generator) -> dict[str, object]:
        return plain.make(generator) | {"tie_order": torch.randperm(length, generator=generator)}

    return Sample(name, "ragged", make)


SPEC = register_loss(
    Loss(
        name="ListMLELoss",
        family="ordering",
        module=ListMLELoss,
        functional=listmle_loss,
        eager=_listmle_eager,
        primitives=(),
        paper="Xia et al. 2008, the likelihood loss",
        constants=("relevance",),
        samples=(
            graded_lists("one_element", "tiny", 3, 1),
            graded_lists("one_list", "tiny", 1, 7),
            graded_lists("ragged", "ragged", 19, 33, padded=True),
            graded_lists("full", "ragged", 7, 21, padded_value_indicator=None),
            graded_lists("integers", "ragged", 11, 13, padded=True, integer=True),
            _tie_order("tie_order", 9, 17),
            graded_lists("slates", "typical", 32, 240, padded=True),
            graded_lists("far_scores", "extreme", 9, 40, magnitude=50.0, padded=True),
            graded_lists("offset", "extreme", 9, 40, offset=300.0, padded=True),
        ),
    )
)
