"""Checkpoints that are either whole or absent."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: a temporary file first, on the disk, then renamed over it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: tensors and plain values, never code.

    Raises:
        ValueError: no such file, or not a checkpoint of sslfast.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a checkpoint of sslfast")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or not {"config", "method", "step"} <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of sslfast pretrain")
    return state
