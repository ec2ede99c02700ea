"""ListNet (Cao et al. 2007, "Learning to rank: from pairwise approach to listwise approach").

For a list of n elements with scores s and relevance y, the probability of an element to be ranked
first (section 4) is P_s(j) = exp(s_j) / sum_k exp(s_k), and the loss (section 5) is the cross
entropy

    loss = -1/B sum_lists sum_j P_y(j) log P_s(j)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.numerics import mean
from sslfast._registry import Loss, register_loss
from sslfast.losses._module import Objective
from sslfast.losses.ordering._cases import graded_lists
from sslfast.losses.ordering._lists import check_lists, check_padded_value, padding_of, widened


def listnet_loss(
    scores: Tensor, relevance: Tensor, *, padded_value_indicator: float | None = -1.0
) -> Tensor:
    """Cross entropy of top-one probabilities (Cao et al. 2007, sections 4 and 5).

    Args:
        scores: (B, n) lists of scores; float16, bfloat16, float32 or float64.
        relevance: (B, n) grades, floating or integer; higher is more relevant. They get a
            gradient if they ask for one, as a teacher's scores may.
        padded_value_indicator: relevance of what is no element but fills a list up to n; ``None``
            where lists are full and any grade, -1 included, is a grade.

    Returns:
        0-dim loss, the mean over lists, in float32 (float64 for float64 scores); at least the
        mean entropy of the relevance. A list of nothing but padding counts as 0.

    Raises:
        TypeError: `scores` is not a floating tensor, `relevance` no tensor of numbers, or
            `padded_value_indicator` no number.
        ValueError: shapes or devices differ, there is no list or no element, or a score or grade
            that is not padding is not finite (read on the CPU; on CUDA under ``SSLFAST_CHECK=1``).

    Differs from others: allRank's `listNet` adds 1e-10 to each probability before the logarithm,
    so that an element 23 below the best score has a wrong value and hardly a gradient; here the
    logarithm is that of the softmax itself. A list of padding is NaN there.
    """
    check_lists(scores, relevance, padded_value_indicator)
    padding = padding_of(relevance, padded_value_indicator)  # (B, n)
    wide, grades = widened(scores, relevance)
    least = torch.finfo(wide.dtype).min
    grades = grades.masked_fill(padding, least)  # its probability rounds to 0
    logits = wide.masked_fill(padding, least)
    log_probability = logits.log_softmax(-1).masked_fill(padding, 0)  # (B, n)
    return -mean((grades.softmax(-1) * log_probability).sum(-1))


class ListNetLoss(Objective):
    """Cross entropy of top-one probabilities (Cao et al. 2007, sections 4 and 5).

    Args:
        padded_value_indicator: relevance of padding; ``None`` where lists are full.

    Raises:
        TypeError, ValueError: `padded_value_indicator` is no finite number.

    Differs from others: see `sslfast.functional.listnet_loss`.
    """

    def __init__(self, padded_value_indicator: float | None = -1.0) -> None:
        super().__init__()
        check_padded_value(padded_value_indicator)
        self.padded_value_indicator = padded_value_indicator

    def forward(self, scores: Tensor, relevance: Tensor) -> Tensor:
        """Return the 0-dim loss of scores (B, n) and relevance (B, n).

        Raises:
            TypeError, ValueError: as `sslfast.functional.listnet_loss`.
        """
        return listnet_loss(scores, relevance, padded_value_indicator=self.padded_value_indicator)


def _listnet_eager(
    scores: Tensor, relevance: Tensor, *, padded_value_indicator: float | None = -1.0
) -> Tensor:
    """Two softmaxes of lists whose padding is -inf. Oracle and baseline."""
    padding = padding_of(relevance, padded_value_indicator)  # (B, n)
    wanted = relevance.to(scores.dtype).masked_fill(padding, -torch.inf).softmax(-1)
    found = scores.masked_fill(padding, -torch.inf).log_softmax(-1)
    return -(wanted * found.masked_fill(padding, 0)).sum(-1).mean()


SPEC = register_loss(
    Loss(
        name="ListNetLoss",
        family="ordering",
        module=ListNetLoss,
        functional=listnet_loss,
        eager=_listnet_eager,
        primitives=(),
        paper="Cao et al. 2007, sections 4 and 5",
        samples=(
            graded_lists("one_element", "tiny", 3, 1),
            graded_lists("one_list", "tiny", 1, 7),
            graded_lists("ragged", "ragged", 19, 33, padded=True),
            graded_lists("full", "ragged", 7, 21, padded_value_indicator=None),
            graded_lists("integers", "ragged", 11, 13, padded=True, integer=True),
            graded_lists("slates", "typical", 128, 240, padded=True),
            graded_lists("far_scores", "extreme", 9, 40, magnitude=50.0, padded=True),
            graded_lists("many_grades", "extreme", 9, 40, num_grades=60),
        ),
    )
)
