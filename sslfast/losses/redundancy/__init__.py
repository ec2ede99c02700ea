"""Redundancy-reduction losses: correlations of features, never as a D x D matrix. One file a loss.

Every sum of squared correlations is a `cross_frobenius`, every normalisation over the batch a
`standardize`. What is linear in the correlation matrix is taken before the product: a difference
of two correlations with one factor in common is one product of a difference of rows.
"""

from __future__ import annotations

from sslfast.losses.redundancy._sub_batches import norm_mse_loss
from sslfast.losses.redundancy.barlow_twins import BarlowTwinsLoss, barlow_twins_loss
from sslfast.losses.redundancy.brownian import BrownianLoss, brownian_loss
from sslfast.losses.redundancy.centroid import CentroidLoss, centroid_loss
from sslfast.losses.redundancy.direct_predictor import DirectPredictor
from sslfast.losses.redundancy.hypernetwork import HypernetworkPredictor
from sslfast.losses.redundancy.mixed_barlow_twins import (
    MixedBarlowTwinsLoss,
    mixed_barlow_twins_loss,
)
from sslfast.losses.redundancy.mixup import mixup
from sslfast.losses.redundancy.mmcr import MMCRLoss, mmcr_loss
from sslfast.losses.redundancy.sie import SIELoss, sie_loss
from sslfast.losses.redundancy.singular_values import SingularValueLoss, singular_value_loss
from sslfast.losses.redundancy.tico import TiCoLoss, tico_loss
from sslfast.losses.redundancy.vibcreg import VIbCRegLoss, vibcreg_loss
from sslfast.losses.redundancy.vicreg import VICRegLoss, vicreg_loss
from sslfast.losses.redundancy.vicregl import VICRegLLoss, vicregl_loss
from sslfast.losses.redundancy.whitening import Whitening2d
from sslfast.losses.redundancy.wmse import WMSELoss, wmse_loss

__all__ = [
    "BarlowTwinsLoss",
    "BrownianLoss",
    "CentroidLoss",
    "DirectPredictor",
    "HypernetworkPredictor",
    "MMCRLoss",
    "MixedBarlowTwinsLoss",
    "SIELoss",
    "SingularValueLoss",
    "TiCoLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "VIbCRegLoss",
    "WMSELoss",
    "Whitening2d",
    "barlow_twins_loss",
    "brownian_loss",
    "centroid_loss",
    "mixed_barlow_twins_loss",
    "mixup",
    "mmcr_loss",
    "norm_mse_loss",
    "sie_loss",
    "singular_value_loss",
    "tico_loss",
    "vibcreg_loss",
    "vicreg_loss",
    "vicregl_loss",
    "wmse_loss",
]
