"""Checkpoints that are either whole or absent, and the one before."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslfast._core.tree import floating

# What a checkpoint of `sslfast pretrain` holds, and of what kind.
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "config": dict,
    "views": dict,
    "seed": int,
    "step": int,
    "method": dict,
    "optimizer": dict,
    "pipeline": dict,
    "rng": Tensor,
    "losses": list,
    "seconds": list,
}


def previous(path: Path) -> Path:
    """Where the checkpoint that ``path`` replaced is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: a temporary file first, on the disk, then renamed over it.

    The checkpoint that was there is kept beside it, see `previous`.

    Raises:
        OSError: it cannot be written, for want of room for instance; the file is named, what was
            there is as it was, and nothing half-written stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        reason = cause.strerror or str(cause)
        raise OSError(f"{path} cannot be written: {reason}") from error
    if path.exists():
        os.replace(path, previous(path))
    os.replace(temporary, path)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that torch's writer made a RuntimeError of."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: tensors and plain values, never code.

    Raises:
        ValueError: no such file, a damaged one (the checksum of each part is compared), or not a
            checkpoint of this version of sslfast. The file is named.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a checkpoint of sslfast")
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a readable checkpoint: it holds more than tensors and plain values"
        ) from error
    except Exception as error:  # a cut file has as many ways to fail as it has bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} differs from its checksum")
    if not isinstance(state, dict) or not {"config", "method", "step"} <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of sslfast pretrain")
    _check_fields(path, state)
    return state


def _check_fields(path: Path, state: Mapping[str, Any]) -> None:
    for name, kind in FIELDS.items():
        if name not in state:
            raise ValueError(f"{path} is not a checkpoint of this version: {name} is missing")
        if not isinstance(state[name], kind):
            raise ValueError(
                f"{path} is not a checkpoint of this version: {name} is a "
                f"{type(state[name]).__name__}"
            )
    steps = state["config"].get("steps")
    if not isinstance(steps, int) or not 0 <= state["step"] <= steps:
        raise ValueError(f"{path} is at step {state['step']} of {steps}, which is no step of a run")
    for name, value in state["method"].items():
        if not all(bool(each.isfinite().all()) for each in floating(value)):
            raise ValueError(f"{path} holds weights that are not finite: {name}")
