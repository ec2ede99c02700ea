"""Places of two feature maps that belong together: nearest neighbours, both ways, best first.

Only indices come out, so nothing is recorded for the backward pass, and the distances of a few
images are held at a time. Both directions are read from the same distances.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.numerics import accumulator

DISTANCES_AT_A_TIME = 1 << 22
# From products, the distances of close places are rounding errors, and those are the best matches.
FROM_DIFFERENCES = "donot_use_mm_for_euclid_dist"


class Matches(NamedTuple):
    """Places of one map and their neighbours in another, by increasing distance.

    Args:
        places: (N, P) indices of the places, all of them.
        neighbours: (N, P) indices of the nearest places of the other map.
    """

    places: Tensor
    neighbours: Tensor

    def best(self, count: int | None, by_position: bool) -> Matches:
        """The `count` closest pairs (None: all), by increasing distance or by position."""
        places, neighbours = (index[:, :count] for index in self)  # (N, count)
        if by_position:
            places, order = places.sort(dim=1)
            neighbours = neighbours.gather(1, order)
        return Matches(places, neighbours)


@torch.no_grad()
def match(first: Tensor, second: Tensor) -> tuple[Matches, Matches]:
    """Nearest neighbours by Euclidean distance, of each map's places in the other map.

    Args:
        first: (N, P, C) features or coordinates.
        second: (N, Q, C) features or coordinates.

    Returns:
        Matches of `first` in `second` and of `second` in `first`. Of equal distances the lowest
        index comes first.
    """
    wide = accumulator(torch.promote_types(first.dtype, second.dtype))
    size = max(1, DISTANCES_AT_A_TIME // (first.shape[1] * second.shape[1]))
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(first), size):
        images = slice(start, start + size)
        distances = torch.cdist(
            first[images].to(wide), second[images].to(wide), compute_mode=FROM_DIFFERENCES
        )  # (n, P, Q)
        found.append((*_sorted(*distances.min(dim=2)), *_sorted(*distances.min(dim=1))))
    indices = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return Matches(*indices[:2]), Matches(*indices[2:])


def take_places(maps: Tensor, index: Tensor) -> Tensor:
    """(N, k, C) features of maps (N, P, C) at places (N, k), some of which may be the same.

    The gradients of a place are added up by a product with zeros and ones, in one fixed order.
    """
    taken: Tensor = _TakePlaces.apply(maps, index)  # type: ignore[no-untyped-call]
    return taken


def _sorted(distances: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Places in the order of their distances (N, P), and their neighbours."""
    places = distances.sort(dim=1, stable=True).indices
    return places, neighbours.gather(1, places)


class _TakePlaces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_places = maps.shape[1]
        return maps.gather(1, index.unsqueeze(2).expand(-1, -1, maps.shape[2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtaken: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        all_places = torch.arange(ctx.num_places, device=index.device)
        taken = index.unsqueeze(1) == all_places.unsqueeze(1)  # (N, P, k)
        wide = accumulator(dtaken.dtype)
        return torch.bmm(taken.to(wide), dtaken.to(wide)).to(dtaken.dtype), None
