"""Embeddings of a whole image set, without augmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslfast.data.augment import to_float


@torch.no_grad()
def embed(encoder: nn.Module, images: Tensor, *, chunk: int = 1024) -> Tensor:
    """Features ``(N, D)`` of uint8 images ``(N, C, H, W)``, in evaluation mode.

    The mode of the encoder (training or evaluation) is left as it was found.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        return torch.cat([encoder(to_float(part)) for part in torch.split(images, chunk)])
    finally:
        encoder.train(was_training)
