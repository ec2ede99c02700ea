"""Four small convolutions and an MLP projector: what two CPU cores can pretrain in minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Four 3 x 3 convolutions with max pooling in between, then the mean over places.

    Args:
        channels: of the image, 1 or 3, default 1.
        width: channels after the first convolution, doubled by each further one, default 16.

    Features: D = ``8 * width``. The last convolution sees 38 x 38 pixels, all of a 32 x 32 image.
    Strided convolutions instead of pooling see 31 and learned clearly worse in the same time.
    """

    def __init__(self, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        sizes = (channels, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for stage in range(4):
            inputs, outputs = sizes[stage], sizes[stage + 1]
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            # Pooled before the norm: batch norm and ReLU then have a quarter of the work.
            layers += [nn.MaxPool2d(2)] if stage < 3 else []
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.out_features = sizes[-1]
        # Channels last is about twice as fast as the default layout for these shapes on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """float ``(B, C, H, W)`` in [0, 1], H and W at least 8, to ``(B, 8 * width)``."""
        maps: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        return maps.mean(dim=(2, 3))


class Projector(nn.Sequential):
    """The two-layer MLP head of SimCLR (Chen et al. 2020, section 4.2), batch norm in between.

    Args:
        in_features: D of the encoder.
        hidden: width of the hidden layer, default 256.
        out_features: D of the projections the loss sees, default 128.
    """

    def __init__(self, in_features: int, hidden: int = 256, out_features: int = 128) -> None:
        super().__init__(
            nn.Linear(in_features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_features),
        )
