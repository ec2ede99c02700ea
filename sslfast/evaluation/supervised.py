"""The supervised ceiling: the same encoder trained with the labels for a bounded time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LabelledBatch = tuple[tuple[Tensor, ...], Tensor]


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate of 0-based ``step``: linear to 1, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_supervised(
    encoder: nn.Module,
    features: int,
    classes: int,
    next_batch: Callable[[], LabelledBatch],
    steps: Iterable[int],
    total: int,
    *,
    lr: float,
    weight_decay: float,
) -> None:
    """Train ``encoder`` with a linear classifier, in place; the classifier is dropped.

    Every view of a batch counts as an image of its own, so the ceiling sees what pretraining sees.

    Args:
        features: D of the encoder.
        next_batch: views, each ``(B, C, H, W)``, and labels ``(B,)``.
        steps: 0, 1, ... ``total - 1``, perhaps wrapped by a progress bar.
    """
    classifier = nn.Linear(features, classes)
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    encoder.train()
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine_with_warmup(step, total, max(1, total // 10))
        views, labels = next_batch()
        loss = F.cross_entropy(classifier(encoder(torch.cat(views))), labels.repeat(len(views)))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
