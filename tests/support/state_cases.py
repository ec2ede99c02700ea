"""Losses and modules that keep something from step to step, and their steps.

A loss with a `Loss.state` in the registry is found; what else in `sslfast.losses` has a buffer has
a line in `MODULES`, and a test fails where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._core.tree import map_tensors, tensors
from sslfast._registry import LOSSES, Loss, Sample, State
from sslfast.distributed import rank, world_size
from sslfast.losses import DirectPredictor, MemoryBankModule, Whitening2d, WMSELoss
from sslfast.testing import cast

STEPS = 3
SEED = 2026


@dataclass(frozen=True)
class StateCase:
    """A loss with state at one of its samples, stepped with other batches of the same shapes."""

    loss: Loss
    sample: Sample

    def __str__(self) -> str:
        return f"{self.loss.name}-{self.sample.name}"

    @property
    def state(self) -> State:
        assert self.loss.state is not None
        return self.loss.state

    def arguments(self, step: int, dtype: torch.dtype) -> dict[str, Any]:
        made = self.sample.make(torch.Generator().manual_seed(SEED + step))
        return cast(made, dtype)

    def batch(self, step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """The rows of a step, which learn."""
        made = self.arguments(step, dtype)
        return [made[name].requires_grad_() for name in self.state.batch]

    def own_batch(self, step: int) -> list[Tensor]:
        """This rank's part of so many rows that 4 ranks may share them."""
        rows = (each.detach()[: len(each) // 4 * 4] for each in self.batch(step))
        parts = (each.chunk(world_size())[rank()] for each in rows)
        return [part.clone().requires_grad_() for part in parts]

    def options(self) -> dict[str, Any]:
        """All arguments but batch and state, those that the module has too."""
        left_out = {*self.state.batch, self.state.argument}
        made = self.arguments(0, torch.float64)
        return {name: value for name, value in made.items() if name not in left_out}

    def module(self, **options: Any) -> nn.Module:
        torch.manual_seed(SEED)
        made = self.arguments(0, torch.float64)
        given = {name: made[name] for name in [self.state.argument] if name in made}
        return self.state.module(**given, **self.options(), **options).double()


def copied(state: Any) -> Any:
    return map_tensors(torch.clone, state)


def flat(state: Any) -> list[Tensor]:
    return [each for _, each in tensors(state)]


def needs_it(loss: Loss, sample: Sample) -> bool:
    """Ragged samples; those of a queue where a queue is the state."""
    assert loss.state is not None
    arguments = sample.make(torch.Generator().manual_seed(SEED))
    given = loss.state.argument in arguments
    return sample.size == "ragged" and (given or loss.state.argument == "covariance")


CASES = tuple(
    StateCase(loss, sample)
    for loss in LOSSES.values()
    if loss.state is not None
    for sample in loss.samples
    if needs_it(loss, sample) and not sample.name.startswith("gathered")
)

Rows = Callable[[int], list[Tensor]]


def rows(*shape: int) -> Rows:
    def batch(step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(SEED + step)
        return [torch.randn(shape, generator=generator, requires_grad=True)]

    return batch


@dataclass(frozen=True)
class Stepped:
    """A module that keeps state, whatever it computes, and the arguments of a step."""

    build: Callable[[], nn.Module]
    batch: Rows
    options: Mapping[str, Any]

    def make(self) -> nn.Module:
        torch.manual_seed(SEED)  # the first rows of a bank
        return self.build()

    def step(self, module: nn.Module, batch: list[Tensor]) -> Any:
        torch.manual_seed(SEED)  # the sub-batches of W-MSE
        return module(*batch, **self.options)


def _of(case: StateCase) -> Stepped:
    def batch(step: int) -> list[Tensor]:
        return case.batch(step, torch.float32)

    return Stepped(lambda: case.module().float(), batch, {})


MODULES: dict[str, Stepped] = {
    **{str(case): _of(case) for case in CASES},
    "DirectPredictor": Stepped(lambda: DirectPredictor(5, center=True), rows(16, 5), {}),
    "DirectPredictor-directcopy": Stepped(
        lambda: DirectPredictor(5, rule="directcopy", update_every=3), rows(16, 5), {}
    ),
    "MemoryBankModule": Stepped(
        lambda: MemoryBankModule((9, 5), persistent=True), rows(4, 5), {"update": True}
    ),
    "Whitening2d": Stepped(lambda: Whitening2d(5, eps=0.1), rows(16, 5), {}),
    "WMSELoss": Stepped(lambda: WMSELoss(5, w_size=16, eps=0.1), rows(32, 5), {}),
}


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Every buffer, saved with the state or not."""
    return {name: value.clone() for name, value in module.named_buffers()}


def ranks_step() -> dict[str, list[tuple[Tensor, ...]]]:
    """By case, of every step: loss, gradients of this rank's rows, state afterwards."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for case in CASES:
        module = case.module(gather_distributed=True)
        found[str(case)] = steps = []
        for step in range(STEPS):
            batch = case.own_batch(step)
            loss = module(*batch)
            gradients = torch.autograd.grad(loss, batch)
            steps.append((loss.detach(), *gradients, *flat(copied(case.state.kept(module)))))
    return found
