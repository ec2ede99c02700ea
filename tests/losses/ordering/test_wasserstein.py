"""List-wise Wasserstein loss: zero at agreement, matrix roots, the authors' form, rank, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslfast.functional import listwise_wasserstein_loss
from sslfast.losses import ListwiseWassersteinLoss

GENERATOR_SEED = 5


def drawn(num_lists: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    scores = torch.randn(num_lists, length, generator=generator, dtype=torch.float64)
    return scores, torch.randint(4, scores.shape, generator=generator).double()


def gradient_of(scores: Tensor, *others: Tensor) -> Tensor:
    leaf = scores.detach().clone().requires_grad_()
    return torch.autograd.grad(listwise_wasserstein_loss(leaf, *others), leaf)[0]


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def moments(lists: Tensor) -> tuple[Tensor, Tensor]:
    return lists.mean(0), lists.T.cov()


def distance_by_roots(scores: Tensor, relevance: Tensor) -> Tensor:
    """|mu - nu|^2 + Tr(C + D - 2 (C^1/2 D C^1/2)^1/2) of the n x n covariances."""
    (mu, c), (nu, d) = moments(scores.softmax(-1)), moments(relevance.softmax(-1))
    inner = root(root(c) @ d @ root(c))
    return (mu - nu).square().sum() + torch.trace(c + d - 2 * inner)


def authors_form(scores: Tensor, relevance: Tensor) -> Tensor:
    """Roots of the eigenvalues of the squared product, 1e-15 added to each."""
    p, y = scores.softmax(-1), relevance.softmax(-1)
    a = (p - p.mean(0)) @ (y - y.mean(0)).T / (len(p) - 1)
    roots = (torch.linalg.eigvals(a @ a.T) + 1e-15).sqrt().abs().sum()
    traces = p.var(0).sum() + y.var(0).sum()
    return (p.mean(0) - y.mean(0)).square().sum() + traces - 2 * roots


@pytest.mark.parametrize("shape", [(2, 9), (8, 8), (5, 31), (31, 5)])
def test_value_by_other_algebra(shape: tuple[int, int]) -> None:
    scores, relevance = drawn(*shape)
    found = listwise_wasserstein_loss(scores, relevance)
    torch.testing.assert_close(found, distance_by_roots(scores, relevance), rtol=0, atol=1e-7)
    limit = 1e-7 * shape[0]
    torch.testing.assert_close(found, authors_form(scores, relevance), rtol=0, atol=limit)


def test_zero_at_agreement() -> None:
    _, relevance = drawn(7, 12)
    assert abs(listwise_wasserstein_loss(relevance + 3.0, relevance).item()) < 1e-15
    assert gradient_of(relevance, relevance).abs().max() < 1e-12
    # and for scores in other units
    scaled = listwise_wasserstein_loss(0.2 * relevance, relevance, temperature=0.2)
    assert abs(scaled.item()) < 1e-15


def test_gradient_against_finite_differences() -> None:
    scores, relevance = drawn(4, 6)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(scores: Tensor, relevance: Tensor, temperature: Tensor) -> Tensor:
        return listwise_wasserstein_loss(scores, relevance, temperature=temperature)

    leaves = (scores.requires_grad_(), relevance.requires_grad_(), temperature)
    assert torch.autograd.gradcheck(loss, leaves)


def test_single_list_is_a_distance_of_means() -> None:
    scores, relevance = drawn(1, 6)
    expected = (scores.softmax(-1) - relevance.softmax(-1)).square().sum()
    torch.testing.assert_close(listwise_wasserstein_loss(scores, relevance), expected)


@pytest.mark.parametrize("kind", ["equal scores", "equal lists", "two ranks", "constant grades"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_for_any_rank(kind: str, dtype: torch.dtype) -> None:
    scores, relevance = drawn(6, 9)
    if kind == "equal scores":
        scores = torch.zeros_like(scores)
    elif kind == "equal lists":
        scores = scores[:1].expand(6, 9).clone()
    elif kind == "two ranks":
        scores = scores[[0, 1, 0, 1, 0, 1]]
    else:
        relevance = torch.ones_like(relevance)
    scores, relevance = scores.to(dtype), relevance.to(dtype)
    gradient = gradient_of(scores, relevance)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1.0
    value = listwise_wasserstein_loss(scores, relevance)
    expected = distance_by_roots(scores.double(), relevance.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_gradient_descends_where_lists_are_equal() -> None:
    """A start without any spread, where the authors' form divides by roots of rounding errors."""
    _, relevance = drawn(6, 9)
    scores = torch.zeros(6, 9, dtype=torch.float64)
    start = listwise_wasserstein_loss(scores, relevance)
    assert listwise_wasserstein_loss(scores - gradient_of(scores, relevance), relevance) < start


