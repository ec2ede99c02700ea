r"""Supervised contrastive learning (Khosla et al. 2020, section 3.2, equation 2, L_out).

For the rows z of V views of B samples, normalised by the caller, with s_ij = <z_i, z_j> / t, the
other rows A(i) and the positives P(i), which are the rows of A(i) with the label of row i,

    term_i = log sum_{a in A(i)} exp(s_ia) - 1/|P(i)| sum_{p in P(i)} s_ip
    loss   = temperature / base_temperature * mean_i term_i

The mean over positives is <z_i, sum of the positives> / (t |P(i)|), one sum a class: O(B V D).
Where a row has one positive, the term falls to 0 as they meet and the difference would keep no
digit of it: there the positive is left out of the sum and the term is -log sigmoid(s_ip - lse_i).
With two or more positives no term is below log 2, and nothing cancels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import (
    check_choice,
    check_device,
    check_distributed,
    check_floating,
    check_ids,
    check_number,
    check_temperature,
)
from sslfast._core.numerics import factor, inverse, mean, round_like_tiles, row_dot
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, rank, world_size
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._positives import Positives, by_mask, same_label, same_sample
from sslfast.losses.contrastive._rows import largest_logit
from sslfast.ops.similarity.logsumexp import similarity_logsumexp

MODES = ("all", "one")


def supcon_loss(
    features: Tensor,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    contrast_mode: str = "all",
    base_temperature: float = 0.07,
    only_with_positives: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    """SupCon with the similarities never stored (Khosla et al. 2020, section 3.2, equation 2).

    Args:
        features: (B, V, ...) rows of V views of B samples, normalised by the caller; dimensions
            after the second are flattened to D; float16, bfloat16, float32 or float64.
        labels: (B,) or (B, 1) integers; rows with the label of an anchor are its positives.
        mask: (B, B) bool or numbers, at least 0: row i weighs the samples that are positives of
            the views of sample i; need not be symmetric. Gets no gradient. Its product with the
            features takes O(B^2 D). Without labels and mask the positives are the other views of
            the same sample (SimCLR).
        temperature: divides the similarities; a one-element tensor may be learnable.
        contrast_mode: ``"all"`` views are anchors, or ``"one"``: the first view of each sample.
        base_temperature: the loss is multiplied by temperature / base_temperature.
        only_with_positives: average over the anchors that have a positive, instead of all; 0
            where there is none.
        gather_distributed: the other ranks' rows are contrast rows, and positives by their
            labels, too (the same B on every rank; not with `mask`). The mean of the ranks'
            losses is the loss of the global batch, and averaging parameter gradients over ranks,
            as `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss in float32 (float64 for float64 features). An anchor without a positive has
        the term 0.

    Raises:
        TypeError: `features` or `temperature` is not of a floating kind, `labels` are not
            integers, `base_temperature` is not a number.
        ValueError: shapes or devices do not match, `features` are empty, labels and mask come
            together, there is one view and neither, `mask` has a negative entry, a temperature is
            out of range, `contrast_mode` is unknown, or `mask` comes with `gather_distributed`.

    Differs from HobbitLong's SupContrast: an anchor without a positive is 0 there since its
    pull request 142 (before: NaN) and there is no epsilon inside the logarithm; one view without
    labels raises. `only_with_positives` is the mean of pytorch-metric-learning. With a mask that
    is not symmetric, a lone positive that does not choose its anchor in turn keeps an absolute
    rounding of about eps / temperature; every other term is held to the error rule.
    """
    _check(features, labels, mask, contrast_mode, gather_distributed)
    check_temperature(temperature, features.device)
    check_number("base_temperature", base_temperature, above=0)
    rows = round_like_tiles(features.flatten(2))  # (B, V, D)
    anchors = rows if contrast_mode == "all" else rows[:, :1]  # (B, A, D)
    first = 0
    if gather_distributed and world_size() > 1:
        first = rank() * len(anchors)
        rows = all_gather_rows(rows)  # (W B, V, D)
        labels = None if labels is None else all_gather_rows(labels)
    if mask is not None:
        positives = by_mask(rows, anchors, mask)
    elif labels is not None:
        positives = same_label(rows, anchors, first, labels.reshape(-1))
    else:
        positives = same_sample(rows, anchors, first)
    symmetric = anchors.shape == rows.shape
    terms = _terms(
        anchors.flatten(0, 1), None if symmetric else rows.flatten(0, 1), positives, temperature
    )
    share = _share_with_positives(positives, gather_distributed) if only_with_positives else 1
    return factor(temperature, rows) / base_temperature * mean(terms) / share


class SupConLoss(Objective):
    """SupCon, a drop-in for HobbitLong's `SupConLoss` (Khosla et al. 2020, equation 2).

    Args:
        temperature: divides the similarities; a float, or a one-element tensor or parameter to
            learn it.
        contrast_mode: ``"all"`` views are anchors, or ``"one"``: the first view of each sample.
        base_temperature: the loss is multiplied by temperature / base_temperature.
        only_with_positives: average over the anchors that have a positive, instead of all.
        gather_distributed: contrast with the rows of all ranks, see
            `sslfast.functional.supcon_loss`.

    Raises:
        TypeError: `temperature` is not a number or floating tensor, or `base_temperature` not a
            number.
        ValueError: a temperature is out of range, `contrast_mode` is unknown, or
            `gather_distributed` with a torch that has no `torch.distributed`.

    As there, the caller normalises the features. Differs from it: float32 for half precision;
    one view without labels or mask raises, where no anchor would have a positive.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        only_with_positives: bool = False,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("contrast_mode", contrast_mode, MODES)
        check_number("base_temperature", base_temperature, above=0)
        check_distributed(gather_distributed)
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature
        self.only_with_positives = only_with_positives
        self.gather_distributed = gather_distributed

    def forward(
        self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the 0-dim loss.

        Args:
            features: (B, V, ...) rows of V views of B samples, normalised by the caller.
            labels: (B,) or (B, 1) integers.
            mask: (B, B), which samples are positives of a sample; instead of labels.

        Raises:
            TypeError, ValueError: as `sslfast.functional.supcon_loss`.
        """
        return supcon_loss(
            features,
            labels,
            mask,
            temperature=self.temperature,
            contrast_mode=self.contrast_mode,
            base_temperature=self.base_temperature,
            only_with_positives=self.only_with_positives,
            gather_distributed=self.gather_distributed,
        )


def _terms(
    anchors: Tensor, contrasts: Tensor | None, positives: Positives, temperature: float | Tensor
) -> Tensor:
    """(N,) terms of the anchors; contrasts ``None``: the anchors are all the rows there are."""
    scale = inverse(temperature, anchors)
    # First, so that its gradient is formed last, when the kernel's memory is free again.
    some = positives.weights > 0
    nearness = row_dot(anchors, positives.sums) / positives.weights.where(some, 1)  # (N,)
    lse = similarity_logsumexp(
        anchors,
        contrasts,
        scale=scale,
        query_ids=positives.anchor_ids,
        key_ids=None if contrasts is None else positives.contrast_ids,
    )  # (N,)
    margin = lse - scale * nearness
    return torch.where(positives.lone, -F.logsigmoid(-margin), margin).where(some, 0)


def _share_with_positives(positives: Positives, gather_distributed: bool) -> Tensor:
    """Share of the anchors that have a positive; 1 where none has: their terms are 0 anyway."""
    some = (positives.weights > 0).to(positives.weights.dtype).reshape(1, -1)  # (1, N)
    if gather_distributed:
        some = all_gather_rows(some)  # (W, N)
    share = mean(some)
    return share.where(share > 0, 1)


def _check(
    features: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    contrast_mode: str,
    gather_distributed: bool,
) -> None:
    check_floating("features", features)
    if features.ndim < 3 or features.numel() == 0:
        raise ValueError(
            "features must have shape (B, V, ...) with at least one sample, view and feature, "
            f"got shape {tuple(features.shape)}"
        )
    check_choice("contrast_mode", contrast_mode, MODES)
    if labels is not None and mask is not None:
        raise ValueError(
            f"labels must be None when a mask is given, got shape {tuple(labels.shape)}"
        )
    if labels is not None:
        column = isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == 1
        check_ids("labels", labels[:, 0] if column else labels, "(B,)", len(features))
        check_device("labels", labels, "features", features)
    elif mask is not None:
        _check_mask(mask, features, gather_distributed)
    elif features.shape[1] < 2:
        raise ValueError(
            "features must have at least two views without labels or mask, "
            f"got shape {tuple(features.shape)}: no row would have a positive"
        )


def _check_mask(mask: Tensor, features: Tensor, gather_distributed: bool) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.is_complex():
        raise TypeError(f"mask must be bool or real, got {mask.dtype}")
    if mask.shape != (len(features), len(features)):
        raise ValueError(
            f"mask must have shape (B, B) = ({len(features)}, {len(features)}), "
            f"got shape {tuple(mask.shape)}"
        )
    check_device("mask", mask, "features", features)
    if gather_distributed:
        raise ValueError(
            "mask must be None with gather_distributed: it does not know the other ranks' "
            f"samples; give labels, got shape {tuple(mask.shape)}"
        )
    on_host = mask.device.type == "cpu" or os.environ.get("SSLFAST_CHECK") == "1"
    if on_host and not torch.compiler.is_compiling() and not (mask >= 0).all():
        raise ValueError(f"mask must be at least 0 everywhere, got {mask.min().item()}")


def _supcon_eager(
    features: Tensor,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    contrast_mode: str = "all",
    base_temperature: float = 0.07,
    only_with_positives: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    """Equation 2 as it is usually written: every logit stored. Oracle and baseline."""
    rows = features.flatten(2)  # (B, V, D)
    num_samples, num_views, _ = rows.shape
    num_anchors = num_views if contrast_mode == "all" else 1
    start, samples = 0, torch.arange(num_samples, device=rows.device)
    if gather_distributed:
        start = rank() * num_samples
        samples = torch.arange(world_size() * num_samples, device=rows.device)
        labels = None if labels is None else all_gather_rows(labels)
    contrasts = all_gather_rows(rows) if gather_distributed else rows
    names = samples if labels is None else labels.reshape(-1)  # (W B,)
    own = slice(start, start + num_samples)
    chosen = names[own, None] == names if mask is None else mask  # (B, W B)
    chosen = chosen.to(rows.dtype).repeat_interleave(num_anchors, 0)
    chosen = chosen.repeat_interleave(num_views, 1)  # (B A, W B V)
    itself = torch.arange(len(samples) * num_views, device=rows.device).view(-1, num_views)
    itself = itself[own, :num_anchors].reshape(-1, 1)  # (B A, 1)
    chosen = chosen.scatter(1, itself, 0)
    logits = rows[:, :num_anchors].flatten(0, 1) @ contrasts.flatten(0, 1).T / temperature
    logits = logits.scatter(1, itself, -torch.inf)
    log_prob = logits.log_softmax(1).masked_fill(chosen == 0, 0)
    count = chosen.sum(1)
    terms = -(chosen * log_prob).sum(1) / count.where(count > 0, 1)  # (B A,)
    some = (count > 0).to(terms.dtype).mean().reshape(1)
    share = all_gather_rows(some).mean() if gather_distributed else some.squeeze()
    scale = temperature / base_temperature
    return scale * terms.mean() / (share.where(share > 0, 1) if only_with_positives else 1)


def _samples_of(
    name: str,
    size: Size,
    num_samples: int,
    num_views: int,
    dim: int,
    *,
    classes: int = 0,
    masked: bool = False,
    noise: float = 1.0,
    temperature: float | Tensor = 0.07,
    **options: Any,
) -> Sample:
    """Unit rows of noisy views; labels of so many classes, or a random mask, where asked for."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        labels = torch.randint(max(classes, 1), (num_samples,), generator=generator)
        content = normal(classes, dim)[labels] if classes else normal(num_samples, dim)
        views = content.unsqueeze(1) + noise * normal(num_samples, num_views, dim)
        sample: dict[str, Any] = {"features": F.normalize(views, dim=-1)}
        if classes:
            sample["labels"] = labels
        if masked:
            sample["mask"] = torch.rand(num_samples, num_samples, generator=generator) < 0.1
        return {**sample, "temperature": temperature, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="SupConLoss",
        family="contrastive",
        module=SupConLoss,
        functional=supcon_loss,
        eager=_supcon_eager,
        primitives=("similarity_logsumexp",),
        paper="Khosla et al. 2020, arXiv:2004.11362, section 3.2, equation 2",
        samples=(
            _samples_of("one_row", "tiny", 1, 1, 4, classes=1),
            _samples_of("one_pair", "tiny", 1, 2, 3),
            _samples_of("one_feature", "tiny", 3, 2, 1, temperature=1.0),
            _samples_of("three_rows", "tiny", 3, 1, 5, classes=2, temperature=0.5),
            _samples_of("ragged", "ragged", 67, 1, 33, classes=9),
            _samples_of("ragged_views", "ragged", 23, 3, 70, classes=5, contrast_mode="one"),
            _samples_of("ragged_mask", "ragged", 29, 2, 17, masked=True),
            _samples_of("ragged_simclr", "ragged", 31, 2, 19),
            _samples_of("rare_classes", "ragged", 41, 1, 24, classes=60, only_with_positives=True),
            _samples_of(
                "gathered",
                "ragged",
                20,
                2,
                11,
                classes=13,
                temperature=torch.tensor(0.2, dtype=torch.float64),
                gather_distributed=True,
            ),
            _samples_of(
                "gathered_rare",
                "ragged",
                16,
                1,
                9,
                classes=18,
                temperature=0.2,
                only_with_positives=True,
                gather_distributed=True,
            ),
            _samples_of("gathered_simclr", "ragged", 8, 2, 9, gather_distributed=True),
            _samples_of("cifar10", "typical", 256, 2, 128, classes=10, temperature=0.1),
            _samples_of("imagenet", "typical", 512, 2, 128, classes=1000),
            _samples_of("cold", "extreme", 33, 2, 64, classes=7, temperature=0.01),
            _samples_of("cold_pairs", "extreme", 33, 2, 64, temperature=0.01, noise=1.5),
            _samples_of("cold_rare", "extreme", 40, 1, 50, classes=60, temperature=0.01, noise=0.2),
            _samples_of("tight_classes", "extreme", 30, 2, 50, classes=6, noise=0.2),
            _samples_of(
                "cold_tight_classes", "extreme", 30, 2, 50, classes=6, noise=0.1, temperature=0.01
            ),
            _samples_of("cold_mask", "extreme", 25, 1, 31, masked=True, temperature=0.01),
            _samples_of("wide", "extreme", 13, 2, 2048, classes=4, temperature=1.0),
            _samples_of("same_view", "extreme", 17, 2, 16, temperature=0.05, noise=0.0),
        ),
        amplification=largest_logit,
    )
)
