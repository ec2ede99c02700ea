"""Alignment of positive pairs (Wang & Isola 2020, section 4.1.1).

For N pairs of unit rows x_i, y_i,

    loss = 1/N sum_i |x_i - y_i|^alpha

Distances are taken from the differences, N D operations: nothing is paired, nothing cancels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_number, check_views
from sslfast._core.numerics import accumulator, mean
from sslfast._registry import Loss, register_loss
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._pairs import sample_views
from sslfast.ops.rows.l2_normalize import l2_normalize


def alignment_loss(
    embeddings0: Tensor, embeddings1: Tensor, *, alpha: float = 2.0, normalize: bool = True
) -> Tensor:
    """Mean distance of positive pairs to the power alpha (Wang & Isola 2020, section 4.1.1).

    On several ranks the mean over ranks is the value of the global batch without a gather.

    Args:
        embeddings0: (N, D) embeddings of the first view; float16, bfloat16, float32 or float64;
            two dtypes promote to the wider.
        embeddings1: (N, D) embeddings of the second view; row i is the positive of row i.
        alpha: power of the distance; finite and above 0.
        normalize: to unit rows; else the rows are taken as they are.

    Returns:
        0-dim loss, between 0 and 2^alpha for unit rows, in float32 (float64 for float64
        embeddings). Pairs at distance 0 have gradient 0 for every alpha.

    Raises:
        TypeError: an argument is not a floating tensor, or `alpha` is not a number.
        ValueError: shapes or devices differ, a matrix is empty, or `alpha` is out of range.

    Differs from others: the authors' `align_loss` expects unit rows; powers below 1 give NaN
    gradients at distance 0 there.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    check_number("alpha", alpha, above=0)
    if normalize:
        embeddings0, embeddings1 = l2_normalize(embeddings0), l2_normalize(embeddings1)
    return mean_distance(embeddings0, embeddings1, alpha)


def mean_distance(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Mean of |first_i - second_i|^alpha over rows (N, D)."""
    wide = accumulator(torch.promote_types(first.dtype, second.dtype))
    squared = (first.to(wide) - second.to(wide)).square().sum(1)  # (N,)
    if alpha == 2:
        return mean(squared)
    apart = squared > 0
    return mean(squared.where(apart, 1.0).pow(alpha / 2).where(apart, 0.0))


class AlignmentLoss(Objective):
    """Mean distance of positive pairs to the power alpha (Wang & Isola 2020, section 4.1.1).

    Args:
        alpha: power of the distance; finite and above 0.
        normalize: to unit rows; else the rows are taken as they are.

    Raises:
        TypeError: `alpha` is not a number.
        ValueError: `alpha` is not finite and above 0.

    Differs from others: see `sslfast.functional.alignment_loss`.
    """

    def __init__(self, alpha: float = 2.0, normalize: bool = True) -> None:
        super().__init__()
        check_number("alpha", alpha, above=0)
        self.alpha = alpha
        self.normalize = normalize

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the 0-dim loss of two views (N, D).

        Raises:
            TypeError, ValueError: as `sslfast.functional.alignment_loss`.
        """
        check_views(out0=out0, out1=out1)
        return alignment_loss(out0, out1, alpha=self.alpha, normalize=self.normalize)


def _alignment_eager(
    embeddings0: Tensor, embeddings1: Tensor, *, alpha: float = 2.0, normalize: bool = True
) -> Tensor:
    """As the authors write it. Oracle and baseline."""
    if normalize:
        embeddings0, embeddings1 = F.normalize(embeddings0), F.normalize(embeddings1)
    distances: Tensor = (embeddings0 - embeddings1).norm(dim=1)  # (N,)
    return distances.pow(alpha).mean()


SPEC = register_loss(
    Loss(
        name="AlignmentLoss",
        family="contrastive",
        module=AlignmentLoss,
        functional=alignment_loss,
        eager=_alignment_eager,
        primitives=("l2_normalize",),
        paper="Wang & Isola 2020, arXiv:2005.10242, section 4.1.1",
        samples=(
            sample_views("one_pair", "tiny", 1, 8),
            sample_views("one_feature", "tiny", 5, 1),
            sample_views("ragged", "ragged", 67, 33, alpha=1.5),
            sample_views("as_given", "ragged", 19, 130, alpha=1.0, normalize=False),
            sample_views("batch", "typical", 512, 128),
            sample_views("wide", "extreme", 24, 2048),
            sample_views("close", "extreme", 40, 16, noise=1e-3),
        ),
    )
)
