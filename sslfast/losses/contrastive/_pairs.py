"""What the losses of two views share: their positives, and who is a negative of whom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._core.numerics import row_dot
from sslfast._registry import Sample, Size
from sslfast.distributed import all_gather_rows, rank, world_size

# None stands for the rows themselves and for their ids.
Keys = tuple[Tensor | None, Tensor, Tensor | None]


def positive_similarity(rows: Tensor) -> Tensor:
    """(N,) products of the two views of each image, from rows (2N, D), view after view."""
    return row_dot(*rows.view(2, len(rows) // 2, -1).unbind())


def other_images(rows: Tensor, gather_distributed: bool) -> Keys:
    """The keys of rows (2N, D), two views after one another, with the images as ids."""
    num_images = len(rows) // 2
    return keys_of_ranks(
        rows, torch.arange(num_images, device=rows.device).repeat(2), num_images, gather_distributed
    )


def keys_of_ranks(rows: Tensor, ids: Tensor, num_ids: int, gather_distributed: bool) -> Keys:
    """Keys, query ids and key ids of `similarity_logsumexp`: rows of one id leave each other out.

    On one process this is the symmetric form; with `gather_distributed` the keys are the rows of
    all ranks, each with `num_ids` ids of its own, rank after rank.
    """
    if not gather_distributed or world_size() == 1:
        return None, ids, None
    starts = num_ids * torch.arange(world_size(), device=rows.device)  # (W,)
    key_ids = (starts[:, None] + ids).reshape(-1)  # (W N,)
    return all_gather_rows(rows), ids + rank() * num_ids, key_ids


def count_negatives(name: str, view: Tensor, gather_distributed: bool) -> int:
    """Rows of other images, 2 (W N - 1).

    Raises:
        ValueError: there are none.
    """
    num_images = len(view) * (world_size() if gather_distributed else 1)
    if num_images < 2:
        raise ValueError(
            f"{name} must have at least two rows: one image alone has no negatives, "
            f"got shape {tuple(view.shape)}"
        )
    return 2 * (num_images - 1)


def sample_views(
    name: str,
    size: Size,
    num_images: int,
    dim: int,
    *,
    noise: float = 0.5,
    magnitude: float = 1.0,
    **options: Any,
) -> Sample:
    """Two noisy views of random embeddings, and the options of the loss.

    A unit row of one feature is its sign and has no gradient; powers of two keep both exact.
    """

    def make(generator: torch.Generator) -> dict[str, Any]:
        shape = (3, num_images, dim)
        images, *noises = torch.randn(shape, generator=generator, dtype=torch.float64)
        views = [magnitude * (images + noise * part) for part in noises]
        if dim == 1:
            views = [view.sign() * view.abs().log2().round().exp2() for view in views]
        return {"embeddings0": views[0], "embeddings1": views[1], **options}

    return Sample(name, size, make)
