"""W-MSE and its whitening: what whitening gives, its gradient, invariances, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslfast.functional import norm_mse_loss, wmse_loss
from sslfast.losses import Whitening2d, WMSELoss
from sslfast.losses.redundancy._whitening import whiten


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_whitened_rows_have_mean_zero_and_covariance_one():
    rows = normal(3, 40, 6) @ normal(6, 6, seed=1) + 5
    whitened, mean, covariance = whiten(rows, eps=0.0)
    identity = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    torch.testing.assert_close(whitened.mT @ whitened / 39, identity)
    torch.testing.assert_close(whitened.mean(1), torch.zeros(3, 6, dtype=torch.float64))
    torch.testing.assert_close(mean, rows.mean(1))
    torch.testing.assert_close(covariance[1], torch.cov(rows[1].T))


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_gradient_by_differences(eps):
    rows = normal(2, 9, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: whiten(rows, eps).rows, rows)


def test_a_second_derivative_raises():
    rows = normal(9, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(whiten(rows, 0.0).rows.sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_scale_and_origin_of_a_feature_change_nothing():
    """The factor is triangular: a diagonal map goes through it."""
    stacked = normal(2 * 24, 5)
    orders = torch.arange(24).unsqueeze(0)
    changed = stacked * torch.tensor([1.0, 10.0, 0.1, -3.0, 7.0]) + 4
    first, second = (wmse_loss(rows, w_size=12, permutations=orders) for rows in (stacked, changed))
    torch.testing.assert_close(first, second)


def test_equal_views_are_at_distance_zero_and_opposite_ones_at_four():
    view = normal(20, 4)
    order = torch.randperm(20).unsqueeze(0)
    for other, expected in ((view, 0.0), (-view, 4.0)):
        loss = wmse_loss(torch.cat((view, other)), w_size=20, permutations=order)
        assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_distance_of_unit_rows():
    rows = torch.eye(2)
    assert norm_mse_loss(rows, 3 * rows).item() == pytest.approx(0.0, abs=1e-6)
    assert norm_mse_loss(rows, rows.flip(0)).item() == pytest.approx(2.0)


def test_sub_batches_that_do_not_touch_have_no_gradient_for_each_other():
    stacked = normal(2 * 12, 3).requires_grad_()
    whole = wmse_loss(stacked, w_size=6, permutations=torch.arange(12).unsqueeze(0))
    first_half = torch.cat((stacked[:6], stacked[12:18]))
    alone = wmse_loss(first_half, w_size=6, permutations=torch.arange(6).unsqueeze(0))
    expected = torch.autograd.grad(alone, stacked)[0] / 2
    gradient = torch.autograd.grad(whole, stacked)[0]
    touched = expected.abs().sum(1) > 0
    assert touched.sum() == 12
    torch.testing.assert_close(gradient[touched], expected[touched])


def test_autocast_does_not_round():
    stacked = normal(48, 4).float()
    order = torch.arange(24).unsqueeze(0)
    expected = wmse_loss(stacked, w_size=12, permutations=order)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(wmse_loss(stacked, w_size=12, permutations=order), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_embeddings(dtype):
    stacked = normal(48, 4).to(dtype).requires_grad_()
    loss = WMSELoss(embedding_dim=4, w_size=12)
    value = loss(stacked)
    value.backward()
    assert value.dtype == torch.float32
    assert stacked.grad.dtype == dtype
    assert loss.whitening.running_variance.dtype == torch.float32


@pytest.mark.parametrize("fault", ["constant", "repeated", "few rows"])
def test_no_positive_definite_covariance(fault):
    stacked = normal(2 * 8, 4)
    if fault == "constant":
        stacked[:, 1] = 3.0
    elif fault == "repeated":
        stacked[:, 1] = stacked[:, 2]
    options = {"w_size": 4 if fault == "few rows" else 8}
    with pytest.raises(ValueError, match="positive definite covariance in every batch"):
        wmse_loss(stacked, **options)
    stacked.requires_grad_()
    loss = wmse_loss(stacked, eps=0.1, **options)
    loss.backward()
    assert loss.isfinite()
    assert stacked.grad.isfinite().all()


def test_the_error_is_told_before_running_statistics_move():
    layer = Whitening2d(3)
    with pytest.raises(ValueError, match="positive definite"):
        layer(torch.ones(8, 3))
    assert torch.equal(layer.running_variance, torch.eye(3))


STACKED = torch.ones(8, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": torch.ones(7, 2)}, ValueError, "multiple of num_samples=2 rows"),
        ({"embeddings": torch.ones(8)}, ValueError, "embeddings must be a matrix"),
        ({"embeddings": STACKED.long()}, TypeError, "embeddings must be floating"),
        ({"w_size": 3}, ValueError, "embeddings must hold a multiple of w_size=3 images, got 4"),
        ({"w_size": 1}, ValueError, "w_size must be at least 2, got 1"),
        ({"w_size": 2.0}, TypeError, "w_size must be an integer, got float"),
        ({"num_samples": 1}, ValueError, "num_samples must be at least 2, got 1"),
        ({"w_iter": 0}, ValueError, "w_iter must be at least 1, got 0"),
        ({"eps": 1.0}, ValueError, "eps must be finite and at least 0 and below 1, got 1"),
        ({"permutations": torch.zeros(1, 3).long()}, ValueError, "permutations must have shape"),
        ({"permutations": torch.zeros(4, 1).long()}, ValueError, r"= \(1, 4\), got \(4, 1\)"),
        ({"permutations": torch.zeros(1, 4)}, TypeError, "permutations must hold integers"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        wmse_loss(**{"embeddings": STACKED, "w_size": 4, **arguments})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"w_size": 255}, ValueError, "at least twice embedding_dim.* got 255 for 128"),
        ({"momentum": 1.5}, ValueError, "momentum must be finite and at most 1, got 1.5"),
        ({"momentum": math.nan}, ValueError, "momentum must be"),
        ({"eps": -0.1}, ValueError, "eps must be"),
        ({"embedding_dim": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"num_samples": 1}, ValueError, "num_samples must be at least 2"),
        ({"w_iter": 0}, ValueError, "w_iter must be at least 1"),
    ],
)
def test_bad_options_of_the_module(options, error, message):
    with pytest.raises(error, match=message):
        WMSELoss(**options)


def test_bad_rows_of_the_modules():
    with pytest.raises(ValueError, match="input must have 4 features"):
        WMSELoss(embedding_dim=4, w_size=8)(torch.ones(16, 3))
    with pytest.raises(ValueError, match="input must hold a multiple of w_size=8 images, got 4"):
        WMSELoss(embedding_dim=4, w_size=8)(torch.ones(8, 4))
    with pytest.raises(ValueError, match="x must have 3 features"):
        Whitening2d(3)(torch.ones(4, 2))
    with pytest.raises(ValueError, match="x must have at least two rows"):
        Whitening2d(3)(torch.ones(1, 3))
    with pytest.raises(ValueError, match="x1 must have the shape of x0"):
        norm_mse_loss(torch.ones(2, 3), torch.ones(3, 3))
