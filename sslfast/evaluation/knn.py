"""Weighted nearest-neighbour classification of frozen embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_count, check_number
from sslfast.ops import l2_normalize, similarity_topk


def _check(gallery: Tensor, gallery_labels: Tensor, queries: Tensor) -> None:
    for name, value in (("gallery", gallery), ("queries", queries)):
        if value.ndim != 2 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point (rows, D) tensor, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite, got a row with nan or inf")
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"queries must have the gallery's D = {gallery.shape[1]}, got {queries.shape[1]}"
        )
    if len(gallery) == 0:
        raise ValueError("gallery must hold at least one row, got 0")
    if gallery_labels.shape != (len(gallery),) or gallery_labels.is_floating_point():
        raise ValueError(
            f"gallery_labels must be integers of shape ({len(gallery)},), "
            f"got {gallery_labels.dtype} of shape {tuple(gallery_labels.shape)}"
        )
    if int(gallery_labels.min()) < 0:
        raise ValueError(f"gallery_labels must not be negative, got {int(gallery_labels.min())}")


def _vote(labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Classes and votes of the neighbours (N, k), classes ascending, each vote at one place.

    Votes are summed along the neighbours of a class, which sorting puts side by side: no count of
    classes is needed, nothing of N x classes is built, and the sums have one order everywhere. All
    places of a class but its last have the vote -inf.
    """
    classes, order = labels.sort(dim=1, stable=True)  # (N, k)
    classes, weights = classes.T.contiguous(), weights.gather(1, order).T.contiguous()  # (k, N)
    votes = weights.clone()
    for j in range(1, len(votes)):
        votes[j] += torch.where(classes[j] == classes[j - 1], votes[j - 1], 0)
    votes[:-1].masked_fill_(classes[:-1] == classes[1:], -torch.inf)
    return classes.T, votes.T


def _ranking(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    k: int,
    temperature: float,
    top: int,
) -> Tensor:
    """(N, top) classes by their votes, the best first; -1 where fewer classes have any."""
    _check(gallery, gallery_labels, queries)
    check_count("k", k, 1)
    check_number("temperature", temperature, above=0)
    check_count("top", top, 1)
    k = min(k, len(gallery))
    similarity, index = similarity_topk(l2_normalize(queries), l2_normalize(gallery), k)  # (N, k)
    # Shifted by the nearest neighbour: the vote is the same and small temperatures are safe.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()  # (N, k)
    classes, votes = _vote(gallery_labels.long()[index], weights)
    best = votes.sort(dim=1, descending=True, stable=True)  # of equal votes the lower class
    ranked = classes.gather(1, best.indices).masked_fill(best.values == -torch.inf, -1)
    padding = ranked.new_full((len(ranked), max(0, top - k)), -1)
    return torch.cat([ranked[:, :top], padding], 1)


@torch.no_grad()
def knn_predict(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
) -> Tensor:
    """Class of every query by a vote of its ``k`` nearest gallery rows under the cosine.

    A neighbour of similarity s votes for its class with weight exp(s / temperature): Wu et al.
    2018 (instance discrimination), section 3.4, whose settings k = 200 and temperature = 0.07 are
    the defaults; DINO uses k = 20 with the same weight. Of equal similarities the lower rows vote,
    of equal votes the lower class wins.

    Args:
        gallery: ``(M, D)``, any length of rows; normalised here.
        gallery_labels: integer ``(M,)``, >= 0.
        queries: ``(N, D)``.
        k: neighbours that vote.
        temperature: of the weights.

    Returns:
        int64 ``(N,)``.

    Raises:
        TypeError: k or temperature is not a number.
        ValueError: shapes, dtypes or values that do not fit, k < 1, temperature <= 0.

    Differs from others: a gallery of fewer than k rows votes as a whole, where the vote is still
    that of Wu et al.; lightly's `knn_predict` and DINO's ``eval_knn.py`` raise. They also take the
    number of classes and build N x classes votes; here memory is that of N x k neighbours, and
    queries need not come in chunks.
    """
    return _ranking(gallery, gallery_labels, queries, k, temperature, 1)[:, 0]


@torch.no_grad()
def knn_accuracy(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
    top: int = 1,
) -> float:
    """Share of queries in [0, 1] whose class is among the ``top`` best of the vote.

    Args:
        gallery, gallery_labels, queries, k, temperature: as :func:`knn_predict`.
        query_labels: integer ``(N,)``, the truth.
        top: 1 for the class that :func:`knn_predict` names, 5 for top-5 accuracy. A class for
            which no neighbour votes is never among them.

    Raises:
        TypeError, ValueError: as :func:`knn_predict`, or query_labels not of shape ``(N,)``, or
            N = 0, or top < 1.
    """
    if query_labels.shape != queries.shape[:1] or len(queries) == 0:
        raise ValueError(
            f"query_labels must have one label for each of the {len(queries)} queries (at least "
            f"one), got shape {tuple(query_labels.shape)}"
        )
    ranked = _ranking(gallery, gallery_labels, queries, k, temperature, top)  # (N, top)
    return float((ranked == query_labels[:, None]).any(1).double().mean())
