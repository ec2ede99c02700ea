"""Weighted nearest-neighbour classification of frozen embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _check(gallery: Tensor, gallery_labels: Tensor, queries: Tensor) -> None:
    for name, value in (("gallery", gallery), ("queries", queries)):
        if value.ndim != 2 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point (rows, D) tensor, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
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


@torch.no_grad()
def knn_predict(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Class of every query by a vote of its ``k`` nearest gallery rows under the cosine.

    A neighbour of similarity s votes for its class with weight exp(s / temperature): Wu et al.
    2018 (instance discrimination), section 3.4, whose settings k = 200 and temperature = 0.07 are
    the defaults; DINO uses k = 20 with the same weight. Ties go to the lower class. Differs from
    the paper in one point only: a gallery of fewer than k rows votes as a whole, where the vote is
    still that of Wu et al.

    Args:
        gallery: ``(M, D)``, any length of rows; normalised here.
        gallery_labels: integer ``(M,)``, >= 0.
        queries: ``(N, D)``.
        chunk: queries per step, so that at most ``chunk * M`` similarities exist at a time.

    Returns:
        int64 ``(N,)``.

    Raises:
        ValueError: shapes or dtypes that do not fit, k < 1, temperature <= 0, chunk < 1.
    """
    _check(gallery, gallery_labels, queries)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    keys = F.normalize(gallery, dim=1).T  # (D, M)
    classes = int(gallery_labels.max()) + 1
    predicted = []
    for rows in torch.split(F.normalize(queries, dim=1), chunk):
        similarity, index = (rows @ keys).topk(min(k, len(gallery)), dim=1)  # (n, k)
        # Shifted by the nearest neighbour: the vote is the same and small temperatures are safe.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(rows), classes, dtype=weight.dtype, device=weight.device)
        votes.scatter_add_(1, gallery_labels.long()[index], weight)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted) if predicted else gallery_labels.new_empty(0, dtype=torch.long)


def knn_top1(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
) -> float:
    """Share of queries in [0, 1] whose class :func:`knn_predict` names; same arguments.

    Raises:
        ValueError: as :func:`knn_predict`, or query_labels not of shape ``(N,)``, or N = 0.
    """
    if query_labels.shape != queries.shape[:1] or len(queries) == 0:
        raise ValueError(
            f"query_labels must have one label for each of the {len(queries)} queries (at least "
            f"one), got shape {tuple(query_labels.shape)}"
        )
    predicted = knn_predict(gallery, gallery_labels, queries, k=k, temperature=temperature)
    return float((predicted == query_labels).double().mean())
