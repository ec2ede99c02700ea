"""Decoupled contrastive learning (Yeh et al. 2022, section 3, equation 6).

For 2N rows z, two views of N images, with s_ij = <z_i, z_j> / (|z_i| |z_j|), p(i) the other view
of the image of row i and w_i a weight,

    loss = 1/(2N) sum_i ( -w_i s_ip(i) / temperature
                          + log sum_{j not in {i, p(i)}} exp(s_ij / temperature) )

The positive is not in the denominator, so its gradient does not fade where it already wins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.checks import check_distributed, check_temperature, check_views
from sslfast._core.numerics import accumulator, inverse, mean, round_like_tiles
from sslfast._registry import Loss, register_loss
from sslfast.distributed import all_gather_rows, rank
from sslfast.losses.contrastive._pairs import (
    count_negatives,
    other_images,
    positive_similarity,
    sample_views,
)
from sslfast.losses.contrastive._rows import largest_logit
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.similarity.logsumexp import similarity_logsumexp

WeightFunction = Callable[[Tensor, Tensor], Tensor | float]


def dcl_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    weight_fn: WeightFunction | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """Decoupled contrastive loss, the similarities never stored (Yeh et al. 2022, equation 6).

    Args:
        embeddings0: (N, D) embeddings of the first view, N > 1, normalised here; float16,
            bfloat16, float32 or float64; two dtypes promote to the wider.
        embeddings1: (N, D) embeddings of the second view; row i is the positive of row i.
        temperature: divides the cosine similarities; a one-element tensor may be learnable.
        weight_fn: gives the weights (N,) of the positives from the unit rows (N, D) of a view
            and of the other one; called for both orders. A number or one element serves all
            rows. Gradients flow into it. ``None``: weights 1.
        gather_distributed: the other ranks' rows are negatives too (the same N on every rank).
            Each rank returns the mean over its own 2N rows; the mean over ranks is the loss of
            the global batch, and averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient. `weight_fn` sees the
            rank's own rows, as in lightly.

    Returns:
        0-dim loss, the mean over rows, in float32 (float64 for float64 embeddings). It may be
        negative.

    Raises:
        TypeError: an argument is not a floating tensor, `temperature` is not a number, or
            `weight_fn` is not callable or returns neither a tensor nor a number.
        ValueError: shapes or devices differ, a matrix is empty, `temperature` is not finite or
            below 1e-8, the weights do not have shape (N,), or there is one image only.

    Differs from lightly: float32 for half-precision embeddings; one image without negatives
    raises, where the formula's log 0 gives -inf. Differs from raminnakhli's code: both directions
    are averaged (there one), rows are normalised, and the weights of DCLW have the factor N.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    count_negatives("embeddings0", embeddings0, gather_distributed)
    check_temperature(temperature, embeddings0.device)
    _check_weight_function(weight_fn)
    return _decoupled_loss(embeddings0, embeddings1, temperature, weight_fn, gather_distributed)


class DCLLoss(nn.Module):
    """Decoupled contrastive loss, a drop-in for `lightly.loss.DCLLoss` 1.5 (Yeh et al. 2022).

    Args:
        temperature: divides the cosine similarities; a float, or a one-element tensor or
            parameter to learn it.
        weight_fn: weights of the positives, see `sslfast.functional.dcl_loss`.
        gather_distributed: the negatives are those of all ranks.

    Raises:
        TypeError: `temperature` is not a number or floating tensor, `weight_fn` not callable.
        ValueError: `temperature` not finite or below 1e-8, or `gather_distributed` with a torch
            that has no `torch.distributed`.

    Differs from lightly: see `sslfast.functional.dcl_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: WeightFunction | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        _check_weight_function(weight_fn)
        check_distributed(gather_distributed)
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the 0-dim loss of two views (N, D), N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.dcl_loss`.
        """
        check_views(out0=out0, out1=out1)
        count_negatives("out0", out0, self.gather_distributed)
        check_temperature(self.temperature, out0.device)
        _check_weight_function(self.weight_fn)
        return _decoupled_loss(
            out0, out1, self.temperature, self.weight_fn, self.gather_distributed
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"


def _check_weight_function(weight_fn: WeightFunction | None) -> None:
    if weight_fn is not None and not callable(weight_fn):
        raise TypeError(f"weight_fn must be callable or None, got {type(weight_fn).__name__}")


def _decoupled_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    temperature: float | Tensor,
    weight_fn: WeightFunction | None,
    gather_distributed: bool,
) -> Tensor:
    """Equation 6: both views are queries, the rows of other images their keys."""
    unit = l2_normalize(torch.cat((embeddings0, embeddings1)))  # (2N, D)
    rows = round_like_tiles(unit)  # (2N, D)
    scale = inverse(temperature, rows)
    # First, so that its gradient is formed last, when the kernel's memory is free again.
    positive = scale * positive_similarity(rows)  # (N,)
    keys, query_ids, key_ids = other_images(rows, gather_distributed)
    lse = similarity_logsumexp(rows, keys, scale=scale, query_ids=query_ids, key_ids=key_ids)
    if weight_fn is not None:
        positive = positive * _weights(weight_fn, *unit.view(2, len(positive), -1).unbind())
    return mean(lse.view(2, -1) - positive)


