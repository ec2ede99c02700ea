"""Embeddings that the tests of contrastive losses draw."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def views(num_images: int = 6, dim: int = 5, seed: int = 0, **options: Any) -> tuple[Tensor, ...]:
    """Two noisy (N, D) views of random embeddings; float64 unless `options` say otherwise."""
    generator = torch.Generator().manual_seed(seed)
    content, *noise = torch.randn(3, num_images, dim, generator=generator, dtype=torch.float64)
    options.setdefault("dtype", torch.float64)
    return tuple((content + part).to(**options) for part in noise)


def leaves(*shape: int, **options: Any) -> tuple[Tensor, ...]:
    """Both views, which learn."""
    return tuple(view.requires_grad_() for view in views(*shape, **options))


def unit_rows(num_rows: int, dim: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64))
