"""What the enumerated tests do not know of the Triton `standardize`: groups, strides, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast._core.devices import INTERPRETED
from sslfast._core.rows.standardize import Columns, Scaling
from sslfast._registry import PRIMITIVES
from sslfast.testing import check_case
from sslfast.triton._launch import TARGETS, Launch, recording

pytest.importorskip("triton")
PRIMITIVE = PRIMITIVES["standardize"]
RULE = Scaling(0, 1e-5, "variance", True)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs the kernels")


def record(rows: Tensor, *, given: bool = False, need: bool = False) -> list[Launch]:
    implementation = PRIMITIVE.implementations["triton"]
    with recording(TARGETS["sm_90"]) as recorded:
        vector = rows.new_empty(rows.shape[1], dtype=torch.float32)
        mean, variance = (vector, vector) if given else (None, None)
        y, columns = implementation.forward(rows, mean, variance, RULE)
        columns = Columns(vector, vector, vector[:0]) if given else columns
        implementation.backward(y, vector, vector, rows, columns, RULE, need)
    return recorded


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("shape", [(2, 1), (64, 128), (65, 129), (1100, 3), (1025, 130)], ids=str)
def test_any_number_of_groups_and_strips(
    shape: tuple[int, int], given: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    rows = torch.randn(shape, generator=generator, dtype=torch.float64) + 3
    case = {"embeddings": rows, "statistics": True, "eps": 1e-3}
    if given:
        case["mean"] = torch.randn(shape[1], generator=generator, dtype=torch.float64)
        case["variance"] = 0.1 + torch.rand(shape[1], generator=generator, dtype=torch.float64)
    with sslfast.backend("triton"):
        check_case(
            PRIMITIVE.function,
            PRIMITIVE.reference,
            case,
            dtype=dtype,
            differentiable=PRIMITIVE.differentiable,
        ).require()


@interpreted
@pytest.mark.parametrize("num_rows", [3, 200])
def test_rows_apart_are_not_copied(num_rows: int, generator: torch.Generator) -> None:
    """A slice of a wider matrix, in both directions; what lies between the rows is not read."""
    dim = 133
    wide = torch.full((num_rows, dim + 5), torch.nan)
    wide[:, 2 : dim + 2] = torch.randn(num_rows, dim, generator=generator)
    rows = wide[:, 2 : dim + 2].requires_grad_()
    cotangent = torch.full((num_rows, dim + 3), torch.nan)
    cotangent[:, 3:] = torch.randn(num_rows, dim, generator=generator)
    with sslfast.backend("triton"):
        actual = sslfast.standardize(rows, eps=0.1)
        (gradient,) = torch.autograd.grad(actual, rows, cotangent[:, 3:])
    expected = PRIMITIVE.reference(rows, eps=0.1)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, rows, cotangent[:, 3:])[0], rtol=1e-5, atol=1e-6
    )


def test_launches_read_slices_in_place() -> None:
    wide = torch.empty(60, 400, device="meta")
    for each in record(wide[:, 3:360]):
        strides = [a.stride() for a in each.arguments if isinstance(a, Tensor) and a.ndim == 2]
        if "columns" not in each.kernel.__name__:
            assert (400, 1) in strides
    moments, *_ = record(wide.T)
    assert moments.arguments[0].stride() == (60, 1)


@pytest.mark.parametrize(
    ("given", "need", "kernels"),
    [
        (False, False, ["fwd_moments", "fwd_columns", "fwd", "bwd_sums", "bwd_columns", "bwd"]),
        (True, True, ["fwd", "bwd_sums", "bwd_columns"]),
        (True, False, ["fwd", "bwd_sums"]),
    ],
)
def test_kernels_that_are_started(given: bool, need: bool, kernels: list[str]) -> None:
    """Rows are read twice and written once in each direction; given statistics need one pass."""
    launches = record(torch.empty(300, 200, device="meta"), given=given, need=need)
    assert [each.kernel.__name__ for each in launches] == [
        f"standardize_{kernel}_kernel" for kernel in kernels
    ]


@pytest.mark.parametrize(
    "shape", [(1 << 20, 5000), ((1 << 32) + 3, 2), (1, 1), (256, 8192), (4096, 64)], ids=str
)
def test_the_grid_covers_every_row_and_column(shape: tuple[int, int]) -> None:
    num_rows, dim = shape
    for each in record(torch.empty(shape, dtype=torch.bfloat16, device="meta")):
        (programs,) = each.grid
        assert programs < 1 << 31
        if "columns" in each.kernel.__name__:
            assert programs * each.constants["COLUMNS"] >= dim
            continue
        names = each.kernel.arg_names
        group_rows = each.arguments[names.index("group_rows")]
        strips = -(-dim // each.constants["BLOCK_D"])
        groups, left = divmod(programs, strips)
        assert left == 0
        assert (groups - 1) * group_rows < num_rows <= groups * group_rows


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile")
def test_offsets_of_rows_have_64_bits() -> None:
    """Each matrix of a million rows of thousands of features lies beyond 32 bits."""
    import re

    from sslfast.bench.resources_triton import compile_launch, compiling_for

    matrices = {"fwd_moments": 2, "fwd": 2, "bwd_sums": 2, "bwd": 3}
    with compiling_for("sm_90"):
        for each in record(torch.empty(1 << 20, 5000, device="meta")):
            name = each.kernel.__name__.removeprefix("standardize_").removesuffix("_kernel")
            if name not in matrices:
                continue
            text = compile_launch(each).asm["ttir"]
            offsets = re.findall(r"tt\.addptr .*tensor<16x128x!tt\.ptr<f32>>, .*x(i\d+)>", text)
            assert offsets.count("i64") >= matrices[name], text
            assert "i32" not in offsets, text
