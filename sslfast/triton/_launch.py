"""How every Triton kernel is started, and how its launches are recorded without a GPU.

A launcher asks `target` what it runs on, picks its block sizes from that, and starts its kernels
with `launch`. Inside ``with recording(target)`` nothing is started: the launches are collected, so
that they can be compiled for another chip, with meta tensors in place of data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sslfast._core import devices
from sslfast.triton import _interpreter


@dataclass(frozen=True)
class Target:
    """What block sizes depend on.

    Args:
        arch: ``"sm_90"``, ``"gfx942"``.
        processors: multiprocessors or compute units.
        shared: bytes of shared memory that one block may have.
    """

    arch: str
    processors: int
    shared: int

    @property
    def is_amd(self) -> bool:
        return self.arch.startswith("gfx")


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel with its run-time arguments and compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


TARGETS = {
    each.arch: each
    for each in (
        Target("sm_80", 108, 166_912),
        Target("sm_90", 132, 232_448),
        Target("sm_100", 148, 232_448),
        Target("gfx942", 304, 65_536),
    )
}

_record: tuple[Target, list[Launch]] | None = None


def target(tensor: Tensor) -> Target:
    """What a kernel on this tensor runs on; the interpreter plays an H100 with two processors."""
    if _record is not None:
        return _record[0]
    if tensor.device.type != "cuda":
        return Target("sm_90", 2, TARGETS["sm_90"].shared)
    return _of_device(tensor.device.index or 0)


@cache
def _of_device(index: int) -> Target:
    """What Triton's own driver says: the numbers against which it checks a launch."""
    from triton.runtime.driver import driver

    with torch.cuda.device(index):
        chip = driver.active.get_current_target()
        properties = driver.active.utils.get_device_properties(index)
    arch = f"sm_{chip.arch}" if chip.backend == "cuda" else chip.arch
    return Target(arch, properties["multiprocessor_count"], properties["max_shared_mem"])


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    **constants: Any,
) -> None:
    """Start a kernel on the current stream; `constants` are its ``tl.constexpr`` parameters.

    An empty grid starts nothing. Triton's interpreter has no use for warps and stages.
    """
    if _record is not None:
        _record[1].append(Launch(kernel, grid, arguments, constants, num_warps, num_stages))
        return
    if 0 in grid:
        return
    first = next(each for each in arguments if isinstance(each, Tensor))
    if not first.is_cuda:
        _interpreter.repair()
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


@contextmanager
def recording(target: Target) -> Iterator[list[Launch]]:
    """Collect launches as they would be on `target`, instead of starting them."""
    global _record
    previous, _record = _record, (target, [])
    devices.recording = True
    try:
        yield _record[1]
    finally:
        _record = previous
        devices.recording = previous is not None
