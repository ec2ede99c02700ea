"""The CUDA C++ kernels on a GPU: what the enumerated tests of tests/gpu/test_gpu.py do not know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_gpu import need
from torch import Tensor

import sslfast
from sslfast import _nvrtc
from sslfast._registry import PRIMITIVES
from sslfast.cuda.rows import blocks
from sslfast.testing import check_case

pytestmark = pytest.mark.gpu

NORMALIZE = PRIMITIVES["l2_normalize"]
DTYPES = NORMALIZE.implementations["cuda"].dtypes


@pytest.fixture(params=["cuda:prebuilt", "cuda:nvrtc"])
def build(request: pytest.FixtureRequest) -> Iterator[str]:
    need(request.param)
    with sslfast.backend(request.param):
        yield request.param


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def both(rows: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Result and gradient."""
    leaf = rows.detach().requires_grad_()
    result = sslfast.l2_normalize(leaf)
    return result.detach(), torch.autograd.grad(result, leaf, cotangent)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 8, 513, 2048, 2056, 9000, 100_003])
def test_any_number_of_features(build: str, features: int, dtype: torch.dtype) -> None:
    check_case(
        NORMALIZE.function,
        NORMALIZE.reference,
        {"embeddings": random(5, features)},
        dtype=dtype,
        device="cuda",
    ).require()


@pytest.mark.parametrize(("num_rows", "features"), [(8 * blocks.MOST_BLOCKS + 3, 5), (70_001, 600)])
def test_more_rows_than_blocks(build: str, num_rows: int, features: int) -> None:
    rows = torch.randn(num_rows, features, device="cuda")
    check = check_case(
        NORMALIZE.function,
        NORMALIZE.reference,
        {"embeddings": rows.cpu()},
        dtype=torch.float32,
        device="cuda",
    )
    check.require()


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
    build: str, features: int, width: int, start: int, dstart: int
) -> None:
    """Columns of a wider matrix; what lies between the rows is not read."""
    wide = torch.full((70, width), torch.nan, device="cuda")
    rows = wide[:, start : start + features]
    rows.copy_(random(70, features))
    cotangent = torch.full_like(wide, torch.nan)[:, dstart : dstart + features]
    cotangent.copy_(random(70, features).flip(0))
    result, gradient = both(rows, cotangent)
    expected, truth = both(rows.contiguous(), cotangent.contiguous())
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_number_has_no_gradient(build: str, dtype: torch.dtype) -> None:
    rows = random(5000, 1).to("cuda", dtype)
    result, gradient = both(rows, rows.flip(0))
    assert result.abs().eq(1).all()
    assert gradient.eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [33, 128, 5000])
def test_prebuilt_and_compiled_kernels_are_one_source(dtype: torch.dtype, features: int) -> None:
    """Two compilers of one version and the same sums: nothing that matters differs."""
    need("cuda:prebuilt")
    need("cuda:nvrtc")
    rows = random(300, features).to("cuda", dtype)
    with sslfast.backend("cuda:prebuilt"):
        prebuilt = both(rows, rows.flip(0))
    with sslfast.backend("cuda:nvrtc"):
        compiled = both(rows, rows.flip(0))
    for one, other in zip(prebuilt, compiled, strict=True):
        torch.testing.assert_close(one, other)


def test_kernels_run_on_the_device_of_their_rows(build: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    rows = random(40, 128).to("cuda:1", torch.float32)
    assert torch.cuda.current_device() == 0
    result, gradient = both(rows, rows.flip(0))
    assert result.device == gradient.device == rows.device
    torch.testing.assert_close(result, NORMALIZE.reference(rows))
    assert torch.cuda.current_device() == 0


def test_compiled_kernels_are_kept_for_the_next_process() -> None:
    need("cuda:nvrtc")
    arch = _nvrtc.architecture(*torch.cuda.get_device_capability())
    _nvrtc.cubin("l2_normalize", arch)
    assert list(_nvrtc.cache_folder().glob(f"l2_normalize-{arch}-*.cubin"))