def _weights(weight_fn: WeightFunction, first: Tensor, second: Tensor) -> Tensor:
    """(2, N) weights of the positives of both views."""
    shape = first.shape[:1]
    weights: list[Tensor] = []
    for pair in ((first, second), (second, first)):
        weight = weight_fn(*pair)
        if not isinstance(weight, (int, float, Tensor)):
            raise TypeError(
                f"weight_fn must return a tensor or a number, got {type(weight).__name__}"
            )
        weight = torch.as_tensor(weight, device=first.device)
        if weight.numel() != 1 and weight.shape != shape:
            raise ValueError(
                f"weight_fn must return weights of shape (N,) = {tuple(shape)}, "
                f"got shape {tuple(weight.shape)}"
            )
        weights.append(weight.reshape(-1).to(accumulator(first.dtype)).expand(shape))
    return torch.stack(weights)


def _dcl_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    weight_fn: WeightFunction | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """Equation 6 as it is usually written: every logit stored. Oracle and baseline."""
    rows0, rows1 = F.normalize(embeddings0), F.normalize(embeddings1)  # (N, D)
    all0 = all_gather_rows(rows0) if gather_distributed else rows0  # (W N, D)
    all1 = all_gather_rows(rows1) if gather_distributed else rows1  # (W N, D)
    start = rank() * len(rows0) if gather_distributed else 0
    index = torch.arange(len(rows0), device=rows0.device)
    own = torch.zeros(len(rows0), len(all0), dtype=torch.bool, device=rows0.device)
    own[index, start + index] = True  # (N, W N)
    directions = []
    for first, second, keys in ((rows0, rows1, (all0, all1)), (rows1, rows0, (all1, all0))):
        logits = first @ torch.cat(keys).T / temperature  # (N, 2 W N)
        lse = logits.masked_fill(own.repeat(1, 2), -torch.inf).logsumexp(1)  # (N,)
        positive = (first * second).sum(1) / temperature  # (N,)
        weight = 1.0 if weight_fn is None else weight_fn(first, second)
        directions.append((lse - weight * positive).mean())
    return (directions[0] + directions[1]) / 2


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Weights with a gradient: positives far apart count more."""
    return (first - second).square().sum(1)


SPEC = register_loss(
    Loss(
        name="DCLLoss",
        family="contrastive",
        module=DCLLoss,
        functional=dcl_loss,
        eager=_dcl_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="Yeh et al. 2022, arXiv:2110.06848, section 3, equation 6",
        samples=(
            sample_views("two_pairs", "tiny", 2, 3),
            sample_views("one_feature", "tiny", 5, 1, temperature=1.0),
            sample_views("ragged", "ragged", 67, 33, temperature=0.2),
            sample_views("weighted", "ragged", 19, 130, weight_fn=_squared_distance),
            sample_views(
                "gathered",
                "ragged",
                20,
                11,
                temperature=torch.tensor(0.25),
                weight_fn=_squared_distance,
                gather_distributed=True,
            ),
            sample_views("batch", "typical", 512, 128, temperature=0.1),
            sample_views("cold", "extreme", 65, 64, noise=1.5, temperature=0.01),
            sample_views("wide", "extreme", 24, 2048, noise=1.5, temperature=0.05),
            sample_views("same_view", "extreme", 33, 16, noise=0.0, temperature=0.05),
            sample_views("unnormalised", "extreme", 64, 48, magnitude=100.0, temperature=1.0),
        ),
        amplification=largest_logit,
    )
)
