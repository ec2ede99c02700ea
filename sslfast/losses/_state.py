"""What losses keep from step to step: a normal tensor, that a batch with a NaN does not touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def lasting() -> AbstractContextManager[object]:
    """Inside it new tensors are normal ones, also in `torch.inference_mode`; for `no_grad` code.

    A tensor that is made in inference mode cannot be written in place outside of it, and state
    that an evaluation before training makes is written in training.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return _normal()


@contextmanager
def _normal() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():  # leaving inference mode records gradients
        yield


def writable(state: Tensor) -> Tensor:
    """The state itself, or its copy where it was made in inference mode; see `lasting`."""
    if torch.compiler.is_compiling() or not state.is_inference():
        return state
    with lasting():
        return state.clone()


def on_host(finite: Tensor) -> bool:
    """Whether a 0-dim truth can be read here at no cost."""
    return finite.device.type == "cpu" and not torch.compiler.is_compiling()
