"""Encoders small enough for a CPU, and the heads of the methods."""

from __future__ import annotations

from sslfast.models.small_conv import Projector, SmallConvNet

__all__ = ["Projector", "SmallConvNet"]
