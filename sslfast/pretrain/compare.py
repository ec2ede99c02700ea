"""Fused against eager for the very loss of a run: its projections, its temperature."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sslfast._memory import peak_memory_of
from sslfast._registry import LOSSES

SECONDS = 6.0
ROUNDS = (5, 200)


@dataclass(frozen=True)
class Timing:
    """Forward and backward of one form of the loss.

    ``peak_bytes`` is the peak above the inputs, gradients included, in a process of its own; None
    where this system cannot tell (``peak_error`` says why).
    """

    minimum_ms: float
    median_ms: float
    rounds: int
    value: float
    peak_bytes: int | None
    peak_error: str = ""


def _forms() -> dict[str, Callable[..., Tensor]]:
    spec = LOSSES["NTXentLoss"]
    return {"fused": spec.functional, "eager": spec.eager}


def _step(loss: Callable[..., Tensor], views: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    leaves = [view.detach().requires_grad_() for view in views]
    value = loss(*leaves, temperature=temperature)
    torch.autograd.backward(value)
    return value.detach()


def loss_work(form: str, rows: int, dim: int, temperature: float) -> Callable[[], object]:
    """The work ``peak_memory_of`` measures: forward and backward on random projections."""
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(rows, dim, generator=generator) for _ in range(2))
    return lambda: _step(_forms()[form], (views[0], views[1]), temperature)


def _peak(form: str, rows: int, dim: int, temperature: float) -> tuple[int | None, str]:
    warm_up = {"form": form, "rows": 4, "dim": 4, "temperature": temperature}
    try:
        peak = peak_memory_of(
            "sslfast.pretrain.compare:loss_work",
            {**warm_up, "rows": rows, "dim": dim},
            warm_up=warm_up,
            threads=torch.get_num_threads(),
        )
    except RuntimeError as error:
        return None, str(error)
    return peak, ""


def compare_losses(views: tuple[Tensor, Tensor], temperature: float) -> dict[str, Timing]:
    """Time both forms in turns on the same projections ``(B, D)``, forward and backward.

    Rounds go on for about six seconds (at least 5, at most 200), after one warm-up each. Minima
    are the fairer figure on a shared machine.
    """
    forms = _forms()
    times: dict[str, list[float]] = {name: [] for name in forms}
    values = {name: float(_step(loss, views, temperature)) for name, loss in forms.items()}
    deadline = time.perf_counter() + SECONDS
    while len(times["eager"]) < ROUNDS[1]:
        for name, loss in forms.items():
            started = time.perf_counter()
            _step(loss, views, temperature)
            times[name].append((time.perf_counter() - started) * 1e3)
        if time.perf_counter() > deadline and len(times["eager"]) >= ROUNDS[0]:
            break
    rows, dim = views[0].shape
    timings = {}
    for name, measured in times.items():
        peak, fault = _peak(name, rows, dim, temperature)
        timings[name] = Timing(
            min(measured), statistics.median(measured), len(measured), values[name], peak, fault
        )
    return timings


def as_json(timings: dict[str, Timing]) -> dict[str, Any]:
    return {name: asdict(timing) for name, timing in timings.items()}
