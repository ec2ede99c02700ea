"""Ordering losses: what a ranking of similarities should look like. One file a loss.

Relaxed sorting networks are `relaxed_sort` and `sorting_group_mass`, soft ranks `isotonic_rank`,
the hardest negatives `similarity_topk`; no loss holds an n x n permutation unless its formula
does.
"""

from __future__ import annotations

from sslfast.losses.ordering.diffsort import DiffSortNet
from sslfast.losses.ordering.groco import GroCoLoss, groco_loss
from sslfast.losses.ordering.listmle import ListMLELoss, listmle_loss
from sslfast.losses.ordering.listnet import ListNetLoss, listnet_loss
from sslfast.losses.ordering.neco import NeCoLoss, neco_loss
from sslfast.losses.ordering.smooth_ap import SmoothAPLoss, smooth_ap_loss
from sslfast.losses.ordering.soft_rank import soft_rank, soft_sort
from sslfast.losses.ordering.wasserstein import ListwiseWassersteinLoss, listwise_wasserstein_loss

__all__ = [
    "DiffSortNet",
    "GroCoLoss",
    "ListMLELoss",
    "ListNetLoss",
    "ListwiseWassersteinLoss",
    "NeCoLoss",
    "SmoothAPLoss",
    "groco_loss",
    "listmle_loss",
    "listnet_loss",
    "listwise_wasserstein_loss",
    "neco_loss",
    "smooth_ap_loss",
    "soft_rank",
    "soft_sort",
]
