"""The CUDA C++ sorting networks beyond the enumerated samples, run on the CPU.

Both kernels (a thread or a block for a list) at many lengths, what lies in shared and in scratch
memory, how launches are planned, and that the C++ networks are those of Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulation import DEVICE, Launch, emulated
from cuda_emulation import compiled as compiled_source
from torch import Tensor

import sslfast
from sslfast import _library, _nvrtc
from sslfast._core.sorting.network import NETWORKS, RELAXATIONS, layers_of, num_swaps
from sslfast._registry import PRIMITIVES
from sslfast.cuda.sorting import launch as launcher
from sslfast.testing import check_case

SORT = PRIMITIVES["relaxed_sort"]
MASS = PRIMITIVES["sorting_group_mass"]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    yield from emulated(monkeypatch)


@pytest.fixture
def by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No list is short enough for a thread."""
    monkeypatch.setattr(launcher, "LONGEST_OF_THREAD", 0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(primitive: Any, dtype: torch.dtype = torch.float32, **arguments: Any) -> None:
    learning = primitive.differentiable
    check_case(
        primitive.function, primitive.reference, arguments, dtype=dtype, differentiable=learning
    ).require()


def kernels(launches: list[Launch]) -> set[str]:
    return {each.kernel for each in launches}


@pytest.fixture(scope="module")
def comparators() -> Any:
    """From network and length, the comparators that the kernels for one length have."""
    listed = ctypes.CDLL(str(compiled_source(DEVICE / "sorting" / "network.cpp"))).comparators

    def of(network: str, length: int) -> list[tuple[int, int]]:
        number = list(NETWORKS).index(network)
        count = listed(number, length, None)
        pairs = (ctypes.c_int * (2 * count))()
        assert listed(number, length, pairs) == count
        return list(zip(pairs[::2], pairs[1::2], strict=True))

    return of


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_networks_of_the_device_are_those_of_the_tables(network: str, comparators: Any) -> None:
    assert list(NETWORKS) == ["odd_even", "bitonic"]
    for length in range(1, launcher.LONGEST_OF_THREAD + 1):
        table = [pair for layer in layers_of(network, length) for pair in layer]
        assert comparators(network, length) == table


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("length", [3, 6, 14, 16])
def test_a_thread_sorts_lists_of_any_length(
    length: int, network: str, launches: list[Launch]
) -> None:
    """More lists than a block has threads, the last block incomplete; n >= 14 in shared memory."""
    values = random(37, length)
    check(SORT, values=values, network=network, permutation=True)
    groups = (length - 2, 2)
    check(MASS, values=values, group_sizes=groups, cross_entropy=True, network=network)
    check(MASS, values=values, group_sizes=(1, length - 1), network=network, steepness=2.0)
    assert {each.grid for each in launches} == {(2,)}
    assert {each.block for each in launches} == {(launcher.LIST_BLOCK,)}
    names = {
        each.removesuffix(f"_kernel_{network}_{length}_cauchy_float32")
        for each in kernels(launches)
    }
    assert names == {
        "relaxed_sort_fwd",
        "relaxed_sort_bwd",
        "sorting_group_mass_pair",
        "sorting_group_mass_fwd",
        "sorting_group_mass_bwd",
    }


@pytest.mark.parametrize("length", [13, 16])
def test_a_teacher_of_long_lists_goes_to_the_block(length: int, launches: list[Launch]) -> None:
    """Shared memory holds its shares for every comparator only where these are few."""
    values, teacher = random(5, length), random(5, length, seed=1)
    groups = (length - 3, 2, 1)
    check(MASS, values=values, teacher=teacher, group_sizes=groups, cross_entropy=True)
    long = num_swaps("odd_even", length) > launcher.MOST_SWAPS_TAUGHT
    assert long == (length == 16)
    assert {each.block for each in launches} == {(32, 3) if long else (32,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [*range(1, 8), 13, 16, 17, 20, 33, 64, 257])
def test_a_block_sorts_lists_of_any_length(
    length: int, dtype: torch.dtype, by_block: None, launches: list[Launch]
) -> None:
    values = random(3, length)
    check(SORT, dtype, values=values, network="bitonic", steepness=3.0)
    if length > 1:
        last = max(1, length // 3)
        pair = (length - last, last)
        check(MASS, dtype, values=values, group_sizes=pair, cross_entropy=True, network="bitonic")
    assert all(each.grid == (3,) for each in launches)
    assert {each.block[0] for each in launches} == {32 if length <= 256 else 256}


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_thread_and_block_agree(
    relaxation: str, launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sweeps, in other places."""
    values, teacher = random(9, 7).float(), random(9, 7, seed=1).float()
    options: dict[str, Any] = {"relaxation": relaxation, "steepness": 2.0}

    def run() -> list[Tensor]:
        leaf = values.clone().requires_grad_()
        ordered, shares = sslfast.relaxed_sort(leaf, permutation=True, **options)
        masses = sslfast.sorting_group_mass(leaf, (2, 4, 1), **options)
        losses = [
            sslfast.sorting_group_mass(
                leaf, (4, 3), cross_entropy=True, teacher=taught, teacher_steepness=4.0, **options
            )
            for taught in (None, teacher)
        ]
        results = [ordered, shares, masses, *losses]
        gradients = [
            torch.autograd.grad(r.square().sum(), leaf, retain_graph=True)[0] for r in results
        ]
        return [each.detach() for each in (*results, *gradients)]

    of_thread = run()
    assert all("odd_even_7" in each.kernel for each in launches)
    monkeypatch.setattr(launcher, "LONGEST_OF_THREAD", 0)
    launches.clear()
    of_block = run()
    assert all("odd_even_7" not in each.kernel for each in launches)
    for one, other in zip(of_thread, of_block, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("shared", [0, 2000])
def test_what_does_not_fit_lies_in_scratch_memory(
    shared: int, by_block: None, launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparators, or comparators and wires; a block reuses its own for further lists."""
    monkeypatch.setattr(launcher, "SHARED", shared)
    values, teacher = random(7, 19), random(7, 19, seed=1)
    scratch = 8000
    monkeypatch.setattr(launcher, "MOST_SCRATCH", scratch)
    options = {"values": values, "network": "bitonic", "steepness": 2.0}
    check(SORT, permutation=True, **options)
    check(MASS, group_sizes=(5, 14), teacher=teacher, cross_entropy=True, **options)
    assert {each.shared > 0 for each in launches} == {shared > 0}
    assert min(each.grid[0] for each in launches) < 7


def test_bitwise_repeatable_whatever_the_grid(
    by_block: None, launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = random(7, 23).float()

    def run() -> Tensor:
        leaf = values.clone().requires_grad_()
        ordered, shares = sslfast.relaxed_sort(leaf, permutation=True)
        losses = sslfast.sorting_group_mass(leaf, (11, 12), cross_entropy=True)
        loss = ordered.square().sum() + shares.square().sum() + losses.sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return torch.cat([ordered.flatten(), losses, gradient.flatten()]).detach()

    first = run()
    monkeypatch.setattr(launcher, "MOST_BLOCKS", 2)
    assert torch.equal(first, run())
    assert {each.grid for each in launches} == {(7,), (2,)}


def test_without_a_gradient_none_is_formed(launches: list[Launch]) -> None:
    for length in (5, 18):
        values = random(4, length)
        arguments: dict[str, Any] = {"group_sizes": (length - 1, 1), "cross_entropy": True}
        losses = sslfast.sorting_group_mass(values, **arguments)
        torch.testing.assert_close(losses, MASS.reference(values, **arguments))
    assert len(launches) == 2


def test_groups_of_ranks_are_packed() -> None:
    assert launcher.packed([0, 2, 3]) == 0x100
    assert launcher.packed(range(4)) == 0x210
    assert launcher.packed(range(17)) % (1 << 64) == 0xFEDCBA9876543210
    assert -(1 << 63) <= launcher.packed(range(17)) < 1 << 63


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("vectors", [0, 1, 2, 49, 300])
@pytest.mark.parametrize(
    ("network", "length"), [("bitonic", 1), ("bitonic", 49), ("odd_even", 100), ("bitonic", 1024)]
)
def test_plan_of_a_block(network: str, length: int, vectors: int, taught: bool) -> None:
    swaps = num_swaps(network, length)
    shape = launcher.team(5000, length, swaps, 4, vectors, taught)
    x, y = shape.block
    assert x * y <= launcher.TEAM_THREADS
    assert x % 32 == 0
    assert y <= max(1, vectors)
    assert shape.shared <= launcher.SHARED
    assert 1 <= shape.grid <= 5000
    assert 4 * shape.grid * shape.scratch <= launcher.MOST_SCRATCH
    assert (shape.scratch == 0) == (shape.shared_swaps and shape.shared_wires)
    if length == 49:
        assert shape.shared_swaps


def compiled(
    prebuilt: bool, name: str | None, nvrtc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "runs_prebuilt", lambda build: prebuilt and build != "nvrtc")
    monkeypatch.setattr(_library, "cuda_kernel", lambda asked: 1 if asked == name else None)
    monkeypatch.setattr(_nvrtc, "missing_reason", lambda: None if nvrtc else "no cupy")


@pytest.mark.parametrize(
    ("prebuilt", "length", "nvrtc", "build", "thread"),
    [
        (True, 11, False, "", True),  # in the library
        (True, 9, True, "", True),  # compiled on first use
        (True, 9, False, "", False),  # neither
        (True, 9, True, "prebuilt", False),
        (True, 9, False, "nvrtc", True),
        (False, 11, True, "", True),
        (True, 17, True, "", False),  # too long
    ],
)
def test_who_takes_a_list(
    prebuilt: bool,
    length: int,
    nvrtc: bool,
    build: str,
    thread: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "sorting_group_mass_fwd_kernel_odd_even_11_cauchy_float32"
    compiled(prebuilt, name, nvrtc, monkeypatch)
    rule = launcher.SortingRule("odd_even", "cauchy", 1.0, 0.25)
    values = torch.empty(3, length)
    assert launcher.by_thread("sorting_group_mass", values, rule, build) is thread
    assert not launcher.by_thread("sorting_group_mass", values.double(), rule, build)


def test_prebuilt_kernels_are_started_with_the_same_arguments(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's kernels have the names, blocks and arguments of those that NVRTC compiles."""
    name = "sorting_group_mass_pair_kernel_odd_even_11_cauchy_float32"
    values = random(40, 11).float()
    expected = sslfast.sorting_group_mass(values, (10, 1), cross_entropy=True)
    emulate = _nvrtc.launch
    defines = launches[0].defines

    def launch(kernel: str, *start: Any, shared: int = 0) -> None:
        emulate("sorting_group_mass", kernel, *start, shared=shared, defines=defines)

    monkeypatch.setattr(_library, "runs_prebuilt", lambda build: True)
    monkeypatch.setattr(_library, "cuda_kernel", lambda kernel: 1)
    monkeypatch.setattr(_library, "launch", launch)
    assert torch.equal(sslfast.sorting_group_mass(values, (10, 1), cross_entropy=True), expected)
    assert [each.kernel for each in launches] == [name, name]


def test_sources_list_the_prebuilt_kernels() -> None:
    text = (Path(_nvrtc.source_root()) / "cuda" / "sorting" / "group_mass.cu").read_text()
    assert [f"LISTED_OF_LENGTH({length})" in text for length in (11, 12, 13)] == [True] * 3
