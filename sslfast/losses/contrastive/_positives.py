"""Who is a positive of whom, without an N x N table: sums over classes, and exclusion by id."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.numerics import accumulator


class Positives(NamedTuple):
    """The positives of N anchors among M contrast rows."""

    sums: Tensor  # (N, D) weighted sum of an anchor's positives
    weights: Tensor  # (N,) sum of their weights; 0: it has none
    lone: Tensor  # (N,) bool: it has one, which the ids leave out of its sum too
    anchor_ids: Tensor  # (N,)
    contrast_ids: Tensor  # (M,); an anchor's own row always has its id


def same_sample(rows: Tensor, anchors: Tensor, first: int) -> Positives:
    """The other views of the sample are its positives.

    Args:
        rows: (B', V, D) contrast rows.
        anchors: (B, A, D), the first A views of the samples from `first` on.
    """
    num_samples, num_views, _ = rows.shape
    own = _wide(rows[first : first + len(anchors)])  # (B, V, D)
    samples = torch.arange(num_samples, device=rows.device)
    return _positives(
        sums=own.sum(1, keepdim=True) - anchors,
        weights=own.new_full((len(anchors),), num_views - 1),
        groups=samples,
        lone=torch.full_like(samples, num_views == 2, dtype=torch.bool),
        shape=(num_views, anchors.shape[1], first),
    )


def same_label(rows: Tensor, anchors: Tensor, first: int, labels: Tensor) -> Positives:
    """Every other row with the sample's label (B',) is a positive; O(B V D) by sums of classes."""
    num_views = rows.shape[1]
    own = slice(first, first + len(anchors))
    classes = dense_classes(labels)  # (B',)
    sizes = num_views * class_sizes(classes)[classes]  # (B',) rows of the class
    sums = class_sums(_wide(rows).sum(1), classes, classes[own])  # (B, D)
    return _positives(
        sums=sums.unsqueeze(1) - anchors,
        weights=(sizes[own] - 1).to(sums.dtype),
        groups=classes,
        lone=sizes == 2,
        shape=(num_views, anchors.shape[1], first),
    )


def by_mask(rows: Tensor, anchors: Tensor, mask: Tensor) -> Positives:
    """Row b of the mask (B, B) weighs the samples whose rows are positives of sample b's views."""
    num_views = rows.shape[1]
    wide = _wide(rows)
    weights = mask.detach().to(wide.dtype, copy=True)  # (B, B)
    own = weights.diagonal().clone()  # (B,)
    weights.fill_diagonal_(0)
    views = wide.sum(1)  # (B, D)
    with torch.autocast(rows.device.type, enabled=False):
        others = weights @ views  # (B, D)
    sums = others.unsqueeze(1) + own.view(-1, 1, 1) * (views.unsqueeze(1) - anchors)
    groups, lone = _lone_by_mask(weights, own, num_views)
    return _positives(
        sums=sums,
        weights=num_views * weights.sum(1) + (num_views - 1) * own,
        groups=groups,
        lone=lone,
        shape=(num_views, anchors.shape[1], 0),
    )


def _lone_by_mask(weights: Tensor, own: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
    """Pairs of rows that are each other's only positive: their name, and who is in one.

    Args:
        weights: (B, B) of other samples, with a zero diagonal.
        own: (B,) of the sample's own other views.
    """
    samples = torch.arange(len(own), device=own.device)
    chosen = weights != 0  # (B, B)
    count = chosen.sum(1)  # (B,)
    if num_views == 1:
        partner = chosen.to(torch.uint8).argmax(1)  # (B,)
        mutual = (partner[partner] == samples) & (count == 1) & (count[partner] == 1)
        return torch.minimum(samples, partner), mutual
    return samples, (own != 0) & (count == 0) & (num_views == 2)


def _positives(
    sums: Tensor, weights: Tensor, groups: Tensor, lone: Tensor, shape: tuple[int, int, int]
) -> Positives:
    """From (B, A, D) sums, (B,) weights, and the groups (B',) of all samples.

    A row with a lone positive shares its group as an id with it alone; others have their own.
    """
    num_views, num_anchors, first = shape
    own = slice(first, first + len(sums))
    num_rows = len(groups) * num_views
    rows = torch.arange(num_rows, device=groups.device).view(-1, num_views)  # (B', V)
    ids = torch.where(lone.unsqueeze(1), groups.unsqueeze(1), len(groups) + rows)  # (B', V)
    return Positives(
        sums=sums.flatten(0, 1),
        weights=weights.repeat_interleave(num_anchors),
        lone=lone[own].repeat_interleave(num_anchors),
        anchor_ids=ids[own, :num_anchors].reshape(-1),
        contrast_ids=ids.reshape(-1),
    )


def dense_classes(labels: Tensor) -> Tensor:
    """Labels (N,) renamed to 0 ... C - 1 in their order, without a shape that depends on C."""
    ordered, order = labels.sort()
    steps = torch.zeros_like(ordered, dtype=torch.long)
    steps[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(steps).scatter(0, order, steps.cumsum(0))


def class_sizes(classes: Tensor) -> Tensor:
    """(N,) number of entries of each class; entry c is 0 where there is no class c."""
    return torch.zeros_like(classes).index_add(0, classes, torch.ones_like(classes))


def class_sums(rows: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """For each wanted class (N,) the sum (N, D) of the rows (M, D) whose class (M,) it is.

    O((N + M) D). A linear map whose transpose is itself with the classes exchanged, which is the
    gradient: so neither direction adds in an order that the device chooses.
    """
    sums: Tensor = _ClassSums.apply(rows, classes, wanted)  # type: ignore[no-untyped-call]
    return sums


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
        ctx.save_for_backward(classes, wanted)
        return _sum_and_pick(rows, classes, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsums: Tensor) -> tuple[Tensor, None, None]:
        classes, wanted = ctx.saved_tensors
        return _sum_and_pick(dsums, wanted, classes), None, None


def _sum_and_pick(rows: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """Classes are dense: below the larger number of entries."""
    sums = rows.new_zeros((max(len(classes), len(wanted)), rows.shape[1]))
    if rows.device.type == "cpu":
        sums.index_add_(0, classes, rows)  # in the order of the rows
    else:
        sums.index_put_((classes,), rows, accumulate=True)  # CUDA sorts, then adds in order
    return sums[wanted]


def _wide(rows: Tensor) -> Tensor:
    return rows.to(accumulator(rows.dtype))
