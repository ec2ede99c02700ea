"""Launching, and recording launches for chips that are not here. Nothing below needs a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sslfast._backends import INTERPRETED
from sslfast.triton import _launch
from sslfast.triton._launch import TARGETS, Launch, Target, launch, recording, target

pytest.importorskip("triton")
META = torch.empty(4, 3, device="meta")


class Kernel:
    """Counts what is started."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.started.append((grid, arguments, options))


def test_recording_starts_nothing() -> None:
    kernel = Kernel()
    with recording(TARGETS["sm_80"]) as recorded:
        launch(kernel, (2, 3), META, 7, num_warps=8, BLOCK=16)
        launch(kernel, (0,), META)
    assert recorded == [
        Launch(kernel, (2, 3), (META, 7), {"BLOCK": 16}, num_warps=8, num_stages=2),
        Launch(kernel, (0,), (META,), {}, num_warps=4, num_stages=2),
    ]
    assert not kernel.started


def test_recording_ends_with_its_block() -> None:
    kernel, rows = Kernel(), torch.empty(2)
    with recording(TARGETS["sm_80"]) as outer:
        with recording(TARGETS["gfx942"]) as inner:
            launch(kernel, (1,), rows)
            assert target(META) is TARGETS["gfx942"]
        assert target(META) is TARGETS["sm_80"]
        with pytest.raises(ZeroDivisionError), recording(TARGETS["sm_90"]):
            _ = 1 // 0
        assert target(META) is TARGETS["sm_80"]
    assert (len(outer), len(inner)) == (0, 1)
    launch(kernel, (5,), rows, num_warps=2, BLOCK=1)
    assert kernel.started == [((5,), (rows,), {"num_warps": 2, "num_stages": 2, "BLOCK": 1})]


def test_an_empty_grid_starts_nothing() -> None:
    kernel = Kernel()
    launch(kernel, (3, 0), torch.empty(2))
    assert not kernel.started


def test_the_interpreter_plays_a_chip_that_is_compiled_for() -> None:
    played = target(torch.empty(1))
    assert played.shared == TARGETS[played.arch].shared


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        (SimpleNamespace(backend="cuda", arch=90), Target("sm_90", 132, 232_448)),
        (SimpleNamespace(backend="cuda", arch=120), Target("sm_120", 132, 232_448)),
        (SimpleNamespace(backend="hip", arch="gfx942"), Target("gfx942", 132, 232_448)),
    ],
    ids=lambda each: each.arch if isinstance(each, Target) else "",
)
def test_a_device_is_what_triton_says_it_is(
    chip: Any, expected: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.driver import driver

    properties = {"multiprocessor_count": 132, "max_shared_mem": 232_448}
    device = SimpleNamespace(
        get_current_target=lambda: chip,
        utils=SimpleNamespace(get_device_properties=lambda index: properties),
    )
    monkeypatch.setattr(driver, "_active", device)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    assert _launch._of_device.__wrapped__(0) == expected
    assert expected.is_amd == (chip.backend == "hip")


@pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs kernels on CPU tensors")
def test_the_interpreter_takes_warps_and_stages() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def double(values, size, BLOCK: tl.constexpr):  # noqa: N803
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(values + at, 2 * tl.load(values + at, mask=at < size), mask=at < size)

    values = torch.arange(7.0)
    launch(double, (2,), values, 7, num_warps=8, num_stages=3, BLOCK=4)
    torch.testing.assert_close(values, 2 * torch.arange(7.0))
