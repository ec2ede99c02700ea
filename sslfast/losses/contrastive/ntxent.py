"""NT-Xent (Chen et al. 2020, section 2.1, equation 1).

For 2N rows z, two views of N images, with s_ij = <z_i, z_j> / (|z_i| |z_j|) and p(i) the other
view of the image of row i,

    loss = -1/(2N) sum_i log( exp(s_ip(i) / temperature) / sum_{j != i} exp(s_ij / temperature) )
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import (
    MIN_TEMPERATURE,
    check_device,
    check_distributed,
    check_rows,
    check_temperature,
    check_views,
)
from sslfast._core.numerics import inverse, mean, round_like_tiles
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, rank
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._pairs import other_images, positive_similarity
from sslfast.losses.contrastive._rows import largest_logit, one_sided_loss
from sslfast.losses.memory_bank import MemoryBankModule
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.similarity.logsumexp import similarity_logsumexp


def ntxent_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    negatives: Tensor | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """NT-Xent of two views, with the similarities never stored (Chen et al. 2020, section 2.1).

    Args:
        embeddings0: (N, D) embeddings of the first view, normalised here; float16, bfloat16,
            float32 or float64; two dtypes promote to the wider.
        embeddings1: (N, D) embeddings of the second view; row i is the positive of row i.
        temperature: divides the cosine similarities; a one-element tensor may be learnable.
        negatives: (K, D) rows that replace the other images of the batch as negatives, taken as
            they are: unit rows, as a queue of normalised embeddings holds. The loss is then
            one-sided (He et al. 2020, equation 1): only rows of `embeddings0` are queries, each
            against its positive and the K negatives.
        gather_distributed: the other ranks' rows are negatives too (the same N on every rank).
            Each rank returns the mean over its own 2N rows; the mean over ranks is the loss of
            the global batch, and averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss, the mean over rows, in float32 (float64 for float64 embeddings). One pair
        alone has no negative: its loss is 0.

    Raises:
        TypeError: an argument is not a floating tensor, or `temperature` is not a number.
        ValueError: shapes or devices differ, a matrix is empty, `temperature` is not finite or
            below 1e-8, or `negatives` come together with `gather_distributed`.

    Differs from others: lightly returns half precision for half embeddings (a float16 loss
    overflows under gradient scaling); the reference TensorFlow code adds the two directions, so
    its value is twice this one. Under autocast the similarities are taken from rows rounded to
    the autocast dtype, as a matrix product would.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    check_temperature(temperature, embeddings0.device)
    if negatives is None:
        return _loss_within_batch(embeddings0, embeddings1, temperature, gather_distributed)
    if gather_distributed:
        raise ValueError(
            "gather_distributed must be False when negatives are given: they replace the "
            "negatives that would be gathered"
        )
    check_rows("negatives", negatives, "(K, D)")
    check_device("negatives", negatives, "embeddings0", embeddings0)
    if negatives.shape[1] != embeddings0.shape[1]:
        raise ValueError(
            f"negatives must have the {embeddings0.shape[1]} features of embeddings0, "
            f"got shape {tuple(negatives.shape)}"
        )
    queries, positives = l2_normalize(embeddings0), l2_normalize(embeddings1)
    return one_sided_loss(queries, positives, negatives, temperature)


class NTXentLoss(Objective):
    """NT-Xent, a drop-in for `lightly.loss.NTXentLoss` 1.5 (Chen et al. 2020, section 2.1).

    Args:
        temperature: divides the cosine similarities; a float, or a one-element tensor or
            parameter to learn it.
        memory_bank_size: (K, D) of the bank of negatives for the one-sided loss of MoCo (He et
            al. 2020); 0 for SimCLR. K alone takes D from the first batch, with a `UserWarning`,
            as lightly 1.5 does (1.6 refuses it).
        gather_distributed: without a bank, the negatives are those of all ranks, see
            `sslfast.functional.ntxent_loss`; with one, the bank takes in the embeddings of all
            ranks.

    Raises:
        TypeError: `temperature` is not a number or floating tensor.
        ValueError: `temperature` not finite or below 1e-8, a negative `memory_bank_size`, or
            `gather_distributed` with a torch that has no `torch.distributed`.

    Differs from lightly: the loss is float32 for half-precision inputs; a negative temperature
    is refused; a loss near 0 keeps its digits.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.memory_bank = MemoryBankModule(
            memory_bank_size, gather_distributed=gather_distributed, feature_dim_first=False
        )
        check_temperature(temperature)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.eps = MIN_TEMPERATURE
        check_distributed(gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the 0-dim loss of two views.

        Args:
            out0: (N, D) embeddings of the first view; the queries where there is a bank.
            out1: (N, D) embeddings of the second view. With a bank they enter it, normalised,
                after it was read, and only if `out0` requires a gradient, so that evaluation
                leaves the bank as it is.

        Raises:
            TypeError, ValueError: as `sslfast.functional.ntxent_loss`; or D is not the bank's.
        """
        check_views(out0=out0, out1=out1)
        check_temperature(self.temperature, out0.device)
        if self.memory_bank.size[0] == 0:
            return _loss_within_batch(out0, out1, self.temperature, self.gather_distributed)
        queries, positives = l2_normalize(out0), l2_normalize(out1)
        _, negatives = self.memory_bank(positives, update=out0.requires_grad)
        negatives = negatives.to(out0.device)
        return one_sided_loss(queries, positives, negatives, self.temperature)


