"""VICRegL as it is usually written, every distance and covariance stored, and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.correlation.frobenius import Route
from sslfast._core.numerics import accumulator
from sslfast._registry import Sample, Size
from sslfast.losses.redundancy._maps import Crop
from sslfast.losses.redundancy._ranks import GradScale
from sslfast.losses.redundancy._vicreg_eager import eager_covariance, eager_variance, gathered
from sslfast.losses.redundancy._vicregl_terms import MatchOrder


def vicregl_eager(
    global_embeddings: Tensor,
    global_maps: Tensor,
    global_grids: Tensor,
    local_embeddings: Tensor | None = None,
    local_maps: Tensor | None = None,
    local_grids: Tensor | None = None,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    alpha: float = 0.75,
    num_matches: Sequence[int | None] = (20, 4),
    eps: float = 1e-4,
    match_order: MatchOrder = "distance",
    all_l2_matches: bool = False,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """As the authors write it, every pair added. Oracle and baseline."""
    crops = _unstacked(global_embeddings, global_maps, global_grids)
    if local_embeddings is not None and local_maps is not None and local_grids is not None:
        crops += _unstacked(local_embeddings, local_maps, local_grids)
    counts = [None if count == -1 else count for count in num_matches]
    matches: dict[str, list[int | None]]
    matches = {"features": [None, None] if all_l2_matches else counts, "grid": counts}
    scope = (crops, global_maps.shape[1], eps, gather_distributed)
    local = _local_terms(*scope, matches=matches, by_position=match_order == "position")
    total = global_embeddings.new_zeros(())
    weights = (lambda_param, mu_param, nu_param)
    for terms, covariance, share in (
        (_global_terms(*scope), 1.0, alpha),
        (local, 0.5, 1 - alpha),
    ):
        for weight, term in zip((*weights[:2], covariance * weights[2]), terms, strict=True):
            total = total + share * weight * term
    return total


def _unstacked(*stacks: Tensor) -> list[Crop]:
    return [Crop(*parts) for parts in zip(*(stack.unbind(1) for stack in stacks), strict=True)]


def _global_terms(
    crops: list[Crop], num_global: int, eps: float, gather_distributed: bool
) -> tuple[Tensor, ...]:
    """Invariance over pairs, variance and covariance over crops, of the pooled embeddings."""
    embeddings = [crop.embedding for crop in crops]
    pairs = [(i, j) for i in range(num_global) for j in range(len(crops)) if i != j]
    invariances = [F.mse_loss(embeddings[i], embeddings[j]) for i, j in pairs]
    rows = [gathered(embedding, gather_distributed) for embedding in embeddings]
    variances = [eager_variance(each, eps) for each in rows]
    covariances = [eager_covariance(each) for each in rows]
    return tuple(torch.stack(terms).mean() for terms in (invariances, variances, covariances))


def _local_terms(
    crops: list[Crop],
    num_global: int,
    eps: float,
    gather_distributed: bool,
    *,
    matches: dict[str, list[int | None]],
    by_position: bool,
) -> tuple[Tensor, ...]:
    """Invariance, variance and covariance of matched places; VICReg's sums of two covariances."""
    found = []
    for i in range(num_global):
        for j in range(len(crops)):
            if i == j:
                continue
            terms = crops[i].features.new_zeros(3)
            first, second = crops[i].flat(), crops[j].flat()
            for kind, (count, other_count) in matches.items():
                for one, other, k in ((first, second, count), (second, first, other_count)):
                    a, b = _matched(one, other, kind, k, by_position)
                    invariance = F.mse_loss(a, b)
                    a, b = gathered(a, gather_distributed), gathered(b, gather_distributed)
                    variance = (eager_variance(a, eps) + eager_variance(b, eps)) / 2
                    covariance = eager_covariance(a) + eager_covariance(b)
                    terms = terms + torch.stack((invariance, variance, covariance)) / 2
            found.append(terms)
    return tuple(torch.stack(found).mean(0).unbind())


def _matched(
    one: Crop, other: Crop, kind: str, count: int | None, by_position: bool
) -> tuple[Tensor, Tensor]:
    where, there = (getattr(crop, kind) for crop in (one, other))
    wide = accumulator(where.dtype)  # no half precision in torch.cdist
    distances, neighbours = torch.cdist(where.to(wide), there.to(wide)).min(dim=2)
    places = distances.argsort(dim=1, stable=True)[:, :count]  # (N, k)
    places = places.sort(dim=1).values if by_position else places
    neighbours = neighbours.gather(1, places)
    images = torch.arange(len(places), device=places.device).unsqueeze(1)
    return one.features[images, places], other.features[images, neighbours]  # (N, k, C)


def sample_crops(
    name: str,
    size: Size,
    num_images: int,
    dim: int,
    channels: int,
    *,
    global_side: int = 3,
    local_side: int = 2,
    num_global: int = 2,
    num_local: int = 0,
    magnitude: float = 1.0,
    noise: float = 0.5,
    **options: Any,
) -> Sample:
    """Noisy crops of random images; positions are integers that no rounding makes equal."""

    def stack(generator: torch.Generator, count: int, side: int) -> tuple[Tensor, ...]:
        embeddings = torch.randn(num_images, 1, dim, generator=generator, dtype=torch.float64)
        spread = torch.randn(num_images, count, dim, generator=generator, dtype=torch.float64)
        shape = (num_images, count, side, side)
        maps = torch.randn(*shape, channels, generator=generator, dtype=torch.float64)
        grids = torch.randint(0, 1 << 20, (*shape, 2), generator=generator)
        return magnitude * (embeddings + noise * spread), magnitude * maps, grids

    def make(generator: torch.Generator) -> dict[str, Any]:
        parts = ("embeddings", "maps", "grids")
        crops = stack(generator, num_global, global_side)
        sample: dict[str, Any] = dict(zip((f"global_{part}" for part in parts), crops, strict=True))
        if num_local:
            crops = stack(generator, num_local, local_side)
            sample.update(zip((f"local_{part}" for part in parts), crops, strict=True))
        return {**sample, **options}

    return Sample(name, size, make)
