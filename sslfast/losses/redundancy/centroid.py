"""Multi-view centroid loss, the attractive term of MSBReg (arXiv:2207.03552).

For unit embeddings z_nv of N images in V views by the online network, and t_nv by the momentum
network,

    loss = 2 - 2/(N V) sum_nv <z_nv, c_n>,    c_n = sum_v t_nv / |sum_v t_nv|

that is the mean of |z_nv - c_n|^2, the squared distance of an embedding to the centroid of its
image on the sphere. It is taken from the differences, which keep their digits where views nearly
agree. The paper's text describes
the term; its equation was not at hand, and the form is that of public code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.numerics import mean
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.losses.redundancy._views import (
    check_many_views,
    check_same_images,
    random_views,
    unit_views,
)
from sslfast.ops.rows.l2_normalize import l2_normalize


def centroid_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of embeddings to their image's centroid (MSBReg, arXiv:2207.03552).

    On several ranks the mean over ranks is the value of the global batch without a gather.

    Args:
        embeddings: (N, V, D) or (N, D) embeddings of the online network, normalised here;
            float16, bfloat16, float32 or float64.
        targets: (N, U, D) or (N, D) embeddings of the momentum network for any number U of views,
            normalised here. They get a gradient if they ask for one.

    Returns:
        0-dim loss between 0 and 4, in float32 (float64 where an argument is float64).

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: an argument is no (N, V, D) or (N, D) tensor or is empty, or N, D or devices
            differ.

    Differs from others: a public implementation averages each target as it is, without
    normalising it first, which is the same for targets that are unit rows. An embedding of zeros
    is at distance 1, which 2 - 2 cos would count as 2.
    """
    check_many_views("embeddings", embeddings)
    check_many_views("targets", targets)
    check_same_images("targets", targets, embeddings)
    centroids = l2_normalize(unit_views(targets).mean(1, keepdim=True))  # (N, 1, D)
    return mean((unit_views(embeddings) - centroids).square().sum(-1))


class CentroidLoss(nn.Module):
    """Squared distance of embeddings to their image's centroid (MSBReg, arXiv:2207.03552).

    Args:
        None here: `forward` takes embeddings and targets as `sslfast.functional.centroid_loss`.

    Differs from others: see `sslfast.functional.centroid_loss`.
    """

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Return the 0-dim loss of embeddings (N, V, D) and the momentum network's (N, U, D).

        Raises:
            TypeError, ValueError: as `sslfast.functional.centroid_loss`.
        """
        return centroid_loss(embeddings, targets)


def _centroid_eager(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Every view's distance for itself. Oracle and baseline."""
    views = embeddings if embeddings.ndim == 3 else embeddings.unsqueeze(1)  # (N, V, D)
    others = targets if targets.ndim == 3 else targets.unsqueeze(1)  # (N, U, D)
    centroids = F.normalize(F.normalize(others, dim=-1).mean(1, keepdim=True), dim=-1)
    return (2 - 2 * (F.normalize(views, dim=-1) * centroids).sum(-1)).mean()


def _networks(
    name: str, size: Size, *shape: int, num_targets: int = 0, noise: float = 0.5, scale: float = 1.0
) -> Sample:
    def make(generator: torch.Generator) -> dict[str, Any]:
        num_images, num_views, dim = shape
        num_rows = num_views + (num_targets or num_views)
        views = scale * random_views(generator, num_images, num_rows, dim, noise=noise)
        online, momentum = views[:, :num_views], views[:, num_views:]
        return {"embeddings": online, "targets": momentum}

    return Sample(name, size, make)


def _single_views(name: str, size: Size, num_images: int, dim: int) -> Sample:
    def make(generator: torch.Generator) -> dict[str, Any]:
        online, momentum = random_views(generator, num_images, 2, dim, noise=0.5).unbind(1)
        return {"embeddings": online, "targets": momentum}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="CentroidLoss",
        family="redundancy",
        module=CentroidLoss,
        functional=centroid_loss,
        eager=_centroid_eager,
        primitives=("l2_normalize",),
        paper="arXiv:2207.03552, the multi-view centroid loss",
        samples=(
            _single_views("one_view", "tiny", 5, 8),
            _networks("one_image", "tiny", 1, 2, 3),
            _networks("ragged", "ragged", 19, 3, 67),
            _networks("more_targets", "ragged", 7, 2, 33, num_targets=5),
            _networks("batch", "typical", 256, 2, 256),
            _networks("close_views", "extreme", 13, 4, 40, noise=1e-2),
            _networks("large", "extreme", 13, 2, 40, scale=1e3),
        ),
    )
)
