"""Contrastive losses: each row picks its positives among other rows. One file a loss.

Most have one shape: with ``l_i`` the log-sum-exp over the keys that are *not* positives, the term
of row i is ``-log sigmoid(positive_i - l_i)``. Excluding the positive from the sum and comparing
it afterwards has no ``p - 1`` to cancel, and stays exact where there is no negative at all
(``l_i = -inf``: the term is 0).
"""

from __future__ import annotations

from sslfast.losses.contrastive.alignment import AlignmentLoss, alignment_loss
from sslfast.losses.contrastive.clip import CLIPLoss, clip_loss
from sslfast.losses.contrastive.dcl import DCLLoss, dcl_loss
from sslfast.losses.contrastive.dclw import DCLWLoss, dclw_loss, negative_mises_fisher_weights
from sslfast.losses.contrastive.hard_negative import HardNegativeLoss, hard_negative_loss
from sslfast.losses.contrastive.hypersphere import HypersphereLoss, hypersphere_loss
from sslfast.losses.contrastive.infonce import InfoNCELoss, infonce_loss
from sslfast.losses.contrastive.ntxent import NTXentLoss, ntxent_loss
from sslfast.losses.contrastive.supcon import SupConLoss, supcon_loss
from sslfast.losses.contrastive.uniformity import UniformityLoss, uniformity_loss

__all__ = [
    "AlignmentLoss",
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "HardNegativeLoss",
    "HypersphereLoss",
    "InfoNCELoss",
    "NTXentLoss",
    "SupConLoss",
    "UniformityLoss",
    "alignment_loss",
    "clip_loss",
    "dcl_loss",
    "dclw_loss",
    "hard_negative_loss",
    "hypersphere_loss",
    "infonce_loss",
    "negative_mises_fisher_weights",
    "ntxent_loss",
    "supcon_loss",
    "uniformity_loss",
]
