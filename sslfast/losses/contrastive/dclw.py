"""Weighted decoupled contrastive learning (Yeh et al. 2022, section 3).

The loss of `sslfast.losses.contrastive.dcl`, whose positives count with the negative von
Mises-Fisher weights of their N images,

    w_i = 2 - N softmax_i(s_ip(i) / sigma),

which the gradient holds constant: a pair that already agrees better than others counts less.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sslfast._core.checks import check_number, check_views
from sslfast._core.numerics import row_dot
from sslfast._registry import Loss, register_loss
from sslfast.distributed import all_gather_rows, rank
from sslfast.losses.contrastive._pairs import sample_views
from sslfast.losses.contrastive._rows import largest_logit
from sslfast.losses.contrastive.dcl import DCLLoss, WeightFunction, _dcl_eager, dcl_loss


def negative_mises_fisher_weights(
    out0: Tensor, out1: Tensor, sigma: float = 0.5, gather_distributed: bool = False
) -> Tensor:
    """Weights 2 - N softmax(<out0_i, out1_i> / sigma) of N positives (Yeh et al. 2022, section 3).

    Args:
        out0: (N, D) rows of the first view, taken as they are: unit rows inside the losses.
        out1: (N, D) rows of the second view.
        sigma: divides the similarities; finite and above 0.
        gather_distributed: softmax and N are those of all ranks, the weights the rank's own.

    Returns:
        (N,) weights of mean 1, below 1 for images whose views agree better than others'; without
        gradient, in float32 (float64 for float64 rows).

    Raises:
        TypeError: an argument is not a floating tensor, or `sigma` is not a number.
        ValueError: shapes or devices differ, a matrix is empty, or `sigma` is out of range.

    Differs from lightly: half-precision rows give float32 weights, and no warning is issued.
    raminnakhli's code leaves out the factor N, so that every weight is near 2.
    """
    check_views(out0=out0, out1=out1)
    check_number("sigma", sigma, above=0)
    similarity = row_dot(out0.detach(), out1.detach()) / sigma  # (N,)
    if gather_distributed:
        similarity = all_gather_rows(similarity)  # (W N,)
    weights = 2 - len(similarity) * similarity.softmax(0)  # (W N,)
    start = rank() * len(out0) if gather_distributed else 0
    return weights[start : start + len(out0)]


def dclw_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    sigma: float = 0.5,
    gather_distributed: bool = False,
) -> Tensor:
    """`dcl_loss` with negative von Mises-Fisher weights (Yeh et al. 2022, section 3).

    Args:
        embeddings0, embeddings1, temperature: as `dcl_loss`.
        sigma: of `negative_mises_fisher_weights`; finite and above 0.
        gather_distributed: as `dcl_loss`; the weights too are those of the global batch.

    Returns:
        As `dcl_loss`.

    Raises:
        TypeError, ValueError: as `dcl_loss`; or `sigma` is not a number above 0.

    Differs from lightly: as `dcl_loss`; with `gather_distributed` lightly normalises the weights
    over each rank's own batch, which `dcl_loss` does with `negative_mises_fisher_weights` as its
    `weight_fn`.
    """
    return dcl_loss(
        embeddings0,
        embeddings1,
        temperature=temperature,
        weight_fn=_mises_fisher(sigma, gather_distributed),
        gather_distributed=gather_distributed,
    )


class DCLWLoss(DCLLoss):
    """Weighted decoupled contrastive loss, a drop-in for `lightly.loss.DCLWLoss` 1.5.

    Args:
        temperature, gather_distributed: as `DCLLoss`.
        sigma: of `negative_mises_fisher_weights`; finite and above 0.

    Raises:
        TypeError, ValueError: as `DCLLoss`; or `sigma` is not a number above 0.

    Differs from lightly: see `sslfast.functional.dclw_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(
            temperature=temperature,
            weight_fn=_mises_fisher(sigma, gather_distributed),
            gather_distributed=gather_distributed,
        )


def _mises_fisher(sigma: float, gather_distributed: bool) -> WeightFunction:
    check_number("sigma", sigma, above=0)
    return partial(
        negative_mises_fisher_weights, sigma=sigma, gather_distributed=gather_distributed
    )


def _dclw_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    sigma: float = 0.5,
    gather_distributed: bool = False,
) -> Tensor:
    """The same with the weights of the paper written out."""

    def weights(first: Tensor, second: Tensor) -> Tensor:
        similarity = (first * second).sum(1).detach() / sigma  # (N,)
        if gather_distributed:
            similarity = all_gather_rows(similarity)  # (W N,)
        powers = similarity.exp()
        start = rank() * len(first) if gather_distributed else 0
        return (2 - powers / powers.mean())[start : start + len(first)]  # (N,)

    return _dcl_eager(
        embeddings0,
        embeddings1,
        temperature=temperature,
        weight_fn=weights,
        gather_distributed=gather_distributed,
    )


SPEC = register_loss(
    Loss(
        name="DCLWLoss",
        family="contrastive",
        module=DCLWLoss,
        functional=dclw_loss,
        eager=_dclw_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="Yeh et al. 2022, arXiv:2110.06848, section 3",
        samples=(
            sample_views("two_pairs", "tiny", 2, 3),
            sample_views("one_feature", "tiny", 5, 1, temperature=1.0),
            sample_views("ragged", "ragged", 67, 33, temperature=0.2, sigma=0.3),
            sample_views(
                "gathered",
                "ragged",
                20,
                11,
                temperature=torch.tensor(0.25),
                gather_distributed=True,
            ),
            sample_views("batch", "typical", 512, 128, temperature=0.1),
            sample_views("cold", "extreme", 65, 64, noise=1.5, temperature=0.01, sigma=0.05),
            sample_views("wide", "extreme", 24, 2048, noise=1.5, temperature=0.05),
        ),
        amplification=largest_logit,
    )
)
