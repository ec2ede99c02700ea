"""Soft ranks and soft sorting: proofs of optimality, blocks, known values, limits, errors."""

from __future__ import annotations

import math

import density
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
from sslfast._registry import PRIMITIVES
from sslfast.functional import soft_rank, soft_sort
from sslfast.testing import check_case

pytestmark = pytest.mark.primitives("isotonic_rank")
PRIMITIVE = PRIMITIVES["isotonic_rank"]
REGULARIZATIONS = ("l2", "kl")
OUTPUTS = ("rank", "sort")
of_both = pytest.mark.parametrize("regularization", REGULARIZATIONS)
of_all = [(output, each) for output in OUTPUTS for each in REGULARIZATIONS]


def lists(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def positions(values: Tensor) -> Tensor:
    return torch.arange(1, values.shape[-1] + 1, dtype=values.dtype)


def projected(values: Tensor, output: str, regularization: str, strength: float) -> Tensor:
    return sslfast.isotonic_rank(
        values,
        output=output,
        regularization=regularization,
        regularization_strength=strength,
    )


def problem(
    values: Tensor, result: Tensor, output: str, regularization: str, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(mu, vertex, slope): what was projected to mu, on the permutahedron of `vertex`.

    `slope` is the gradient there of what the projection maximises, z - mu or z - log mu. Values are
    sorted in descending order of their negatives, so with kl the exponentials of those are mixed.
    """
    rho = positions(values)
    if output == "rank":
        mu = result
        slope = values / strength - (mu if regularization == "l2" else mu.log())
        return mu, rho.expand_as(mu), slope
    if regularization == "l2":
        return result, values, rho / strength - result
    return (-result).exp(), (-values).exp(), result - rho / strength


def assert_optimal(mu: Tensor, vertex: Tensor, slope: Tensor) -> None:
    """mu is in the permutahedron, and no vertex lies uphill of it: it is the projection."""
    ascending, bound = mu.sort(-1).values, vertex.sort(-1).values
    size = bound.abs().sum(-1, keepdim=True)
    # mu is majorised by the vertex: its k least never sum to less
    excess = (bound - ascending).cumsum(-1)
    assert (excess <= 1e-9 * size).all()
    torch.testing.assert_close(mu.sum(-1), vertex.sum(-1), rtol=1e-11, atol=1e-11)
    # max over vertices v of <slope, v> is that of the same order
    best = (slope.sort(-1).values * bound).sum(-1)
    found = (slope * mu).sum(-1)
    scale = (slope.abs().amax(-1, keepdim=True) * size).squeeze(-1)
    assert (best - found <= 1e-11 * scale).all()


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0, 7.0, 100.0])
@pytest.mark.parametrize(("output", "regularization"), of_all)
def test_result_is_the_projection(
    output: str, regularization: str, strength: float, cpu_backend: str
) -> None:
    """By the variational inequality, which knows no algorithm."""
    for length in (1, 2, 3, 17, 64):
        values = lists(6, length, seed=length)
        result = projected(values, output, regularization, strength)
        assert_optimal(*problem(values, result, output, regularization, strength))


@pytest.mark.parametrize(("output", "regularization"), of_all)
def test_result_of_a_long_list_is_the_projection(output: str, regularization: str) -> None:
    values = lists(2, 30_000, scale=1.0)
    strength = 1e-3 if output == "rank" else 1e3
    with sslfast.backend("cpu"):
        result = projected(values, output, regularization, strength)
    assert_optimal(*problem(values, result, output, regularization, strength))


def test_a_wrong_projection_is_found_out() -> None:
    """The hard ranks, the mean rank and ranks beyond n are refused by the same proof."""
    values = lists(1, 9)
    hard = values.argsort(-1).argsort(-1).double() + 1
    for wrong in (hard, torch.full_like(hard, 5.0), 2 * hard - 5):
        with pytest.raises(AssertionError):
            assert_optimal(*problem(values, wrong, "rank", "l2", 1.0))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    """Any lengths and strengths; ties in half of the lists, all on a grid that sums exactly."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 60))
    grid = draw(st.sampled_from([1.0, 64.0, 4096.0]))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = values * draw(st.sampled_from([0.5, 2.0, 30.0]))
    return {
        "values": (values * grid).round() / grid,
        "output": draw(st.sampled_from(OUTPUTS)),
        "regularization": draw(st.sampled_from(REGULARIZATIONS)),
        "regularization_strength": 2.0 ** draw(st.integers(-6, 6)),
    }


@settings(max_examples=density.examples(60), deadline=None, derandomize=True)
@given(case=cases(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_any_case(case: dict[str, object], dtype: torch.dtype) -> None:
    """Values and gradients of the kernel against the closed form and autograd through it."""
    with sslfast.backend("cpu"):
        report = check_case(PRIMITIVE.function, PRIMITIVE.reference, case, dtype=dtype)
    report.require()


def leaves(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(("ours", "theirs"), [(soft_rank, "soft_rank"), (soft_sort, "soft_sort")])
@of_both
def test_parity_with_torchsort(ours, theirs: str, regularization: str, strength: float) -> None:
    torchsort = pytest.importorskip("torchsort", reason="torchsort is not installed")
    for length in (1, 2, 7, 40):
        values = lists(5, length, seed=length)
        weights = torch.rand(5, length, dtype=torch.float64)
        mine, other = leaves(values), leaves(values)
        options = {
            "regularization": regularization,
            "regularization_strength": strength,
        }
        result = ours(mine, **options)
        expected = getattr(torchsort, theirs)(other, **options)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
        (gradient,) = torch.autograd.grad(result, mine, weights)
        (wanted,) = torch.autograd.grad(expected, other, weights)
        # their gradient takes exponentials of the values as they are, which overflow
        known = values.abs() / strength < 700
        torch.testing.assert_close(gradient[known], wanted[known], rtol=1e-10, atol=1e-10)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("function", "regularization", "values", "expected"),
    [
        (soft_rank, "l2", [0.5, 0.0], [1.75, 1.25]),  # 1.5 +- half the gap
        (soft_rank, "l2", [5.0, 3.0, 9.0], [2.0, 1.0, 3.0]),  # gaps above 1: hard
        (soft_rank, "l2", [4.0, 4.0, 4.0], [2.0, 2.0, 2.0]),
        (soft_rank, "kl", [0.0, math.log(1.5)], [1.2, 1.8]),  # 1 : 1.5 of the sum 3
        (soft_rank, "kl", [0.0, math.log(3.0)], [1.0, 2.0]),  # more than 1 : 2: hard
        (soft_sort, "l2", [3.0, 0.0], [1.0, 2.0]),  # mean 1.5, one apart
        (soft_sort, "l2", [0.5, 0.0], [0.0, 0.5]),  # gap below 1: hard
        (soft_sort, "kl", [0.5, 0.0], [0.0, 0.5]),
    ],
)
def test_known_values(
    function, regularization: str, values: list[float], expected: list[float], cpu_backend: str
) -> None:
    result = function(torch.tensor(values, dtype=torch.float64), regularization=regularization)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_sorted_by_kl_is_a_soft_minimum(cpu_backend: str) -> None:
    """Of one block, out_i = i + lse(-1, -2) - lse(-0, -3)."""
    result = soft_sort(torch.tensor([3.0, 0.0], dtype=torch.float64), regularization="kl")
    start = math.log(math.exp(-1) + math.exp(-2)) - math.log(1 + math.exp(-3))
    expected = torch.tensor([start + 1, start + 2], dtype=torch.float64)
    torch.testing.assert_close(result, expected)


@of_both
def test_ties_share_rank_and_gradient(regularization: str, cpu_backend: str) -> None:
    values = leaves(torch.tensor([[2.0, 7.0, 2.0, 2.0, -1.0]]))
    ranks = soft_rank(values, regularization, 0.25)
    assert ranks[0, 0] == ranks[0, 2] == ranks[0, 3]
    torch.testing.assert_close(ranks[0, 0], torch.tensor(3.0))
    (gradient,) = torch.autograd.grad(ranks[0, 0], values)
    assert gradient[0, 1] == gradient[0, 4] == 0
    torch.testing.assert_close(gradient[0, 2], gradient[0, 3])
    torch.testing.assert_close(gradient.sum(), torch.tensor(0.0))


@pytest.mark.parametrize(("output", "regularization"), of_all)
def test_blocks_that_meet_have_the_gradient_of_their_union(
    output: str, regularization: str, cpu_backend: str
) -> None:
    """Two values exactly one strength apart, or log 2 apart for the exponentials of 1 and 2."""
    gap = math.log(2.0) if (output, regularization) == ("rank", "kl") else 1.0
    gradients = []
    for nudge in (0.0, -1e-9 if output == "rank" else 1e-9):
        values = torch.tensor([[0.0, gap + nudge]], dtype=torch.float64, requires_grad=True)
        if nudge == 0.0 and regularization == "kl":
            continue  # no exact tie of exponentials: either is right
        result = projected(values, output, regularization, 1.0)
        gradients += torch.autograd.grad(result[0, 0], values)
        assert gradients[-1].count_nonzero() == 2
    torch.testing.assert_close(gradients[0], gradients[-1])


@pytest.mark.parametrize("strength", [1e-300, 1e300])
@pytest.mark.parametrize(("output", "regularization"), of_all)
def test_extreme_strengths_are_the_limits(
    output: str, regularization: str, strength: float, cpu_backend: str
) -> None:
    values = leaves(lists(3, 11))
    result = projected(values, output, regularization, strength)
    hard = values.argsort(-1).argsort(-1).double() + 1
    if strength < 1:
        expected = hard if output == "rank" else values.sort(-1).values
    elif output == "rank":
        expected = torch.full_like(result, 6.0)
    elif regularization == "l2":
        expected = values.mean(-1, keepdim=True).expand_as(values)
    else:
        mean = math.log(11) - (-values).logsumexp(-1, keepdim=True)
        expected = mean.expand_as(values)
    torch.testing.assert_close(result, expected.detach())
    (gradient,) = torch.autograd.grad(result.square().sum(), values)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_beyond_256(dtype: torch.dtype, cpu_backend: str) -> None:
    values = torch.linspace(-2, 2, 301).to(dtype)
    ranks = soft_rank(values, regularization_strength=1e-4)
    assert ranks.dtype == torch.float32
    assert ranks.sum() == 301 * 302 / 2
    assert ranks.max() > 298


def test_leading_dimensions(cpu_backend: str) -> None:
    values = lists(2, 3, 5)
    for function in (soft_rank, soft_sort):
        whole = function(values)
        assert whole.shape == values.shape
        torch.testing.assert_close(whole[1, 2], function(values[1, 2]))
        assert function(values[:, :0]).shape == (2, 0, 5)


def test_no_second_derivative(cpu_backend: str) -> None:
    values = leaves(lists(2, 5))
    (gradient,) = torch.autograd.grad(soft_rank(values).square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), values)


MATRIX = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(value: float, cpu_backend: str) -> None:
    values = MATRIX.clone()
    values[1, 2] = value
    with pytest.raises(ValueError, match=rf"^values must be finite, got {value} at index \(1, 2\)"):
        sslfast.isotonic_rank(values)
    with pytest.raises(ValueError, match=r"^values must be finite"):
        soft_sort(values)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"values": [[1.0]]}, TypeError, "values must be a tensor, got list"),
        ({"values": MATRIX.long()}, TypeError, "values must be floating point .* torch.int64"),
        ({"values": MATRIX[:, :0]}, ValueError, r"values must be lists .* got shape \(2, 0\)"),
        ({"values": torch.tensor(1.0)}, ValueError, r"values must be lists .* got shape \(\)"),
        ({"regularization": "l1"}, ValueError, "regularization must be one of .* got 'l1'"),
        ({"regularization_strength": "1"}, TypeError, "strength must be a number, got str"),
        ({"regularization_strength": True}, TypeError, "strength must be a number, got bool"),
        ({"regularization_strength": 0.0}, ValueError, "strength must be .* above 0, got 0.0"),
        ({"regularization_strength": math.nan}, ValueError, "strength must be finite .* got nan"),
        ({"regularization_strength": math.inf}, ValueError, "strength must be finite .* got inf"),
    ],
)
def test_errors_name_the_argument(options: dict, error: type[Exception], message: str) -> None:
    for function in (sslfast.isotonic_rank, soft_rank, soft_sort):
        with pytest.raises(error, match=message):
            function(**{"values": MATRIX, **options})


def test_errors_of_the_primitive_alone() -> None:
    with pytest.raises(ValueError, match=r"values must be lists \(B, n\) .* got shape \(3,\)"):
        sslfast.isotonic_rank(MATRIX[0])
    with pytest.raises(ValueError, match=r"output must be one of .* got 'order'"):
        sslfast.isotonic_rank(MATRIX, output="order")
