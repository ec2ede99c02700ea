"""A method: which views it wants, its heads, and its loss. The loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslfast._registry import LOSSES
from sslfast.data.recipes import ViewRecipe
from sslfast.losses import NTXentLoss
from sslfast.models import Projector, SmallConvNet
from sslfast.pretrain.config import VIEWS, Config


class _EagerNTXent(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        loss: Tensor = LOSSES["NTXentLoss"].eager(out0, out1, temperature=self.temperature)
        return loss


class SimCLR(nn.Module):
    """SimCLR (Chen et al. 2020): two views, encoder and MLP projector, NT-Xent.

    Both views go through the network in one batch, so batch norm sees 2B rows, as in the paper.
    """

    views: ViewRecipe = VIEWS["simclr"]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = SmallConvNet(self.views.channels, config.width)
        self.projector = Projector(self.encoder.out_features)
        fused = config.loss == "fused"
        temperature = config.temperature
        self.criterion = NTXentLoss(temperature) if fused else _EagerNTXent(temperature)

    def project(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Projections ``(B, D)`` of each view ``(B, C, S, S)``."""
        rows: Tensor = self.projector(self.encoder(torch.cat(tuple(views))))
        return rows.chunk(len(views))

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The 0-dim loss of a batch of views."""
        loss: Tensor = self.criterion(*self.project(views))
        return loss


def build_method(config: Config, seed: int) -> SimCLR:
    """The method with weights drawn from ``seed``; the global generator is seeded on the way."""
    torch.manual_seed(seed)
    return {"simclr": SimCLR}[config.method](config)
