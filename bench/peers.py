"""The contestants beside sslfast: eager PyTorch, ``torch.compile`` of it, and other libraries.

A peer is a function of the case's inputs that returns the same scalar. ``load`` raises
``ImportError`` with one readable line where the library is not there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[..., Any]

BARE_LIGHTLY_PACKAGES = ("lightly.loss", "lightly.models", "lightly.models.modules")


def compiled(objective: Objective) -> Objective:
    """``torch.compile`` of an objective with fixed shapes, its best case."""
    return torch.compile(objective, dynamic=False)


def open_clip_loss(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """open_clip's ``ClipLoss`` on one process: one product per direction, two cross-entropies."""
    per_query = scale * queries @ keys.T  # (N, N)
    per_key = scale * keys @ queries.T  # (N, N)
    labels = torch.arange(len(queries), device=queries.device)
    return (F.cross_entropy(per_query, labels) + F.cross_entropy(per_key, labels)) / 2


def lightly_ntxent() -> Callable[..., Any]:
    """Lightly's ``NTXentLoss`` class.

    Its module needs torch alone, but importing it runs package files that import every image
    model, hence torchvision. Without torchvision the three packages on the way are entered
    without running those files; the class and its memory bank are lightly's own, unchanged.

    Raises:
        ImportError: lightly is not installed.
    """
    if importlib.util.find_spec("lightly") is None:
        raise ImportError("lightly is not installed: pip install lightly")
    # On import lightly asks its server for a newer version unless told that this was done.
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    name = "lightly.loss.ntx_ent_loss"
    if importlib.util.find_spec("torchvision") is not None:
        module = importlib.import_module(name)
    else:
        with _without_torchvision():
            module = importlib.import_module(name)
    loss: Callable[..., Any] = module.NTXentLoss
    return loss


def lightly_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lightly")
    except PackageNotFoundError:
        return None


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Bare parent packages for lightly, and an empty torchvision, for the time of an import."""
    placeholders = [_bare_package(name) for name in BARE_LIGHTLY_PACKAGES]
    placeholders += [ModuleType("torchvision"), ModuleType("torchvision.ops")]
    # `lightly.models.utils` names this layer at import and uses it in vision transformers only.
    placeholders[-1].StochasticDepth = type("StochasticDepth", (), {})  # type: ignore[attr-defined]
    sys.modules.update({module.__name__: module for module in placeholders})
    try:
        yield
    finally:
        for module in placeholders:
            sys.modules.pop(module.__name__, None)


def _bare_package(name: str) -> ModuleType:
    package = ModuleType(name)
    root = importlib.import_module("lightly").__path__[0]
    package.__path__ = [os.path.join(root, *name.split(".")[1:])]
    return package
