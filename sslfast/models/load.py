"""An encoder back from a checkpoint of ``sslfast pretrain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sslfast.models.small_conv import SmallConvNet

_PREFIX = "encoder."


def encoder_from_checkpoint(state: Mapping[str, Any]) -> SmallConvNet:
    """The encoder in evaluation mode, from a loaded checkpoint (``load_checkpoint``)."""
    encoder = SmallConvNet(state["views"]["channels"], state["config"]["width"])
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in state["method"].items()
        if name.startswith(_PREFIX)
    }
    encoder.load_state_dict(weights)
    return encoder.eval()
