"""InfoNCE (van den Oord et al. 2018, equation 4): which of many keys belongs to the query?

For N queries q with positive keys k, and the keys n_j that are not a query's positive,

    loss = -1/N sum_i log( exp(<q_i, k_i> / t) / (exp(<q_i, k_i> / t) + sum_j exp(<q_i, n_j> / t)) )

The negatives are a queue (MoCo v1 and v2) or the other keys of the batch (CPC, MoCo v3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import (
    check_device,
    check_distributed,
    check_rows,
    check_temperature,
    check_views,
)
from sslfast._core.numerics import inverse, tile_operands
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, rank
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._rows import largest_logit, one_sided_loss, paired_loss
from sslfast.losses.memory_bank import MemoryBankModule
from sslfast.ops.rows.l2_normalize import l2_normalize


def infonce_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    negatives: Tensor | None = None,
    normalize: bool = True,
    symmetric: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    """InfoNCE with the similarities never stored (van den Oord et al. 2018, equation 4).

    Args:
        queries: (N, D) rows; float16, bfloat16, float32 or float64; two dtypes promote to the
            wider.
        keys: (N, D) rows; key i is the positive of query i. Keys that need no gradient (a
            momentum encoder's) are passed detached, and cost none.
        temperature: divides the similarities; a one-element tensor may be learnable.
        negatives: (K, D) rows, a queue for instance, taken as they are; they replace the other
            keys of the batch. ``None``: key j is a negative of every query but query j.
        normalize: divide queries and keys by their norms; ``False`` where they are unit rows
            already, or where the product itself is the score (CPC's bilinear critic).
        symmetric: also take each key for a query among the queries, from the same pass, and
            average the two directions.
        gather_distributed: the other ranks' keys are negatives too (the same N on every rank).
            Each rank returns the mean over its own queries; the mean over ranks is the loss of
            the global batch, and averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient.

    How the methods map:

    - MoCo v1, v2 (He et al. 2020, algorithm 1): ``infonce_loss(q, k.detach(), temperature=0.07,
      negatives=queue)`` (0.2 in v2), or `InfoNCELoss` with a memory bank.
    - MoCo v3 (Chen et al. 2021, algorithm 1): ``2 * temperature * (infonce_loss(q1, k2) +
      infonce_loss(q2, k1))`` with detached keys and `gather_distributed`; the factor is not
      applied here.
    - CPC, in-batch InfoNCE: ``infonce_loss(q, k)``, with `symmetric` for two equal encoders.

    Returns:
        0-dim loss, the mean over queries, in float32 (float64 for float64 rows). A query without
        a negative has the loss 0.

    Raises:
        TypeError: an argument is not a floating tensor, or `temperature` is not a number.
        ValueError: shapes or devices differ, a matrix is empty, `temperature` is not finite or
            below 1e-8, or `negatives` come together with `symmetric` or `gather_distributed`.

    Differs from others: moco-v3 multiplies by 2 temperature, and gathers keys without gradient,
    as detached keys are here; solo-learn keeps its queue as (D, K).
    """
    check_views(queries=queries, keys=keys)
    check_temperature(temperature, queries.device)
    if negatives is not None:
        _check_negatives(negatives, queries, symmetric, gather_distributed)
    queries, keys = _normalized(queries, keys, normalize)
    if negatives is not None:
        return one_sided_loss(queries, keys, negatives, temperature)
    queries, keys = tile_operands(queries, keys)
    return paired_loss(
        queries,
        keys,
        inverse(temperature, queries),
        both_directions=symmetric,
        gather_distributed=gather_distributed,
    )


class InfoNCELoss(Objective):
    """InfoNCE of queries and keys, with an optional queue (van den Oord et al. 2018; MoCo).

    Args:
        temperature: divides the similarities; a float, or a one-element tensor or parameter to
            learn it. 0.1 is common; MoCo v1 has 0.07, v2 0.2, v3 0.2 for vision transformers.
        memory_bank_size: (K, D) of a queue of negatives (65536 in MoCo), see `MemoryBankModule`;
            0: the other keys of the batch are the negatives.
        normalize: divide queries and keys by their norms.
        symmetric: average both directions; not with a queue.
        gather_distributed: without a queue, the negatives are the keys of all ranks, see
            `sslfast.functional.infonce_loss`; with one, the keys of all ranks enter it.

    Raises:
        TypeError: `temperature` is not a number or floating tensor.
        ValueError: `temperature` not finite or below 1e-8, a negative `memory_bank_size`,
            `symmetric` with a queue, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from others: the queue is not saved with the state, as in lightly; MoCo's own code
    saves it. It drops what does not fit at its end, where MoCo demands that N divides K.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        memory_bank_size: int | Sequence[int] = 0,
        normalize: bool = True,
        symmetric: bool = False,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_distributed(gather_distributed)
        self.memory_bank = MemoryBankModule(
            memory_bank_size, gather_distributed=gather_distributed, feature_dim_first=False
        )
        if symmetric and self.memory_bank.size[0] > 0:
            raise ValueError(
                "symmetric must be False with a memory bank, got memory_bank_size="
                f"{memory_bank_size}: its rows are keys alone"
            )
        self.temperature = temperature
        self.normalize = normalize
        self.symmetric = symmetric
        self.gather_distributed = gather_distributed

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the 0-dim loss of queries and their positive keys.

        Args:
            queries: (N, D) rows.
            keys: (N, D) rows. With a queue they enter it, as the loss sees them, after it was
                read, and only if `queries` requires a gradient, so that evaluation leaves the
                queue as it is.

        Raises:
            TypeError, ValueError: as `sslfast.functional.infonce_loss`; or D is not the queue's.
        """
        options: dict[str, Any] = {"temperature": self.temperature, "normalize": False}
        check_views(queries=queries, keys=keys)
        update = queries.requires_grad
        queries, keys = _normalized(queries, keys, self.normalize)
        if self.memory_bank.size[0] == 0:
            options |= {"symmetric": self.symmetric, "gather_distributed": self.gather_distributed}
            return infonce_loss(queries, keys, **options)
        check_temperature(self.temperature, queries.device)
        _, negatives = self.memory_bank(keys, update=update)
        return infonce_loss(queries, keys, negatives=negatives.to(queries.device), **options)


def _normalized(queries: Tensor, keys: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    return (l2_normalize(queries), l2_normalize(keys)) if normalize else (queries, keys)


def _check_negatives(
    negatives: Tensor, queries: Tensor, symmetric: bool, gather_distributed: bool
) -> None:
    check_rows("negatives", negatives, "(K, D)")
    check_device("negatives", negatives, "queries", queries)
    if negatives.shape[1] != queries.shape[1]:
        raise ValueError(
            f"negatives must have the {queries.shape[1]} features of queries, "
            f"got shape {tuple(negatives.shape)}"
        )
    for name, option in (("symmetric", symmetric), ("gather_distributed", gather_distributed)):
        if option:
            raise ValueError(
                f"{name} must be False when negatives are given, got True: they replace the "
                "other keys of the batch"
            )


def _infonce_eager(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    negatives: Tensor | None = None,
    normalize: bool = True,
    symmetric: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    """Equation 4 as it is usually written: every logit stored. Oracle and baseline."""
    if normalize:
        queries, keys = F.normalize(queries), F.normalize(keys)
    index = torch.arange(len(queries), device=queries.device)
    if negatives is not None:
        positive = (queries * keys).sum(-1, keepdim=True)  # (N, 1)
        logits = torch.cat((positive, queries @ negatives.T), dim=1) / temperature  # (N, 1 + K)
        return F.cross_entropy(logits, torch.zeros_like(index))
    start = rank() * len(queries) if gather_distributed else 0
    all_keys = all_gather_rows(keys) if gather_distributed else keys
    loss = F.cross_entropy(queries @ all_keys.T / temperature, start + index)
    if not symmetric:
        return loss
    all_queries = all_gather_rows(queries) if gather_distributed else queries
    return (loss + F.cross_entropy(keys @ all_queries.T / temperature, start + index)) / 2


def _pairs(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    *,
    temperature: float | Tensor = 0.1,
    num_negatives: int = 0,
    noise: float = 0.5,
    **options: bool,
) -> Sample:
    """Queries, their noisy keys, unit negatives and options where asked for."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=generator, dtype=torch.float64)

        images = normal(num_rows)
        views = (images + noise * normal(num_rows) for _ in range(2))
        if not options.get("normalize", True):
            views = (F.normalize(view) for view in views)
        sample = dict(zip(("queries", "keys"), views, strict=True))
        queue = {"negatives": F.normalize(normal(num_negatives))} if num_negatives else {}
        return {**sample, **queue, "temperature": temperature, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="InfoNCELoss",
        family="contrastive",
        module=InfoNCELoss,
        functional=infonce_loss,
        eager=_infonce_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="van den Oord et al. 2018, arXiv:1807.03748, equation 4",
        samples=(
            _pairs("one_pair", "tiny", 1, 5),
            _pairs("one_pair_one_negative", "tiny", 1, 3, num_negatives=1, temperature=1.0),
            _pairs("one_pair_symmetric", "tiny", 1, 1, symmetric=True),
            _pairs("three_pairs", "tiny", 3, 2, symmetric=True),
            _pairs("ragged", "ragged", 67, 33, temperature=0.07),
            _pairs("ragged_queue", "ragged", 19, 130, temperature=0.2, num_negatives=301),
            _pairs("ragged_symmetric", "ragged", 53, 71, normalize=False, symmetric=True),
            _pairs("one_feature", "ragged", 37, 1, temperature=1.0, normalize=False),
            _pairs("gathered", "ragged", 20, 11, gather_distributed=True),
            _pairs(
                "gathered_symmetric",
                "ragged",
                12,
                9,
                temperature=torch.tensor(0.2, dtype=torch.float64),
                symmetric=True,
                gather_distributed=True,
            ),
            _pairs("gathered_few", "ragged", 4, 5, symmetric=True, gather_distributed=True),
            _pairs("moco_v1", "typical", 256, 128, temperature=0.07, num_negatives=4096),
            _pairs("moco_v3", "typical", 512, 256, temperature=0.2),
            _pairs("wide", "extreme", 23, 2048, temperature=1.0, symmetric=True),
            _pairs("cold", "extreme", 65, 64, temperature=0.01, noise=1.5),
            _pairs(
                "cold_symmetric", "extreme", 41, 70, temperature=0.01, noise=2.0, symmetric=True
            ),
            _pairs(
                "coldest_queue", "extreme", 40, 48, temperature=0.001, noise=2.0, num_negatives=77
            ),
            _pairs("same_view", "extreme", 33, 16, temperature=0.05, noise=0.0),
        ),
        constants=("negatives",),
        amplification=largest_logit,
    )
)
