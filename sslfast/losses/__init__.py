"""The objectives of self-supervised learning as modules, one file a family.

Class names, arguments, defaults, return shapes and buffers are those of lightly 1.5;
`sslfast.functional` has the same losses as functions.
"""

from __future__ import annotations

from sslfast.losses.contrastive import (
    AlignmentLoss,
    CLIPLoss,
    DCLLoss,
    DCLWLoss,
    HardNegativeLoss,
    HypersphereLoss,
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    UniformityLoss,
)
from sslfast.losses.memory_bank import MemoryBankModule

__all__ = [
    "AlignmentLoss",
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "HardNegativeLoss",
    "HypersphereLoss",
    "InfoNCELoss",
    "MemoryBankModule",
    "NTXentLoss",
    "SupConLoss",
    "UniformityLoss",
]
