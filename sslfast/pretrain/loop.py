"""The training loop: one seed, from wherever its checkpoint stands to the last step."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from sslfast.data.pipeline import Pipeline
from sslfast.evaluation.supervised import cosine_with_warmup
from sslfast.models.checkpoint import load_checkpoint, previous, save_checkpoint
from sslfast.pretrain.config import Config, refuse_difference
from sslfast.pretrain.methods import SimCLR, build_method

WARMUP_SHARE = 0.1


class StopRequest:
    """While entered, SIGINT and SIGTERM ask for a stop after the step; a second one stops at once.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Run:
    """Everything that changes while one seed trains, and how to save it and set it back."""

    def __init__(self, config: Config, seed: int, pipeline: Pipeline) -> None:
        self.config, self.seed, self.pipeline = config, seed, pipeline
        self.method: SimCLR = build_method(config, seed)
        self.optimizer = torch.optim.AdamW(
            self.method.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.step = 0
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def train_step(self) -> None:
        started = time.perf_counter()
        warmup = max(1, round(WARMUP_SHARE * self.config.steps))
        factor = cosine_with_warmup(self.step, self.config.steps, warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        loss: Tensor = self.method(self.pipeline.next_views())
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        value = loss.item()
        if math.isnan(value):
            raise ValueError(
                f"the loss is nan at step {self.step + 1} of seed {self.seed}; "
                f"try an lr below {self.config.lr} or a temperature above "
                f"{self.config.temperature}"
            )
        self.step += 1
        self.losses.append(value)
        self.seconds.append(time.perf_counter() - started)

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.as_dict(),
            "views": self.method.views.as_dict(),
            "seed": self.seed,
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pipeline": self.pipeline.state_dict(),
            "rng": torch.get_rng_state(),
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Set everything back; ValueError if the state is of another configuration."""
        refuse_difference(state["config"], self.config.as_dict(), where)
        refuse_difference({"seed": state["seed"]}, {"seed": self.seed}, where)
        refuse_difference(state["views"], self.method.views.as_dict(), where)
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(_full(state["optimizer"], state["step"]))
            self.pipeline.load_state_dict(state["pipeline"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, KeyError, TypeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where} does not fit this version: {reason}") from error
        self.step = state["step"]
        self.losses, self.seconds = list(state["losses"]), list(state["seconds"])


def _full(optimizer: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The optimizer's state; ValueError where it has none for the steps that were taken."""
    if step and not optimizer["state"]:
        raise ValueError("the optimizer has no state")
    return dict(optimizer)


def _readable(checkpoint: Path) -> Path | None:
    """The checkpoint, or the one before where it is damaged or missing; None where none is."""
    before = previous(checkpoint)
    if not before.exists():
        return checkpoint if checkpoint.exists() else None
    try:
        load_checkpoint(checkpoint)
    except ValueError as error:
        print(f"{error}; going on from {before}", file=sys.stderr)
        return before
    return checkpoint


def train(
    run: Run,
    checkpoint: Path,
    checkpoint_every: int,
    stop: StopRequest,
    report: Callable[[Run], None],
) -> bool:
    """Train to the last step; False if ``stop`` was requested before.

    Goes on from ``checkpoint`` where it exists, or from the one before where it is damaged. It is
    rewritten every ``checkpoint_every`` steps, at a stop and at the end; ``report`` is called
    after every step.
    """
    found = _readable(checkpoint)
    if found is not None:
        run.load_state_dict(load_checkpoint(found), str(found))
    while run.step < run.config.steps and not stop.requested:
        run.train_step()
        report(run)
        last = run.step == run.config.steps or stop.requested
        if last or run.step % checkpoint_every == 0:
            save_checkpoint(checkpoint, run.state_dict())
    return run.step == run.config.steps
