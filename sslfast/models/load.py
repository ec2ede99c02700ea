"""An encoder back from a checkpoint of ``sslfast pretrain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sslfast.models.small_conv import SmallConvNet

_PREFIX = "encoder."


def encoder_from_checkpoint(state: Mapping[str, Any], where: str = "checkpoint") -> SmallConvNet:
    """The encoder in evaluation mode, from a loaded checkpoint (``load_checkpoint``).

    Raises:
        ValueError: its weights are not those of an encoder of this version; `where` is named.
    """
    try:
        encoder = SmallConvNet(state["views"]["channels"], state["config"]["width"])
        weights = {
            name.removeprefix(_PREFIX): value
            for name, value in state["method"].items()
            if name.startswith(_PREFIX)
        }
        encoder.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where} holds no encoder of this version: {reason}") from error
    return encoder.eval()
