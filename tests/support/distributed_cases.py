"""Every loss with `gather_distributed`, on several processes and on one with the whole batch.

THE HOOK, for whoever adds a loss: give its SPEC a sample (size ``"ragged"``) whose arguments hold
``"gather_distributed": True``. On one process that is the same as False, so every other test runs
the sample as it is; here it is run under `DistributedDataParallel` on 2 and 4 processes as well.

- The batch size N of such a sample is a multiple of 4. Every tensor whose first dimension is N
  (that of the first tensor argument) is split among the ranks in rank order: embeddings, features,
  labels, targets. Everything else is the same on every rank.
- Floating tensors of two or more dimensions that are split, but for the loss's `constants`, pass
  through a linear encoder, one for all of the same width, whose gradient
  `DistributedDataParallel` averages; 0-dim floating tensors (a temperature, a logit scale) become
  parameters, so make the temperature a tensor where it may be learnable.
- The mean over ranks of the loss must be the loss of the whole batch, the averaged gradient of
  the parameters its gradient, and W times (W ranks) its gradient with respect to a rank's rows
  what this rank's rows receive.

A loss whose functional twin has `gather_distributed` and no such sample fails the test.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslfast._registry import LOSSES, Loss, Sample
from sslfast.distributed import rank, world_size

SEED = 2026


@dataclass(frozen=True)
class GatherCase:
    """A loss at a sample that gathers."""

    loss: Loss
    sample: Sample

    def __str__(self) -> str:
        return f"{self.loss.name}-{self.sample.name}"

    def arguments(self) -> dict[str, Any]:
        return self.sample.make(torch.Generator().manual_seed(SEED))


def gathers(loss: Loss) -> bool:
    return "gather_distributed" in inspect.signature(loss.functional).parameters


CASES = tuple(
    case
    for loss in LOSSES.values()
    if gathers(loss)
    for sample in loss.samples
    if (case := GatherCase(loss, sample)).arguments().get("gather_distributed")
)


class Encoded(nn.Module):
    """A loss of linearly encoded rows; 0-dim floating arguments are its parameters."""

    def __init__(self, loss: Loss, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.loss = loss
        rows = split_names(arguments)
        options = {name: value for name, value in arguments.items() if name not in rows}
        learnable = {n: v for n, v in options.items() if isinstance(v, Tensor) and v.ndim == 0}
        self.learnable = nn.ParameterDict({n: nn.Parameter(v) for n, v in learnable.items()})
        self.options = {name: value for name, value in options.items() if name not in learnable}
        widths = {arguments[n].shape[-1]: None for n in rows if encodable(loss, n, arguments[n])}
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict(
            {str(dim): nn.Linear(dim, dim, bias=False, dtype=torch.float64) for dim in widths}
        )

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        encoded = {
            name: self.encoders[str(v.shape[-1])](v) if encodable(self.loss, name, v) else v
            for name, v in rows.items()
        }
        loss: Tensor = self.loss.functional(**encoded, **self.learnable, **self.options)
        return loss


def encodable(loss: Loss, name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and name not in loss.constants


def split_names(arguments: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that are split among the ranks."""
    tensors = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and v.ndim > 0}
    batch = len(next(iter(tensors.values())))
    return [name for name, value in tensors.items() if len(value) == batch]


def run(case: GatherCase) -> dict[str, Tensor]:
    """Loss, gradients of this rank's rows and of the parameters, on this rank of however many."""
    arguments = case.arguments()
    rows = {}
    for name in split_names(arguments):
        part = arguments[name].chunk(world_size())[rank()].clone()
        rows[name] = part.requires_grad_() if encodable(case.loss, name, part) else part
    model: nn.Module = Encoded(case.loss, arguments)
    if world_size() > 1:
        model = DistributedDataParallel(model)
    loss = model(rows)
    loss.backward()
    results = {"loss": loss.detach()}
    results.update((f"d{n}", v.grad) for n, v in rows.items() if v.requires_grad)
    results.update((f"d{n.removeprefix('module.')}", p.grad) for n, p in model.named_parameters())
    return results
