"""Barlow Twins in a process of its own, where its peak memory is measured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sslfast.functional import barlow_twins_loss
from sslfast.losses.redundancy.barlow_twins import _barlow_twins_eager


def eager_or_fused(num_images: int, dim: int, eager: bool) -> Callable[[], object]:
    rows = [torch.randn(num_images, dim, requires_grad=True) for _ in range(2)]
    loss_function = _barlow_twins_eager if eager else barlow_twins_loss
    return lambda: torch.autograd.grad(loss_function(*rows), rows)
