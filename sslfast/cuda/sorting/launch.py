"""What the launchers of the two sorting primitives share (csrc/cuda/sorting).

A thread takes a short list, with a kernel for just its length; a block takes any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from sslfast import _library, _nvrtc
from sslfast._core.sorting.network import RELAXATIONS, SortingRule, num_swaps, swap_table
from sslfast.cuda._start import Argument, start

LIST_BLOCK = 32  # lists of a block, a thread each
LONGEST_OF_THREAD = 16
MOST_SWAPS_TAUGHT = 80  # comparators whose shares of a teacher fit a thread's shared memory

TEAM_THREADS = 256
LONGEST_OF_WARP = 256
SHARED = 44 << 10  # bytes of shared memory of a block, beside what kernels declare
MOST_BLOCKS = 65536
MOST_SCRATCH = 64 << 20  # bytes of scratch memory of all blocks


@dataclass(frozen=True)
class Team:
    """A block for a list: its threads, what they keep where, and how many blocks there are."""

    block: tuple[int, int]
    grid: int
    shared_wires: bool
    shared_swaps: bool
    shared: int  # bytes of a block
    scratch: int  # numbers of a block


def team(lists: int, length: int, swaps: int, width: int, vectors: int, taught: bool) -> Team:
    """How lists are shared out.

    Args:
        lists: B.
        length: n.
        swaps: comparators of the network.
        width: bytes of a number.
        vectors: that are carried, one for each group; 0 where values alone are sorted.
        taught: with a teacher.
    """
    x = 32 if length <= LONGEST_OF_WARP else TEAM_THREADS
    most = max(1, min(vectors, TEAM_THREADS // x))
    shapes = [y for y in (8, 4, 2, 1) if y < most]
    for y in (most, *shapes):
        wires, kept = _numbers(length, swaps, y if vectors else 0, taught)
        if width * (wires + kept) <= SHARED:
            shared = width * (wires + kept)
            return Team((x, y), min(lists, MOST_BLOCKS), True, True, shared, 0)
    wires, kept = _numbers(length, swaps, most if vectors else 0, taught)
    shared_wires = width * wires <= SHARED
    scratch = kept if shared_wires else wires + kept
    grid = max(1, min(lists, MOST_SCRATCH // (width * scratch)))
    return Team((x, most), grid, shared_wires, False, width * wires * shared_wires, scratch)


def _numbers(length: int, swaps: int, vectors: int, taught: bool) -> tuple[int, int]:
    """Of wires and of comparators that a block keeps, as TeamSort in sorting/team.cuh does."""
    wires = length * (1 + vectors * (1 + taught))
    return wires, swaps * (1 + bool(vectors) + vectors + taught)


def by_thread(
    source: str, values: Tensor, rule: SortingRule, build: str, *, taught: bool = False
) -> bool:
    """Whether a thread takes a list: short ones of float32, where there is a kernel for them."""
    length = values.shape[1]
    if values.dtype != torch.float32 or length > LONGEST_OF_THREAD:
        return False
    if taught and num_swaps(rule.network, length) > MOST_SWAPS_TAUGHT:
        return False
    if not _library.runs_prebuilt(build):
        return True
    compiled = _library.cuda_kernel(_name(f"{source}_fwd", rule, length)) is not None
    return compiled or (build == "" and _nvrtc.missing_reason() is None)


def run_threads(
    source: str,
    kernel: str,
    arguments: Sequence[Argument],
    values: Tensor,
    rule: SortingRule,
    build: str,
) -> None:
    """A thread for each list of `values`; `arguments` of the kernel up to the rule's numbers."""
    lists, length = values.shape
    if lists == 0:
        return
    name = _name(f"{source}_{kernel}", rule, length)
    grid, block = (-(-lists // LIST_BLOCK),), (LIST_BLOCK,)
    given = defines(rule.relaxation, length, rule.network)
    start(source, name, grid, block, arguments, build, defines=given)


def run_teams(
    source: str,
    kernel: str,
    tensors: Sequence[Argument],
    values: Tensor,
    bounds: Sequence[int],
    rule: SortingRule,
    build: str,
    *,
    taught: bool = False,
    numbers: Sequence[float] = (),
) -> None:
    """A block for each list of `values`; no bounds of groups where values alone are sorted."""
    lists, length = values.shape
    if lists == 0:
        return
    pairs, begins = swap_table(rule.network, length, values.device)
    groups = max(0, len(bounds) - 1)
    width = values.element_size()
    shape = team(lists, length, len(pairs), width, groups, taught)
    scratch = values.new_empty(shape.grid * shape.scratch) if shape.scratch else 0
    arguments = (
        *tensors,
        pairs,
        begins,
        _bounds(tuple(bounds), values.device),
        lists,
        len(begins) - 1,
        length,
        groups,
        int(shape.shared_wires),
        int(shape.shared_swaps),
        scratch,
        shape.scratch,
        *numbers,
    )
    dtype = str(values.dtype).removeprefix("torch.")
    name = f"{source}_{kernel}_kernel_{rule.relaxation}_{dtype}"
    start(
        source,
        name,
        (shape.grid,),
        shape.block,
        arguments,
        build,
        shared=shape.shared,
        defines=defines(rule.relaxation),
    )


def packed(bounds: Sequence[int]) -> int:
    """The group of each of up to 16 ranks in four bits, as a signed number of 64 bits."""
    groups = 0
    for group, (begin, end) in enumerate(pairwise(bounds)):
        for rank in range(begin, end):
            groups |= group << 4 * rank
    return groups - (1 << 64 if groups >> 63 else 0)


def defines(relaxation: str, length: int = 0, network: str = "") -> _nvrtc.Defines:
    """The macros of kernels for any length, or for just one."""
    given = (f"SSLFAST_RELAXATION={relaxation}",)
    return (*given, f"SSLFAST_NETWORK={network}", f"SSLFAST_LENGTH={length}") if length else given


def _name(kernel: str, rule: SortingRule, length: int) -> str:
    return f"{kernel}_kernel_{rule.network}_{length}_{rule.relaxation}_float32"


@cache
def _bounds(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device, once: a copy is refused while a graph is captured."""
    return torch.tensor(bounds or (0,), dtype=torch.int32, device=device)


def _specialisations() -> tuple[_nvrtc.Defines, ...]:
    """Every relaxation at the longest list that stays in registers, every kind of length."""
    chosen = [("odd_even", 13, relaxation) for relaxation in RELAXATIONS]
    chosen += [("odd_even", length, "cauchy") for length in (11, 12, 16)]
    chosen += [("bitonic", length, "cauchy") for length in (13, 16)]
    return (*(defines(each) for each in RELAXATIONS), *(defines(r, n, w) for w, n, r in chosen))


SPECIALISATIONS = _specialisations()