def _loss_within_batch(
    embeddings0: Tensor,
    embeddings1: Tensor,
    temperature: float | Tensor,
    gather_distributed: bool,
) -> Tensor:
    """Equation 1: both views are queries and keys, on this rank or on all."""
    rows = round_like_tiles(l2_normalize(torch.cat((embeddings0, embeddings1))))  # (2N, D)
    scale = inverse(temperature, rows)
    # First, so that its gradient is formed last, when the kernel's memory is free again.
    positive = scale * positive_similarity(rows)  # (N,)
    keys, query_ids, key_ids = other_images(rows, gather_distributed)
    lse = similarity_logsumexp(rows, keys, scale=scale, query_ids=query_ids, key_ids=key_ids)
    return -mean(F.logsigmoid(positive - lse.view(2, -1)))


def _ntxent_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    negatives: Tensor | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """Equation 1 as it is usually written: every logit stored. Oracle and baseline."""
    if negatives is not None:
        queries, positives = F.normalize(embeddings0), F.normalize(embeddings1)
        positive = (queries * positives).sum(-1, keepdim=True)  # (N, 1)
        logits = torch.cat((positive, queries @ negatives.T), dim=1) / temperature  # (N, 1 + K)
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, first)
    rows = F.normalize(torch.cat((embeddings0, embeddings1)))  # (2N, D)
    keys = all_gather_rows(rows) if gather_distributed else rows
    logits = rows @ keys.T / temperature  # (2N, W 2N)
    index = torch.arange(len(rows), device=rows.device)
    start = rank() * len(rows) if gather_distributed else 0
    logits[index, start + index] = -torch.inf
    return F.cross_entropy(logits, start + index.roll(len(embeddings0)))


def _views(
    name: str,
    size: Size,
    num_images: int,
    dim: int,
    *,
    temperature: float = 0.5,
    num_negatives: int = 0,
    noise: float = 0.5,
    magnitude: float = 1.0,
    gather: bool = False,
) -> Sample:
    """Two noisy views of random embeddings; unit negatives where asked for."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=generator, dtype=torch.float64)

        images = normal(num_images)
        sample: dict[str, Any] = {
            "embeddings0": magnitude * (images + noise * normal(num_images)),
            "embeddings1": magnitude * (images + noise * normal(num_images)),
            "temperature": temperature,
        }
        if gather:
            sample["gather_distributed"] = True
        if num_negatives:
            sample["negatives"] = F.normalize(normal(num_negatives))
        return sample

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="NTXentLoss",
        family="contrastive",
        module=NTXentLoss,
        functional=ntxent_loss,
        eager=_ntxent_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="Chen et al. 2020, arXiv:2002.05709, section 2.1, equation 1",
        samples=(
            _views("one_pair", "tiny", 1, 8),
            _views("two_pairs", "tiny", 2, 3),
            _views("one_negative", "tiny", 2, 2, num_negatives=1),
            _views("ragged", "ragged", 67, 33, temperature=0.2),
            _views(
                "ragged_queue", "ragged", 19, 130, temperature=0.07, noise=1.5, num_negatives=301
            ),
            _views("gathered", "ragged", 20, 11, temperature=0.2, gather=True),
            _views("small_batch", "typical", 256, 128, temperature=0.5),
            _views("batch", "typical", 1024, 128, temperature=0.1),
            _views("queue", "typical", 256, 128, temperature=0.2, num_negatives=4096),
            _views("cold", "extreme", 65, 64, temperature=0.005, noise=1.5),
            _views("coldest", "extreme", 40, 1000, temperature=0.001, noise=4.0),
            _views("same_view", "extreme", 33, 16, temperature=0.05, noise=0.0),
            _views("unnormalised", "extreme", 64, 48, temperature=0.05, noise=1.0, magnitude=100.0),
        ),
        constants=("negatives",),
        amplification=largest_logit,
    )
)
