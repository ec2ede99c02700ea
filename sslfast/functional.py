"""The losses as functions of tensors: no state, keyword options, field terms."""

from __future__ import annotations

from sslfast.losses.contrastive import (
    alignment_loss,
    clip_loss,
    dcl_loss,
    dclw_loss,
    hard_negative_loss,
    hypersphere_loss,
    infonce_loss,
    negative_mises_fisher_weights,
    ntxent_loss,
    supcon_loss,
    uniformity_loss,
)

__all__ = [
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
