"""The losses as functions of tensors: no state, keyword options, field terms."""

from __future__ import annotations

from sslfast.losses.contrastive import ntxent_loss

__all__ = ["ntxent_loss"]
