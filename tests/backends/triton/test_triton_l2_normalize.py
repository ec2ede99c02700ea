"""What the enumerated tests do not know of the Triton `l2_normalize`: tiles, strides, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast._core.devices import INTERPRETED
from sslfast._registry import PRIMITIVES
from sslfast.testing import check_case
from sslfast.triton._launch import TARGETS, Launch, recording

pytest.importorskip("triton")
PRIMITIVE = PRIMITIVES["l2_normalize"]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs the kernels")


def record(rows: Tensor) -> list[Launch]:
    implementation = PRIMITIVE.implementations["triton"]
    with recording(TARGETS["sm_90"]) as recorded:
        normalized, norm = implementation.forward(rows, 1e-12)
        implementation.backward(torch.empty_like(normalized), rows, norm, 1e-12)
    return recorded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape", [(3000, 3), (5, 2), (3, 5000), (2, 8192), (2, 8193), (2, 20_000)], ids=str
)
@interpreted
def test_any_number_of_features(
    shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Many rows a program, one row a program, a row in several blocks."""
    rows = torch.randn(shape, generator=generator, dtype=torch.float64)
    with sslfast.backend("triton"):
        check_case(
            PRIMITIVE.function, PRIMITIVE.reference, {"embeddings": rows}, dtype=dtype
        ).require()


@interpreted
@pytest.mark.parametrize("dim", [7, 9000])
def test_rows_apart_are_not_copied(dim: int, generator: torch.Generator) -> None:
    """A slice of a wider matrix, in both directions; what lies between the rows is not read."""
    wide = torch.full((6, dim + 5), torch.nan)
    wide[:, 2 : dim + 2] = torch.randn(6, dim, generator=generator)
    rows = wide[:, 2 : dim + 2].requires_grad_()
    cotangent = torch.full((6, dim + 3), torch.nan)
    cotangent[:, 3:] = torch.randn(6, dim, generator=generator)
    with sslfast.backend("triton"):
        actual = sslfast.l2_normalize(rows)
        (gradient,) = torch.autograd.grad(actual, rows, cotangent[:, 3:])
    expected = PRIMITIVE.reference(rows)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, rows, cotangent[:, 3:])[0], rtol=1e-5, atol=1e-6
    )


@interpreted
@pytest.mark.parametrize("dim", [3, 9000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_rows_below_eps(dtype: torch.dtype, dim: int, generator: torch.Generator) -> None:
    """y = x / eps and dx = dy / eps there, saturated where float16 would overflow."""
    rows = torch.randn(4, dim, generator=generator).to(dtype)
    rows[1] = 0
    rows[2] *= 1e-3
    rows[3, 1] = torch.nan
    rows.requires_grad_()
    eps = 0.5 * dim**0.5
    for least in (eps, 1e-30):
        with sslfast.backend("triton"):
            actual = sslfast.l2_normalize(rows, eps=least)
            gradient = torch.autograd.grad(actual.sum(), rows)
        with sslfast.backend("reference"):
            expected = sslfast.l2_normalize(rows, eps=least)
            truth = torch.autograd.grad(expected.sum(), rows)
        tolerance = 4 * torch.finfo(dtype).eps
        for left, right in ((actual, expected), (gradient[0], truth[0])):
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


@interpreted
def test_an_eps_without_a_reciprocal() -> None:
    """1 / eps overflows, and so does the gradient of a zero row where it is not 0."""
    rows = torch.zeros(2, 3, requires_grad=True)
    with sslfast.backend("triton"):
        normalized = sslfast.l2_normalize(rows, eps=1e-45)
        (gradient,) = torch.autograd.grad(
            normalized, rows, torch.tensor([[0.0], [-1.0]]).expand(2, 3)
        )
    assert torch.equal(normalized, torch.zeros(2, 3))
    assert torch.equal(gradient, torch.tensor([[0.0], [-torch.inf]]).expand(2, 3))


def test_launches_read_slices_in_place() -> None:
    """Rows apart, leading dimensions and single features are seen as they lie."""
    wide = torch.empty(6, 40, device="meta")
    forward, backward = record(wide[:, 3:36])
    assert forward.arguments[0].stride() == (40, 1)
    assert backward.arguments[1].stride() == (40, 1)
    (forward, _) = record(torch.empty(3, 5, 8, device="meta"))
    assert forward.arguments[0].shape == (15, 8)
    (forward, _) = record(wide[:, 3:4])
    assert forward.arguments[0].stride(0) == 40
    (forward, _) = record(wide.T)
    assert forward.arguments[0].stride() == (6, 1)


@pytest.mark.parametrize("shape", [(1 << 20, 5000), ((1 << 32) + 3, 2), (1, 1)], ids=str)
def test_the_grid_covers_any_number_of_rows(shape: tuple[int, int]) -> None:
    for each in record(torch.empty(shape, dtype=torch.bfloat16, device="meta")):
        (programs,) = each.grid
        rows = each.constants["ROWS"]
        assert (programs - 1) * rows < shape[0] <= programs * rows
        assert programs < 1 << 31


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile")
@pytest.mark.parametrize("dim", [5000, 9000])
def test_offsets_of_rows_have_64_bits(dim: int) -> None:
    """Each operand of a million rows of thousands of features lies beyond 32 bits."""
    import re

    from sslfast.bench.resources_triton import compile_launch, compiling_for

    with compiling_for("sm_90"):
        for each in record(torch.empty(1 << 20, dim, device="meta")):
            text = compile_launch(each).asm["ttir"]
            widths = re.findall(r"tt\.addptr .*!tt\.ptr<f32>>?, (?:tensor<1x1x)?(i\d+)", text)
            operands = sum(isinstance(argument, Tensor) for argument in each.arguments) - 1
            assert widths.count("i64") >= operands, text
