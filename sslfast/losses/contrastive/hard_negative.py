"""Contrastive learning with hard negative samples (Robinson et al. 2021, section 3).

For 2N rows z, two views of N images, with s_ij = <z_i, z_j> / (|z_i| |z_j|) / temperature, p(i)
the other view of the image of row i and n = 2N - 2 negatives j not in {i, p(i)},

    loss = -1/(2N) sum_i log( P_i / (P_i + G_i) )                               P_i = exp(s_ip(i))
    G_i  = max( (R_i - tau_plus n P_i) / (1 - tau_plus), n exp(-1 / temperature) )
    R_i  = n sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij)

R_i weighs each negative by exp(beta s_ij), normalised: importance sampling of the hard ones. The
term of tau_plus takes away what positives among the negatives are expected to add (Chuang et al.
2020, section 4); the maximum is the least value that G_i can have. beta = 0 is the debiased loss
of Chuang et al., beta = tau_plus = 0 is NT-Xent.

Both sums of R_i are log-sum-exps of the same similarities at two scales; everything after them is
done with logarithms, since exp((1 + beta) / temperature) exceeds float32 below temperature 0.023.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_distributed, check_number, check_temperature, check_views
from sslfast._core.numerics import accumulator, inverse, mean, round_like_tiles
from sslfast._registry import Loss, register_loss
from sslfast.distributed import all_gather_rows, rank
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._pairs import (
    count_negatives,
    other_images,
    positive_similarity,
    sample_views,
)
from sslfast.losses.contrastive._rows import largest_logit
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.similarity.logsumexp import similarity_logsumexp


def hard_negative_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    gather_distributed: bool = False,
) -> Tensor:
    """Debiased loss with hard negatives, the similarities never stored (Robinson et al. 2021).

    Args:
        embeddings0: (N, D) embeddings of the first view, N > 1, normalised here; float16,
            bfloat16, float32 or float64; two dtypes promote to the wider.
        embeddings1: (N, D) embeddings of the second view; row i is the positive of row i.
        temperature: divides the cosine similarities; a one-element tensor may be learnable.
        tau_plus: probability that a negative is of the query's own class; 0 <= tau_plus < 1.
        beta: concentration on hard negatives, at least 0. A second pass over the similarities
            is needed where it is above 0.
        gather_distributed: the other ranks' rows are negatives too (the same N on every rank).
            Each rank returns the mean over its own 2N rows; the mean over ranks is the loss of
            the global batch, and averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss, the mean over rows, in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is not a floating tensor, or an option is not a number.
        ValueError: shapes or devices differ, a matrix is empty, an option is out of range, or
            there is one image only: the weights have no negative to be normalised over.

    Differs from joshr17/HCL: rows are normalised here, as its model does; `estimator="easy"` is
    ``beta=0, tau_plus=0``; powers are never formed, so low temperatures give no NaN. As there the
    weights are part of the gradient, and so is the bound on G where the temperature is learnt.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    check_temperature(temperature, embeddings0.device)
    _check_estimator(tau_plus, beta)
    num_negatives = count_negatives("embeddings0", embeddings0, gather_distributed)
    return _reweighted_loss(
        embeddings0, embeddings1, temperature, tau_plus, beta, gather_distributed, num_negatives
    )


class HardNegativeLoss(Objective):
    """Contrastive loss with debiased, hard negatives (Robinson et al. 2021, section 3).

    Args:
        temperature: divides the cosine similarities; a float, or a one-element tensor or
            parameter to learn it.
        tau_plus: probability that a negative is of the query's own class; 0 <= tau_plus < 1.
            0 leaves out the correction.
        beta: concentration on hard negatives, at least 0; may be changed between steps to anneal
            it. 0 gives the debiased loss of Chuang et al. 2020.
        gather_distributed: the negatives are those of all ranks.

    Raises:
        TypeError: an option is not a number (`temperature`: or a floating tensor).
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from joshr17/HCL: see `sslfast.functional.hard_negative_loss`; defaults are those of
    its command line.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        tau_plus: float = 0.1,
        beta: float = 1.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        _check_estimator(tau_plus, beta)
        check_distributed(gather_distributed)
        self.temperature = temperature
        self.tau_plus = tau_plus
        self.beta = beta
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the 0-dim loss of two views (N, D), N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.hard_negative_loss`.
        """
        check_views(out0=out0, out1=out1)
        check_temperature(self.temperature, out0.device)
        _check_estimator(self.tau_plus, self.beta)
        num_negatives = count_negatives("out0", out0, self.gather_distributed)
        return _reweighted_loss(
            out0,
            out1,
            self.temperature,
            self.tau_plus,
            self.beta,
            self.gather_distributed,
            num_negatives,
        )


def _check_estimator(tau_plus: float, beta: float) -> None:
    check_number("tau_plus", tau_plus, least=0, below=1)
    check_number("beta", beta, least=0)


