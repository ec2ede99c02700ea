"""The device code of csrc/cuda, run on the CPU (tests/support/cuda_emulation.py).

Values and gradients of every primitive; strides, long rows and many rows of `l2_normalize`: the
very kernels that nvcc and NVRTC compile, started by the launcher that starts them on a GPU. Races
and speed need a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import density
import pytest
import torch
from conftest import CASES, Case
from cuda_emulation import Launch, emulated
from test_numbers import ABSOLUTE_EPS, WELL_CONDITIONED
from torch import Tensor

import sslfast
from sslfast._registry import PRIMITIVES
from sslfast.cuda.rows import blocks
from sslfast.testing import check_case

NORMALIZE = PRIMITIVES["l2_normalize"]
DTYPES = NORMALIZE.implementations["cuda"].dtypes


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    yield from emulated(monkeypatch)


def on_cuda(case: Case) -> bool:
    return "cuda" in case.primitive.implementations


def check(rows: Tensor, dtype: torch.dtype, **options: float) -> None:
    check_case(
        NORMALIZE.function, NORMALIZE.reference, {"embeddings": rows, **options}, dtype=dtype
    ).require()


@pytest.mark.thin(rule=density.emulated)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if on_cuda(case)], ids=str)
def test_values_and_gradients(
    case: Case,
    dtype: torch.dtype,
    launches: list[Launch],
    generator: torch.Generator,
) -> None:
    """Every sample, by the error rule."""
    judged = case.sample.size in WELL_CONDITIONED and dtype != torch.float64
    check_case(
        case.primitive.function,
        case.primitive.reference,
        case.sample.make(generator),
        dtype=dtype,
        differentiable=case.primitive.differentiable,
        mutates=case.primitive.mutates,
        absolute=ABSOLUTE_EPS * torch.finfo(dtype).eps if judged else None,
    ).require()
    assert launches or case.sample.name in ("no_rows", "no_lists")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 8, 513, 2048, 2056, 4095, 9000])
def test_any_number_of_features(
    features: int,
    dtype: torch.dtype,
    launches: list[Launch],
    generator: torch.Generator,
) -> None:
    """A warp or a block a row, packs or single elements, beyond what the registers hold or not."""
    check(torch.randn(3, features, generator=generator, dtype=torch.float64), dtype)
    short = features * torch.empty((), dtype=dtype).element_size() <= blocks.WARP_BYTES
    assert {each.block for each in launches} == {(32, 8) if short else (256, 1)}


@pytest.mark.parametrize("features", [12, 1200])
def test_fewer_blocks_than_rows(
    features: int,
    launches: list[Launch],
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block goes on with further rows, the last of them incomplete."""
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 2)
    check(torch.randn(37, features, generator=generator, dtype=torch.float64), torch.float32)
    assert {each.grid for each in launches} == {(2,)}


# features, width of the matrix they are columns of, where rows and cotangents start in it
APART = [
    (8, 16, 0, 4),  # aligned
    (8, 17, 0, 4),  # every fourth row is
    (8, 16, 1, 4),  # the rows are not
    (8, 16, 0, 3),  # the cotangents are not
    (5, 16, 0, 4),  # the results are not
    (600, 608, 0, 4),
    (600, 609, 0, 4),
    (600, 608, 3, 0),
    (600, 608, 0, 2),
    (599, 608, 4, 0),
]


@pytest.mark.parametrize(("features", "width", "start", "dstart"), APART)
def test_rows_apart_are_not_copied(
    features: int,
    width: int,
    start: int,
    dstart: int,
    launches: list[Launch],
    generator: torch.Generator,
) -> None:
    """Columns of a wider matrix; what lies between the rows is not read."""
    wide = torch.full((5, width), torch.nan)
    rows = wide[:, start : start + features]
    rows.copy_(torch.randn(rows.shape, generator=generator))
    cotangent = torch.full_like(wide, torch.nan)[:, dstart : dstart + features]
    cotangent.copy_(torch.randn(rows.shape, generator=generator))
    leaf = rows.detach().requires_grad_()
    assert leaf.stride() == wide.stride()
    result = sslfast.l2_normalize(leaf)
    (gradient,) = torch.autograd.grad(result, leaf, cotangent)
    truth = NORMALIZE.reference(leaf)
    torch.testing.assert_close(result, truth)
    expected = torch.autograd.grad(truth, leaf, cotangent)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_below_eps(
    dtype: torch.dtype, launches: list[Launch], generator: torch.Generator
) -> None:
    """y = x / eps and dx = dy / eps there, saturated where float16 would overflow."""
    rows = torch.randn(4, 40, generator=generator, dtype=torch.float64)
    rows[0] = 0
    rows[1] *= 1e-3
    check(rows, dtype, eps=0.5)
    leaf = torch.zeros(2, 40, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(sslfast.l2_normalize(leaf, eps=1e-6).sum(), leaf)
    most = min(1e6, torch.finfo(dtype).max)
    torch.testing.assert_close(gradient, torch.full_like(leaf, most), rtol=1e-2, atol=0)


@pytest.mark.parametrize("eps", [1e-12, 1e-300])
def test_special_numbers(eps: float, launches: list[Launch]) -> None:
    """An eps that float32 cannot hold, an overflowing norm, infinity and NaN."""
    rows = torch.tensor([[0.0, 0.0], [1e30, 1.0], [torch.inf, 1.0], [torch.nan, 1.0]])
    result = sslfast.l2_normalize(rows, eps=eps)
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [torch.nan, 0.0], [torch.nan, torch.nan]])
    torch.testing.assert_close(result, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_number_has_no_gradient(
    dtype: torch.dtype, launches: list[Launch], generator: torch.Generator
) -> None:
    """y is exactly 1 or -1, so nothing is left of dy."""
    rows = torch.randn(501, 1, generator=generator).to(dtype).requires_grad_()
    result = sslfast.l2_normalize(rows)
    assert result.detach().abs().eq(1).all()
    (gradient,) = torch.autograd.grad(result, rows, torch.randn_like(rows))
    assert gradient.eq(0).all()


def test_bitwise_repeatable_whatever_the_grid(
    launches: list[Launch],
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(40, 700, generator=generator)

    def run() -> Tensor:
        leaf = rows.clone().requires_grad_()
        result = sslfast.l2_normalize(leaf)
        return torch.cat([result, *torch.autograd.grad(result, leaf, rows.flip(0))]).detach()

    first = run()
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 3)
    assert torch.equal(first, run())
