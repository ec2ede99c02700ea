"""Brownian diffusive loss, the stochastic term of MSBReg (arXiv:2207.03552).

For unit embeddings z_nv of N images in V views and a random unit direction g_n for each image,

    loss = 1/(N V) sum_nv <z_nv, g_n>

Its expectation is 0: a step moves all views of an image the same random way, so that images
diffuse apart over the sphere while their views stay together. The paper's text describes the
term; its equation was not at hand, and the form is that of public code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.checks import check_matrix
from sslfast._core.numerics import mean, row_dot
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.losses.redundancy._views import (
    check_many_views,
    check_same_images,
    random_views,
    unit_views,
)
from sslfast.ops.rows.l2_normalize import l2_normalize


def brownian_loss(embeddings: Tensor, *, directions: Tensor | None = None) -> Tensor:
    """Mean cosine of embeddings with a random direction for each image (arXiv:2207.03552).

    On several ranks the mean over ranks is the value of the global batch without a gather.

    Args:
        embeddings: (N, V, D) or (N, D) embeddings, normalised here; float16, bfloat16, float32
            or float64.
        directions: (N, D) directions, normalised here; ``None``: uniform on the
            sphere, drawn from torch's global generator of the device.

    Returns:
        0-dim loss between -1 and 1, in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: `embeddings` is no (N, V, D) or (N, D) tensor or is empty, or `directions` has
            another N, D or device.

    Differs from others: a public implementation, which weights this term by 0.1, draws one
    direction for all images of a batch, or for all of a class where there are labels.
    """
    check_many_views("embeddings", embeddings)
    means = unit_views(embeddings).mean(1)  # (N, D)
    if directions is None:
        directions = torch.randn_like(means)
    else:
        check_matrix("directions", directions, "(N, D)")
        check_same_images("directions", directions, embeddings)
    return mean(row_dot(means, l2_normalize(directions.to(means.dtype))))


class BrownianLoss(nn.Module):
    """Mean cosine of embeddings with a random direction for each image (arXiv:2207.03552).

    Args:
        None here: `forward` takes embeddings and directions as `sslfast.functional.brownian_loss`.

    Differs from others: see `sslfast.functional.brownian_loss`.
    """

    def forward(self, embeddings: Tensor, directions: Tensor | None = None) -> Tensor:
        """Return the 0-dim loss of embeddings (N, V, D), with `directions` (N, D) or new ones.

        Raises:
            TypeError, ValueError: as `sslfast.functional.brownian_loss`.
        """
        return brownian_loss(embeddings, directions=directions)


def _brownian_eager(embeddings: Tensor, *, directions: Tensor | None = None) -> Tensor:
    """Every view's cosine for itself. Oracle and baseline."""
    views = embeddings if embeddings.ndim == 3 else embeddings.unsqueeze(1)  # (N, V, D)
    if directions is None:
        directions = torch.randn_like(views[:, 0])
    return F.cosine_similarity(views, directions.unsqueeze(1), dim=-1).mean()


def _walk(name: str, size: Size, *shape: int, scale: float = 1.0) -> Sample:
    def make(generator: torch.Generator) -> dict[str, Any]:
        embeddings = scale * random_views(generator, *shape, noise=0.5)
        directions = torch.randn(shape[0], shape[2], generator=generator, dtype=torch.float64)
        return {"embeddings": embeddings, "directions": directions}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="BrownianLoss",
        family="redundancy",
        module=BrownianLoss,
        functional=brownian_loss,
        eager=_brownian_eager,
        primitives=("l2_normalize",),
        paper="arXiv:2207.03552, the Brownian diffusive loss",
        samples=(
            _walk("one_image", "tiny", 1, 1, 3),
            _walk("two_images", "tiny", 2, 2, 8),
            _walk("ragged", "ragged", 19, 3, 67),
            _walk("batch", "typical", 256, 2, 256),
            _walk("large", "extreme", 13, 2, 40, scale=1e3),
            _walk("wide", "extreme", 6, 2, 2048),
        ),
    )
)
