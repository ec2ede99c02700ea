"""Launching, and recording launches for chips that are not here. Nothing below needs a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sslfast._core.devices import INTERPRETED
from sslfast.triton import _launch
from sslfast.triton._launch import TARGETS, Launch, Target, launch, recording, target

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs the kernels")
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


@interpreted
def test_the_interpreter_takes_stages_and_run_time_bounds() -> None:
    @triton.jit
    def double(values, size, BLOCK: tl.constexpr):  # noqa: N803
        for first in range(0, size, BLOCK):
            at = first + tl.arange(0, BLOCK)
            tl.store(values + at, 2 * tl.load(values + at, mask=at < size), mask=at < size)

    values = torch.arange(7.0)
    launch(double, (1,), values, 7, num_warps=8, num_stages=3, BLOCK=4)
    torch.testing.assert_close(values, 2 * torch.arange(7.0))


@interpreted
def test_the_interpreter_takes_conditions_of_scalars_in_masks() -> None:
    @triton.jit
    def head(values, out, size, first, BLOCK: tl.constexpr):  # noqa: N803
        at = tl.arange(0, BLOCK)
        for step in range(first, first + 2):
            some = tl.load(values + at, mask=(at < size) & (step > first), other=5.0)
            tl.store(out + BLOCK * (step - first) + at, some)

    values, out = torch.arange(4.0), torch.empty(8)
    launch(head, (1,), values, out, 3, 7, BLOCK=4)
    assert out.tolist() == [5, 5, 5, 5, 0, 1, 2, 5]


@interpreted
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_the_interpreter_rounds_to_bfloat16(wide: torch.dtype, generator: torch.Generator) -> None:
    """To the nearest, ties to even, as torch does, from NaN to the smallest numbers; and back."""

    @triton.jit
    def rounded(values, narrow, again, BLOCK: tl.constexpr):  # noqa: N803
        at = tl.arange(0, BLOCK)
        half = tl.load(values + at).to(tl.bfloat16)
        tl.store(narrow + at, half)
        tl.store(again + at, half.to(again.dtype.element_ty))

    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-45, 3.4e38, 1.00390625]
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8])
    values = torch.randn(512, generator=generator) * 10 ** torch.linspace(-40, 38, 512)
    values[: len(special)], values[-3:] = torch.tensor(special), ties
    narrow, again = torch.empty(512, dtype=torch.bfloat16), torch.empty(512, dtype=wide)
    launch(rounded, (1,), values.to(wide), narrow, again, BLOCK=512)
    expected = values.bfloat16()
    torch.testing.assert_close(narrow, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(again, expected.to(wide), rtol=0, atol=0, equal_nan=True)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_interpreter_multiplies(dtype: torch.dtype, generator: torch.Generator) -> None:
    @triton.jit
    def product(left, right, out, BLOCK: tl.constexpr):  # noqa: N803
        row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
        at = row * BLOCK + column
        tl.store(out + at, tl.dot(tl.load(left + at), tl.load(right + at)))

    left, right = (torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(16, 16)
    launch(product, (1,), left, right, out, BLOCK=16)
    torch.testing.assert_close(out, left.float() @ right.float())
