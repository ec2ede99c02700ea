"""Embeddings of several views of each image: (N, V, D), or (N, D) where there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_floating
from sslfast._core.numerics import accumulator
from sslfast.ops.rows.l2_normalize import l2_normalize


def check_many_views(name: str, embeddings: Tensor) -> None:
    """Raises TypeError or ValueError unless floating (N, D) or (N, V, D), no dimension empty."""
    check_floating(name, embeddings)
    if embeddings.ndim not in (2, 3) or embeddings.numel() == 0:
        raise ValueError(
            f"{name} must have shape (N, D) or (N, V, D) with no dimension empty, "
            f"got shape {tuple(embeddings.shape)}"
        )


def check_same_images(name: str, tensor: Tensor, embeddings: Tensor) -> None:
    """Raises ValueError unless N, D and the device are those of `embeddings`."""
    expected = (embeddings.shape[0], embeddings.shape[-1])
    if (tensor.shape[0], tensor.shape[-1]) != expected:
        raise ValueError(
            f"{name} must have the N and D {expected} of embeddings, "
            f"got shape {tuple(tensor.shape)}"
        )
    check_device(name, tensor, "embeddings", embeddings)


def unit_views(embeddings: Tensor) -> Tensor:
    """(N, V, D) unit rows in float32 or wider."""
    views = embeddings.unsqueeze(1) if embeddings.ndim == 2 else embeddings
    return l2_normalize(views.to(accumulator(views.dtype)))


def random_views(generator: torch.Generator, *shape: int, noise: float) -> Tensor:
    """Noisy views (N, V, D) of random embeddings, in float64, for samples."""
    num_images, _, dim = shape
    content = torch.randn(num_images, 1, dim, generator=generator, dtype=torch.float64)
    return content + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