def test_documents_of_other_queries_have_grade_zero() -> None:
    scores, _ = drawn(3, 6)
    own = torch.tensor([[3.0, 1.0], [2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    spread = torch.zeros(3, 6, dtype=torch.float64)
    spread[0, :2], spread[1, 2:4], spread[2, 4:] = own
    found = listwise_wasserstein_loss(scores, own)
    torch.testing.assert_close(found, listwise_wasserstein_loss(scores, spread))
    torch.testing.assert_close(found, listwise_wasserstein_loss(scores, own.long()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_wide(dtype: torch.dtype) -> None:
    scores, relevance = (each.to(dtype) for each in drawn(6, 20))
    value = listwise_wasserstein_loss(scores, relevance)
    assert value.dtype == torch.float32
    exact = listwise_wasserstein_loss(scores.double(), relevance.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_module_passes_its_temperature_on() -> None:
    scores, relevance = drawn(4, 6)
    module = ListwiseWassersteinLoss(0.3)
    expected = listwise_wasserstein_loss(scores, relevance, temperature=0.3)
    assert torch.equal(module(scores, relevance), expected)
    assert repr(module) == "ListwiseWassersteinLoss(temperature=0.3)"
    learned = torch.nn.Parameter(torch.tensor(0.3))
    ListwiseWassersteinLoss(learned)(scores, relevance).backward()
    assert learned.grad is not None
    assert learned.grad.isfinite()


SCORES, GRADES = torch.ones(2, 4), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("scores", "grades", "error", "message"),
    [
        (SCORES.long(), GRADES, TypeError, r"scores must be floating point .* got torch.int64"),
        (SCORES[0], GRADES, ValueError, r"scores must be lists \(B, n\).* got shape \(4,\)"),
        (SCORES[:0], GRADES[:0], ValueError, r"scores must be lists .* got shape \(0, 4\)"),
        (SCORES, GRADES.bool(), TypeError, r"relevance must be floating point .* torch.bool"),
        (SCORES, GRADES[:, :3], ValueError, r"relevance must have the shape .* got \(2, 3\)"),
        (SCORES, GRADES[0, :2], ValueError, r"relevance must have the shape .* got \(2,\)"),
        (SCORES[:, :3], GRADES[:, :1], ValueError, r"relevance must have .* got \(2, 1\)"),
        (SCORES, GRADES.to("meta"), ValueError, r"relevance must be on the device .* got meta"),
        (SCORES / 0, GRADES, ValueError, r"scores must be finite, got inf at index \(0, 0\)"),
        (SCORES, GRADES * math.nan, ValueError, r"relevance must be finite, got nan at index"),
    ],
)
def test_errors_name_the_argument(scores, grades, error, message: str) -> None:
    with pytest.raises(error, match="^" + message):
        listwise_wasserstein_loss(scores, grades)
    with pytest.raises(error, match="^" + message):
        ListwiseWassersteinLoss()(scores, grades)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_errors_name_the_temperature(value: float) -> None:
    with pytest.raises(ValueError, match=r"^temperature must be finite and at least 1e-8, got"):
        ListwiseWassersteinLoss(value)
