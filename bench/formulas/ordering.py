"""Ordering losses as others write them, in plain torch.

The published code of differentiable sorting networks keeps the whole relaxed permutation of every
list and multiplies it, layer by layer, by dense one-hot matrices that split the wires of the
layer's comparators and merge them again. The four sweeps need none of that, in torch as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.sorting.network import layers_of

Sort = Callable[[Tensor], tuple[Tensor, Tensor]]  # lists (B, n) -> sorted (B, n), P (B, n, n)
CHUNK = 256  # queries whose similarities are in memory at once


@torch.compiler.assume_constant_result
def _one_hot(
    network: str, n: int, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], ...]:
    """Made once, as in a constructor; a compiled form takes them as constants."""
    return _made_one_hot(network, n, device, dtype)


@lru_cache
def _made_one_hot(
    network: str, n: int, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], ...]:
    """For each layer of c comparators or idle wires: split (n, c) and merge (c, n), low and high.

    An idle wire is split into two equal values, of which half each is merged.
    """
    layers = []
    for pairs in layers_of(network, n):
        idle = sorted(set(range(n)) - {wire for pair in pairs for wire in pair})
        both = [*pairs, *((wire, wire) for wire in idle)]
        share = torch.tensor([1.0] * len(pairs) + [0.5] * len(idle))  # (c,)
        low, high = (F.one_hot(torch.tensor(w), n).T.float() for w in zip(*both, strict=True))
        matrices = (low, high, (low * share).T, (high * share).T)
        layers.append(tuple(matrix.to(device, dtype) for matrix in matrices))
    return tuple(layers)


def dense_sort(values: Tensor, *, network: str, steepness: float) -> tuple[Tensor, Tensor]:
    """Lists (B, n), sorted, and their relaxed permutations (B, n, n), Cauchy's relaxation."""
    x = values  # (B, n)
    num_lists, n = x.shape
    permutation = torch.eye(n, dtype=x.dtype, device=x.device).repeat(num_lists, 1, 1)
    for split_low, split_high, merge_low, merge_high in _one_hot(network, n, x.device, x.dtype):
        a, b = x @ split_low, x @ split_high  # (B, c)
        alpha = torch.atan(steepness * (b - a)) / math.pi + 0.5  # (B, c)
        x = _merged(a, b, alpha, merge_low, merge_high)
        columns = permutation @ split_low, permutation @ split_high  # (B, n, c)
        permutation = _merged(*columns, alpha[:, None], merge_low, merge_high)
    return x, permutation


def _merged(a: Tensor, b: Tensor, alpha: Tensor, merge_low: Tensor, merge_high: Tensor) -> Tensor:
    low, high = alpha * a + (1 - alpha) * b, (1 - alpha) * a + alpha * b
    return low @ merge_low + high @ merge_high


def groupwise_cross_entropy(values: Tensor, group_sizes: Sequence[int], *, sort: Sort) -> Tensor:
    """GroCo's loss of lists (B, n) whose first wires are the negatives, (B,).

    Binary cross-entropies of the mass in the positives' ranks and of that in the negatives', as
    the authors compute them (ninatu/learning_by_sorting). Half precision is widened first, since
    torch refuses its binary cross-entropy under autocast.
    """
    num_negatives, num_positives = group_sizes
    with torch.autocast(values.device.type, enabled=False):
        _, permutation = sort(_widened(values))  # (B, n, n)
        negative, positive = (
            ranks.sum(2).clamp(0, 1)
            for ranks in permutation.split([num_negatives, num_positives], 2)
        )  # (B, n) each
        target = torch.zeros_like(positive)
        target[:, num_negatives:] = 1
        losses = F.binary_cross_entropy(positive, target, reduction="none")
        losses = losses + F.binary_cross_entropy(negative, 1 - target, reduction="none")
        return losses.mean(1) / 2


def permutation_cross_entropy(
    values: Tensor, group_sizes: Sequence[int], teacher: Tensor, *, sort: Sort
) -> Tensor:
    """NeCo's loss of lists (B, n) against a teacher's, (B,): -sum_j Q_ij log P_ij, mean over i.

    Every rank is a group of its own. As the authors compute it (vpariza/NeCo).
    """
    with torch.autocast(values.device.type, enabled=False):
        with torch.no_grad():
            _, target = sort(_widened(teacher))  # (B, n, n)
        _, permutation = sort(_widened(values))  # (B, n, n)
        return -(target * permutation.log()).sum(2).mean(1)


