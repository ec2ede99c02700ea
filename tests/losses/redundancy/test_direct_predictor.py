"""The predictor that is set, not trained: both rules from their formulas, its state, errors."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sslfast.losses import DirectPredictor


def features(num_rows: int = 20, dim: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    return rows * torch.logspace(0, -1, dim, dtype=torch.float64) + 0.3


def outer_products(rows: Tensor) -> Tensor:
    """The correlation as the authors form it: N outer products and their mean."""
    return torch.bmm(rows.unsqueeze(2), rows.unsqueeze(1)).mean(0)


def moving_averages(batches: list[Tensor], momentum: float) -> tuple[Tensor, Tensor]:
    correlation, mean = outer_products(batches[0]), batches[0].mean(0)
    for rows in batches[1:]:
        correlation = momentum * correlation + (1 - momentum) * outer_products(rows)
        mean = momentum * mean + (1 - momentum) * rows.mean(0)
    return correlation, mean


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "exponent": 0.25, "eps": 0.1}])
def test_directpred_from_its_formula(options, center):
    predictor = DirectPredictor(5, center=center, **options).double()
    batches = [features(seed=seed) for seed in range(4)]
    for rows in batches:
        result = predictor(rows)
    correlation, mean = moving_averages(batches, options.get("momentum", 0.3))
    if center:
        correlation = correlation - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(correlation)
    share = (values / values.max()) ** options.get("exponent", 0.5)
    expected = vectors @ torch.diag(share + options.get("eps", 0.01)) @ vectors.T
    torch.testing.assert_close(predictor.weight, expected)
    torch.testing.assert_close(result, batches[-1] @ expected.T)


@pytest.mark.parametrize("norm", ["spectral", "frobenius", None])
def test_directcopy_from_its_formula(norm):
    predictor = DirectPredictor(5, rule="directcopy", norm=norm, eps=0.2).double()
    rows = features()
    predictor(rows)
    correlation = outer_products(rows)
    length = {"spectral": torch.linalg.matrix_norm(correlation, 2), "frobenius": correlation.norm()}
    expected = correlation / length.get(norm, 1.0) + 0.2 * torch.eye(5)
    torch.testing.assert_close(predictor.weight, expected)


def test_the_two_rules_meet_at_exponent_one():
    rows = features()
    weights = []
    for rule in ("directpred", "directcopy"):
        predictor = DirectPredictor(5, rule=rule, exponent=1.0, eps=0.1).double()
        predictor(rows)
        weights.append(predictor.weight)
    torch.testing.assert_close(*weights)


def test_eigenvalues_stay_above_the_floor():
    predictor = DirectPredictor(4, eps=-0.5, floor=1e-3).double()
    predictor(features(dim=4) * torch.tensor([1.0, 1.0, 0.0, 0.0]))
    values = torch.linalg.eigvalsh(predictor.weight)
    assert values.min().item() == pytest.approx(1e-3)
    assert values.max().item() == pytest.approx(0.5)


@pytest.mark.parametrize("rule", ["directpred", "directcopy"])
def test_features_of_zeros_leave_eps(rule):
    predictor = DirectPredictor(3, rule=rule, eps=0.25)
    predictor(torch.zeros(4, 3))
    torch.testing.assert_close(predictor.weight, 0.25 * torch.eye(3))


def test_weight_is_set_at_every_third_call():
    predictor = DirectPredictor(5, update_every=3).double()
    weights = []
    for seed in range(7):
        predictor(features(seed=seed))
        weights.append(predictor.weight.clone())
    changes = [not torch.equal(*pair) for pair in pairwise(weights)]
    assert changes == [False, False, True, False, False, True]
    assert predictor.num_batches_tracked.item() == 7


def test_evaluation_changes_nothing_and_an_untrained_one_is_the_identity():
    predictor = DirectPredictor(5).double().eval()
    rows = features()
    assert torch.equal(predictor(rows), rows)
    assert predictor.num_batches_tracked.item() == 0


def test_gradient_goes_through_the_product_alone():
    predictor = DirectPredictor(5).double()
    first, second = (features(seed=seed).requires_grad_() for seed in range(2))
    early = predictor(first)
    weight = predictor.weight.clone()
    late = predictor(second)
    assert not list(predictor.parameters())
    (gradient,) = torch.autograd.grad(early.sum(), first)
    torch.testing.assert_close(gradient, weight.sum(0).expand_as(first))
    late.sum().backward()
    torch.testing.assert_close(second.grad, predictor.weight.sum(0).expand_as(second))


def test_state_continues_in_another_module():
    predictor, again = DirectPredictor(5), DirectPredictor(5)
    predictor(features().float())
    again.load_state_dict(predictor.state_dict())
    assert sorted(predictor.state_dict()) == [
        "correlation",
        "mean",
        "num_batches_tracked",
        "weight",
    ]
    rows = features(seed=1).float()
    assert torch.equal(again(rows), predictor(rows))
    assert torch.equal(copy.deepcopy(again).eval()(rows), again.eval()(rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_keep_float32_averages(dtype):
    predictor, exact = DirectPredictor(5), DirectPredictor(5)
    rows = features().to(dtype)
    result = predictor(rows)
    exact(rows.float())
    assert result.dtype == dtype
    assert torch.equal(predictor.correlation, exact.correlation)
    predictor.half()
    predictor(rows)
    assert predictor.correlation.dtype == torch.float32


def test_autocast_does_not_round_the_correlation():
    predictor, exact = DirectPredictor(5), DirectPredictor(5)
    rows = features().float()
    exact(rows)
    with torch.autocast("cpu", torch.bfloat16):
        predictor(rows)
    assert torch.equal(predictor.correlation, exact.correlation)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 2.0}, TypeError, "dim must be an integer, got float"),
        ({"momentum": 1.0}, ValueError, "momentum must be .* below 1, got 1.0"),
        ({"exponent": 0.0}, ValueError, "exponent must be .* above 0, got 0.0"),
        ({"eps": math.inf}, ValueError, "eps must be finite, got inf"),
        ({"floor": math.nan}, ValueError, "floor must be finite, got nan"),
        ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
        ({"rule": "direct"}, ValueError, "rule must be one of .* got 'direct'"),
        ({"norm": "nuclear"}, ValueError, "norm must be one of .* got 'nuclear'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        DirectPredictor(**{"dim": 3, **options})


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.ones(4, 2), ValueError, r"features must have 3 features, got shape \(4, 2\)"),
        (torch.ones(3), ValueError, "features must be a matrix"),
        (torch.ones(0, 3), ValueError, "features must have at least one row"),
        (torch.ones(2, 3).long(), TypeError, "features must be floating point"),
    ],
)
def test_bad_features(rows, error, message):
    with pytest.raises(error, match=message):
        DirectPredictor(3)(rows)