def _reweighted_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    temperature: float | Tensor,
    tau_plus: float,
    beta: float,
    gather_distributed: bool,
    num_negatives: int,
) -> Tensor:
    """-log sigmoid(log P - log G): the logarithms of P, R and G in the formulas above.

    Differences of logarithms are taken in float64: what R - tau_plus n P leaves is small beside
    both where the bound is near, and rounding would grow by as much.
    """
    rows = round_like_tiles(l2_normalize(torch.cat((embeddings0, embeddings1))))  # (2N, D)
    scale = inverse(temperature, rows)
    # First, so that its gradient is formed last, when the kernels' memory is free again.
    positive = (scale * positive_similarity(rows)).repeat(2).double()  # (2N,)
    keys, query_ids, key_ids = other_images(rows, gather_distributed)
    log_sum = partial(similarity_logsumexp, rows, keys, query_ids=query_ids, key_ids=key_ids)
    log_count = positive.new_full((), num_negatives).log()
    negatives = log_sum(scale=(1 + beta) * scale).double()  # (2N,)
    if beta > 0:
        negatives = negatives - log_sum(scale=beta * scale).double() + log_count
    if tau_plus > 0:
        negatives = _debias(negatives, positive, log_count, scale, tau_plus)
    return -mean(F.logsigmoid(positive - negatives)).to(accumulator(rows.dtype))


def _debias(
    negatives: Tensor, positive: Tensor, log_count: Tensor, scale: float | Tensor, tau_plus: float
) -> Tensor:
    """log G from log R and log P, (2N,) each.

    Where the difference is not above 0 the bound takes its place. There the logarithm is given a
    harmless argument: its gradient, unused, must not be NaN.
    """
    share = math.log(tau_plus) + log_count + positive - negatives  # log(tau_plus n P / R)
    left = share < 0
    remainder = -torch.expm1(share.where(left, -1.0))  # 1 - tau_plus n P / R
    debiased = negatives + remainder.log() - math.log1p(-tau_plus)
    least = log_count - scale
    return debiased.where(left & (debiased >= least), least)


def _hard_negative_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    gather_distributed: bool = False,
) -> Tensor:
    """The formulas as they are usually written, every logit stored. Oracle and baseline.

    Powers are taken relative to the largest of a row, which cancels in the quotient.
    """
    rows = F.normalize(torch.cat((embeddings0, embeddings1)))  # (2N, D)
    keys = all_gather_rows(rows) if gather_distributed else rows  # (W 2N, D)
    logits = rows @ keys.T / temperature  # (2N, W 2N)
    index = torch.arange(len(rows), device=rows.device)
    start = rank() * len(rows) if gather_distributed else 0
    partner = start + index.roll(len(embeddings0))
    positive = logits[index, partner]  # (2N,)
    own = torch.zeros_like(logits, dtype=torch.bool)
    own[index, start + index] = True
    own[index, partner] = True
    logits = logits.masked_fill(own, -torch.inf)
    largest = torch.maximum(logits.amax(1), positive).detach()  # (2N,)
    powers = (logits - largest[:, None]).exp()  # (2N, W 2N)
    positive_power = (positive - largest).exp()  # (2N,)
    count = len(keys) - 2
    weights = (beta * logits.masked_fill(own, 0)).masked_fill(own, -torch.inf).softmax(1)
    reweighted = count * (weights * powers).sum(1)  # (2N,)
    sums = (reweighted - tau_plus * count * positive_power) / (1 - tau_plus)  # (2N,)
    least = count * (-1 / temperature - largest).exp()  # (2N,)
    return ((positive_power + torch.maximum(sums, least)).log() + largest - positive).mean()


SPEC = register_loss(
    Loss(
        name="HardNegativeLoss",
        family="contrastive",
        module=HardNegativeLoss,
        functional=hard_negative_loss,
        eager=_hard_negative_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="Robinson et al. 2021, arXiv:2010.04592, section 3",
        samples=(
            sample_views("two_pairs", "tiny", 2, 3),
            sample_views("one_feature", "tiny", 5, 1, temperature=1.0),
            sample_views("ragged", "ragged", 67, 33, temperature=0.4),
            sample_views("debiased", "ragged", 19, 130, beta=0.0, tau_plus=0.05),
            sample_views("hard_only", "ragged", 31, 7, beta=2.5, tau_plus=0.0),
            sample_views(
                "gathered", "ragged", 20, 11, temperature=torch.tensor(0.5), gather_distributed=True
            ),
            sample_views("batch", "typical", 512, 128, noise=1.5),
            sample_views("cold", "extreme", 65, 64, noise=1.5, temperature=0.01),
            sample_views("wide", "extreme", 24, 2048, noise=1.5, tau_plus=0.01),
            sample_views("at_the_bound", "extreme", 33, 64, noise=0.1, temperature=0.2),
            sample_views("hardest", "extreme", 64, 48, magnitude=100.0, temperature=1.0, beta=5.0),
        ),
        amplification=largest_logit,
    )
)