def authors_groco(embeddings: Tensor, topk_neg: int, *, sort: Sort) -> Tensor:
    """GroCo of views (B, V, D), all full crops, as its authors compute it on one process.

    All similarities of a view, in float32; positives and negatives are constants.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        views = [F.normalize(view, dim=1) for view in _widened(embeddings).unbind(1)]  # (B, D)
        total = embeddings.new_zeros((), dtype=views[0].dtype)
        for index, anchors in enumerate(views):
            similarity = anchors @ anchors.detach().T  # (B, B)
            similarity = similarity.masked_fill(_diagonal(similarity), -torch.inf)
            negatives = similarity.topk(topk_neg).values.flip(1)  # (B, K), ascending
            others = (view.detach() for view in (*views[:index], *views[index + 1 :]))
            positives = torch.stack([(anchors * other).sum(1) for other in others], 1)
            lists = torch.cat([negatives, positives.sort(1).values], 1)  # (B, K + V - 1)
            sizes = topk_neg, len(views) - 1
            total = total + groupwise_cross_entropy(lists, sizes, sort=sort).mean()
        return total / len(views)


def authors_neco(student: Tensor, teacher: Tensor, references: Tensor, *, sort: Sort) -> Tensor:
    """NeCo of patches (B, P, D) and references (B, n, D), of a patch and reference the mean."""
    with torch.autocast(student.device.type, enabled=False):
        rows = (F.normalize(_widened(each), dim=2) for each in (student, teacher, references))
        patches, targets, others = rows
        lists = (patches @ others.mT).flatten(0, 1)  # (B P, n)
        with torch.no_grad():
            target_lists = (targets @ others.mT).flatten(0, 1)  # (B P, n)
        ranks = (1,) * lists.shape[1]
        return permutation_cross_entropy(lists, ranks, target_lists, sort=sort).mean()


def swept_cross_entropy(
    values: Tensor, group_sizes: Sequence[int], *, network: str, steepness: float
) -> Tensor:
    """GroCo's loss of lists (B, n), (B,), by four sweeps over the network in torch operations.

    Loss and gradient in the forward pass where a gradient is wanted; nothing but (B, n) is kept.
    """
    with torch.autocast(values.device.type, enabled=False):
        wide = _widened(values)
        learns = torch.is_grad_enabled() and wide.requires_grad
        arguments = wide, group_sizes[0], network, steepness, learns
        loss: Tensor = _Sweeps.apply(*arguments)  # type: ignore[no-untyped-call]
        return loss


class _Sweeps(torch.autograd.Function):
    """Wires come first, (n, B), so that a wire is contiguous; v and d as in `swept_cross_entropy`.

    The mass v of the positives' ranks goes from the last layer to the first, its gradient dv back
    to the last, the gradient dx of the values to the first again.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, num_negatives: int, network: str, steepness: float, learns: bool
    ) -> Tensor:
        n, x = values.shape[1], values.T.contiguous()  # (n, B)
        layers = _wires(network, n, values.device)
        kept = []
        for low, high in layers:
            a, b = x[low], x[high]  # (c, B)
            d = b - a
            alpha = (steepness * d).atan_().div_(math.pi).add_(0.5)
            _mix(x, low, high, alpha)
            kept.append((d, alpha))
        v = torch.zeros_like(x)  # (n, B)
        v[num_negatives:] = 1
        changes = []
        for (low, high), (_, alpha) in zip(layers[::-1], kept[::-1], strict=True):
            changes.append(v[low] - v[high])  # (c, B)
            _mix(v, low, high, alpha)
        own = v.clone()
        own[:num_negatives].neg_().add_(1)
        loss = own.log().mean(0).neg_()  # (B,)
        if learns:
            dv = -1 / (n * own)
            dv[:num_negatives].neg_()
            dx = _swept_gradient(dv, layers, kept, changes[::-1], steepness)
            ctx.save_for_backward(dx.T)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dvalues,) = ctx.saved_tensors
        return grads[0][:, None] * dvalues, None, None, None, None


def _swept_gradient(
    dv: Tensor, layers: Any, kept: Any, changes: list[Tensor], steepness: float
) -> Tensor:
    """The gradient (n, B) of the values from that of the masses."""
    dalphas = []
    for (low, high), (_, alpha), change in zip(layers, kept, changes, strict=True):
        dalphas.append((dv[low] - dv[high]).mul_(change))  # (c, B)
        _mix(dv, low, high, alpha)
    dx = torch.zeros_like(dv)  # (n, B)
    order = zip(layers[::-1], kept[::-1], dalphas[::-1], strict=True)
    for (low, high), (d, alpha), dalpha in order:
        slope = (steepness * d).square_().add_(1).reciprocal_().mul_(steepness / math.pi)
        dd = (dalpha - d * (dx[low] - dx[high])).mul_(slope)
        _mix(dx, low, high, alpha)
        dx[low] -= dd
        dx[high] += dd
    return dx


def _mix(x: Tensor, low: Any, high: Any, alpha: Tensor) -> None:
    """Every swap of a layer on wires (n, B), in place: alpha of each stays, the rest crosses."""
    a, b = x[low], x[high]
    moved = alpha * (b - a)
    x[low], x[high] = b - moved, a + moved


@lru_cache
def _wires(network: str, n: int, device: torch.device) -> tuple[tuple[Any, Any], ...]:
    """Indices of the low and high wires of each layer: strided where a slice will do."""
    if network == "odd_even":
        return tuple((slice(i % 2, n - 1, 2), slice(i % 2 + 1, n, 2)) for i in range(n))
    layers = (torch.tensor(pairs, device=device).T for pairs in layers_of(network, n))
    return tuple((low, high) for low, high in layers)


def top_similarities(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """The k largest similarities of each query, (N, k), from all of them."""
    return (queries @ keys.T).topk(k).values


def top_similarities_in_chunks(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """The same with the similarities of few queries at a time."""
    return torch.cat([top_similarities(chunk, keys, k) for chunk in torch.split(queries, CHUNK)])


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
