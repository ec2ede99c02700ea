"""Maximum manifold capacity representations (Yerxa et al. 2023, section 2).

For N images with V embeddings z_n = (V, D) each and their centroids c_n, the rows of c (N, D),

    loss = -||c||_* + lambda/N sum_n ||z_n||_*

with ||.||_* the sum of singular values. They come from the Gram of the smaller side: V x V for
each image, N x N or D x D for the centroids. Neither singular vectors of length D nor, as from a
full decomposition, D x D matrices are formed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_distributed, check_floating, check_number
from sslfast._core.numerics import accumulator, mean
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, mean_over_ranks
from sslfast.losses._module import Objective
from sslfast.losses._nuclear import nuclear_norms


def mmcr_loss(
    online: Tensor,
    momentum: Tensor,
    *,
    lmda: float = 5e-3,
    gather_distributed: bool = False,
) -> Tensor:
    """MMCR of all views of the online and the momentum network (Yerxa et al. 2023, section 2).

    Args:
        online: (N, k, D) embeddings of k views of N images; float16, bfloat16, float32 or
            float64; two dtypes promote to the wider. Taken as they are: the paper has them on
            the unit sphere.
        momentum: (N, k, D) embeddings of the momentum network. V = 2 k.
        lmda: weight of the manifolds' own size; finite and at least 0.
        gather_distributed: centroids of all ranks (the same N on every rank): every rank returns
            the loss of the global batch, and averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings), negative where centroids spread
        further than the views of an image; in proportion to the size of the embeddings.

    Raises:
        TypeError: an argument is not a floating tensor, or `lmda` is not a number.
        ValueError: shapes or devices differ, a dimension is missing or empty, or `lmda` is out of
            range.

    Differs from others: the gradient is 0 in directions without a singular value (views that
    repeat each other), where a decomposition gives an arbitrary unit direction. lightly has no
    `gather_distributed`.
    """
    _check_networks(online, momentum)
    check_number("lmda", lmda, least=0)
    wide = accumulator(torch.promote_types(online.dtype, momentum.dtype))
    views = torch.cat((online.to(wide), momentum.to(wide)), dim=1)  # (N, V, D)
    centroids = views.mean(1)  # (N, D)
    sizes = lmda * mean(nuclear_norms(views))
    if gather_distributed:
        centroids, sizes = all_gather_rows(centroids), mean_over_ranks(sizes)  # (W N, D)
    return sizes - nuclear_norms(centroids)


class MMCRLoss(Objective):
    """MMCR, a drop-in for `lightly.loss.MMCRLoss` 1.5 (Yerxa et al. 2023, section 2).

    Args:
        lmda: weight of the manifolds' own size; finite and at least 0.
        gather_distributed: centroids of all ranks, see `sslfast.functional.mmcr_loss`.

    Raises:
        TypeError: `lmda` is not a number.
        ValueError: `lmda` is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from lightly: see `sslfast.functional.mmcr_loss`; wrong shapes raise ValueError
    instead of AssertionError.
    """

    def __init__(self, lmda: float = 5e-3, gather_distributed: bool = False) -> None:
        super().__init__()
        check_number("lmda", lmda, least=0)
        check_distributed(gather_distributed)
        self.lmda = lmda
        self.gather_distributed = gather_distributed

    def forward(self, online: Tensor, momentum: Tensor) -> Tensor:
        """Return the 0-dim loss of (N, k, D) embeddings of either network.

        Raises:
            TypeError, ValueError: as `sslfast.functional.mmcr_loss`.
        """
        return mmcr_loss(
            online, momentum, lmda=self.lmda, gather_distributed=self.gather_distributed
        )


def _check_networks(online: Tensor, momentum: Tensor) -> None:
    for name, views in (("online", online), ("momentum", momentum)):
        check_floating(name, views)
        if views.ndim != 3 or views.numel() == 0:
            raise ValueError(
                f"{name} must have shape (N, k, D) with no dimension empty, "
                f"got shape {tuple(views.shape)}"
            )
    if momentum.shape != online.shape:
        raise ValueError(
            f"momentum must have the shape of online {tuple(online.shape)}, "
            f"got {tuple(momentum.shape)}"
        )
    check_device("momentum", momentum, "online", online)


def _mmcr_eager(
    online: Tensor,
    momentum: Tensor,
    *,
    lmda: float = 5e-3,
    gather_distributed: bool = False,
) -> Tensor:
    """With torch's singular values, which it has for float32 and wider. Oracle and baseline."""
    views = torch.cat((online, momentum), dim=1)
    views = views.to(accumulator(views.dtype))  # (N, V, D)
    views = all_gather_rows(views) if gather_distributed else views  # (W N, V, D)
    manifolds: Tensor = torch.linalg.svdvals(views).sum() / len(views)
    spread: Tensor = torch.linalg.svdvals(views.mean(1)).sum()
    return lmda * manifolds - spread


def _networks(
    name: str,
    size: Size,
    *shape: int,
    noise: float = 0.5,
    magnitude: float = 1.0,
    **options: Any,
) -> Sample:
    """Noisy views (N, k, D) of random unit embeddings, for both networks."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        num_images, _, dim = shape
        content = normal(num_images, 1, dim)
        scale = magnitude / dim**0.5
        networks = {n: scale * (content + noise * normal(*shape)) for n in ("online", "momentum")}
        return {**networks, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="MMCRLoss",
        family="redundancy",
        module=MMCRLoss,
        functional=mmcr_loss,
        eager=_mmcr_eager,
        primitives=(),
        paper="Yerxa et al. 2023, arXiv:2303.03307, section 2",
        samples=(
            _networks("one_image", "tiny", 1, 1, 5),
            _networks("two_images", "tiny", 2, 2, 3),
            _networks("ragged", "ragged", 19, 3, 67, lmda=0.1),
            _networks("more_images_than_features", "ragged", 67, 2, 33, lmda=1.0),
            _networks("more_views_than_features", "ragged", 5, 6, 7, lmda=0.5),
            _networks("gathered", "ragged", 20, 2, 11, lmda=0.3, gather_distributed=True),
            _networks("batch", "typical", 128, 2, 256),
            _networks("close_views", "extreme", 13, 2, 40, noise=0.05, lmda=1.0),
            _networks("large", "extreme", 13, 2, 40, magnitude=1e3, lmda=0.0),
            _networks("wide", "extreme", 6, 2, 2048, lmda=0.5),
        ),
    )
)
