"""The objectives of self-supervised learning as modules, one package a family.

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
from sslfast.losses.ordering import (
    DiffSortNet,
    GroCoLoss,
    ListMLELoss,
    ListNetLoss,
    ListwiseWassersteinLoss,
    NeCoLoss,
    SmoothAPLoss,
)
from sslfast.losses.redundancy import (
    BarlowTwinsLoss,
    BrownianLoss,
    CentroidLoss,
    DirectPredictor,
    HypernetworkPredictor,
    MixedBarlowTwinsLoss,
    MMCRLoss,
    SIELoss,
    SingularValueLoss,
    TiCoLoss,
    VIbCRegLoss,
    VICRegLLoss,
    VICRegLoss,
    Whitening2d,
    WMSELoss,
)

__all__ = [
    "AlignmentLoss",
    "BarlowTwinsLoss",
    "BrownianLoss",
    "CLIPLoss",
    "CentroidLoss",
    "DCLLoss",
    "DCLWLoss",
    "DiffSortNet",
    "DirectPredictor",
    "GroCoLoss",
    "HardNegativeLoss",
    "HypernetworkPredictor",
    "HypersphereLoss",
    "InfoNCELoss",
    "ListMLELoss",
    "ListNetLoss",
    "ListwiseWassersteinLoss",
    "MMCRLoss",
    "MemoryBankModule",
    "MixedBarlowTwinsLoss",
    "NTXentLoss",
    "NeCoLoss",
    "SIELoss",
    "SingularValueLoss",
    "SmoothAPLoss",
    "SupConLoss",
    "TiCoLoss",
    "UniformityLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "VIbCRegLoss",
    "WMSELoss",
    "Whitening2d",
]
