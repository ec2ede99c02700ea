"""Kernels of matrix instructions: what they share with the others, and when they step back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import require_backend
from torch import Tensor

import sslfast
from sslfast import _library
from sslfast._backends import BACKENDS
from sslfast.testing import threads

MATRIX = [name for name in ("emulated", "avx512_bf16", "amx") if name in _library.supported_isas()]
BEST = MATRIX[-1] if MATRIX else "emulated"
VECTOR = [name for name in ("baseline", "avx2", "avx512") if name in _library.supported_isas()]


@pytest.fixture(autouse=True)
def needs_native() -> None:
    require_backend("cpu")


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def rows(num_rows: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(isa: str, queries: Tensor, keys: Tensor, *, correlates: bool = True) -> tuple[Tensor, ...]:
    """Results and gradients of every primitive that multiplies, or of the similarities alone."""
    with sslfast.backend(f"cpu:{isa}"):
        leaves = [each.clone().requires_grad_() for each in (queries, keys)]
        lse = sslfast.similarity_logsumexp(*leaves, scale=0.1)
        symmetric = sslfast.similarity_logsumexp(leaves[0], scale=0.1)
        values = [lse, symmetric, sslfast.similarity_topk(*leaves, 3)[0].reshape(-1)]
        if correlates:
            total = sslfast.cross_frobenius(leaves[0], leaves[1][: len(queries)])
            values.append(total.reshape(1))
        gradients = torch.autograd.grad([each.double().sum() for each in values], leaves)
    return (*gradients, *(each.detach() for each in values))


def test_every_set_is_a_variant() -> None:
    assert set(_library.compiled_isas()) <= set(BACKENDS["cpu"].variants)
    numbers = {isa.name: isa.number for isa in _library.isas().values()}
    assert {name: BACKENDS["cpu"].variants[name]["isa"] for name in numbers} == numbers


def test_what_is_missing_says_why() -> None:
    for isa in _library.isas().values():
        assert isa.missing is None or isa.name in isa.missing or "AMX" in isa.missing


@pytest.mark.parametrize("isa", MATRIX)
@pytest.mark.parametrize(
    "magnitude",
    [float("inf"), 3.4e38, 1e-30],
    ids=["infinite", "rounds_to_infinity", "next_to_nothing"],
)
def test_what_terms_cannot_hold_is_left_to_vector_instructions(isa: str, magnitude: float) -> None:
    queries, keys = rows(21, 40), rows(35, 40, seed=1)
    if magnitude < 1:
        queries = queries * magnitude
    else:
        queries[3, 7] = magnitude
    # cross_frobenius scales such operands before any kernel sees them.
    ours_and_theirs = (run(each, queries, keys, correlates=False) for each in (isa, VECTOR[-1]))
    for ours, theirs in zip(*ours_and_theirs, strict=True):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


@pytest.mark.parametrize("isa", MATRIX)
def test_nan_stays_in_its_row(isa: str) -> None:
    queries, keys = rows(21, 40), rows(35, 40, seed=1)
    queries[5, 3] = torch.nan
    with sslfast.backend(f"cpu:{isa}"):
        lse = sslfast.similarity_logsumexp(queries, keys, scale=0.1)
    assert lse.isnan().nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("isa", [name for name in MATRIX if name != "avx512_bf16"])
@pytest.mark.usefixtures("precision")
def test_float32_follows_the_precision_that_torch_is_asked_for(isa: str) -> None:
    """Each level has about the error of the operands' rounding: 2^-9, 2^-17 and float32's own."""
    queries, keys = rows(64, 96), rows(96, 96, seed=1)
    exact = run("baseline", queries.double(), keys.double())[0]
    errors = []
    for level in ("bf16", "tf32", "ieee"):
        torch.backends.mkldnn.matmul.fp32_precision = level
        gradient = run(isa, queries, keys)[0]
        errors.append(float((gradient - exact).norm() / exact.norm()))
    medium, high, highest = errors
    assert 2**-12 < medium < 2**-7
    assert 2**-22 < high < 2**-15
    assert highest < 2**-20 < medium


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_native_and_emulated_agree(dtype: torch.dtype) -> None:
    if BEST == "emulated":
        pytest.skip("this processor has no matrix instructions")
    queries, keys = rows(70, 33, dtype), rows(100, 33, dtype, seed=1)
    results = zip(run(BEST, queries, keys), run("emulated", queries, keys), strict=True)
    for ours, theirs in results:
        assert (ours - theirs).norm() <= 4 * torch.finfo(ours.dtype).eps * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_of_blocks_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    """From 32 blocks on a task takes a group of them, here two whole ones and a part of one."""
    many = rows(32 * 192 + 5, 8, dtype)

    def result(count: int) -> tuple[Tensor, Tensor]:
        leaf = many.clone().requires_grad_()
        with threads(count), sslfast.backend(f"cpu:{BEST}"):
            lse = sslfast.similarity_logsumexp(leaf, scale=0.1)
            (gradient,) = torch.autograd.grad(lse.sum(), leaf)
        return lse.detach(), gradient

    one = result(1)
    for count in (2, 3, 5):
        assert all(map(torch.equal, one, result(count)))
