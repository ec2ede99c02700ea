"""VIbCReg: solo-learn's form, what correlations do not see, bad arguments."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import value_and_gradients
from places import SUPPORT
from vicreg_inputs import variance_term, views

from sslfast.functional import vibcreg_loss
from sslfast.losses import VIbCRegLoss
from sslfast.testing import peak_memory_of

MATRIX = torch.ones(3, 4)
only_covariance = partial(vibcreg_loss, lambda_param=0.0, mu_param=0.0, nu_param=1.0)


def solo_learn(first, second):
    """solo-learn's form."""
    loss = 25.0 * F.mse_loss(first, second)
    for view in (first, second):
        loss = loss + 25.0 * variance_term(view)
        columns = F.normalize(view - view.mean(dim=0), p=2, dim=0)
        correlation = columns.T @ columns
        correlation = correlation.masked_fill(torch.eye(len(correlation), dtype=torch.bool), 0.0)
        loss = loss + 200.0 * (correlation**2).mean()
    return loss


@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 2), (9, 9), (40, 13), (13, 40), (7, 1)], ids=str)
def test_value_and_gradient_of_solo_learn(shape, route):
    pair = views(*shape)
    found = value_and_gradients(partial(vibcreg_loss, route=route), pair)
    torch.testing.assert_close(found, value_and_gradients(solo_learn, pair), rtol=1e-9, atol=1e-11)


def test_variance_may_be_halved():
    first, second = views(17, 6)
    variance = variance_term(first) + variance_term(second)
    found = vibcreg_loss(first, second) - vibcreg_loss(first, second, halve_variance=True)
    assert variance > 0.1
    torch.testing.assert_close(found, 12.5 * variance, rtol=1e-9, atol=0)


def test_correlations_do_not_change_with_scale_or_origin():
    pair = views(12, 5)
    scales = torch.tensor([1e-3, 0.1, 1.0, 50.0, 1e4], dtype=torch.float64)
    value = only_covariance(*pair)
    for same in (
        [scales * view for view in pair],
        [view - 7 for view in pair],
        [-view for view in pair],
    ):
        torch.testing.assert_close(only_covariance(*same), value, rtol=1e-9, atol=0)
    for view, gradient in zip(pair, torch.autograd.grad(value, pair), strict=True):
        centred = view.detach() - view.detach().mean(0)
        assert (centred * gradient).sum(0).abs().max() < 1e-12


def test_known_values():
    """Columns in proportion have correlation 1 or -1; uncorrelated ones cost nothing."""
    column = torch.tensor([[1.0], [2.0], [4.0], [9.0]], dtype=torch.float64)
    same = torch.cat((column, -3 * column, 0.1 * column + 5), dim=1)
    assert only_covariance(same, same).item() == pytest.approx(2 * 6 / 9, rel=1e-12)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert vibcreg_loss(2 * signs, 2 * signs).item() == pytest.approx(0.0, abs=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_columns_correlate_with_nothing(dtype):
    first, second = (view.detach().clone() for view in views(8, 4, dtype=dtype))
    without = only_covariance(first[:, 1:], second[:, 1:])
    for view in (first, second):
        view[:, 0] = 3.3  # its mean is rounded
    pair = first.requires_grad_(), second.requires_grad_()
    value, *gradients = value_and_gradients(only_covariance, pair)
    torch.testing.assert_close(value, without * 9 / 16)
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[:, 0].abs().max() == 0


@pytest.mark.parametrize("shape", [(5, 3), (4, 6)], ids=str)
def test_gradcheck(shape):
    assert torch.autograd.gradcheck(vibcreg_loss, views(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss_and_half_gradients(dtype):
    pair = views(16, 24, dtype=dtype)
    value, *gradients = value_and_gradients(vibcreg_loss, pair)
    exact = vibcreg_loss(*(view.double() for view in pair))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=0)
    assert all(each.dtype == dtype and each.isfinite().all() for each in gradients)


def test_compiles_without_a_graph_break_for_any_batch_size():
    torch.compiler.reset()
    compiled = torch.compile(VIbCRegLoss(), fullgraph=True, dynamic=True, backend="aot_eager")
    for num_images in (4, 7, 9):
        pair = views(num_images, 6)
        found, expected = (value_and_gradients(each, pair) for each in (compiled, VIbCRegLoss()))
        torch.testing.assert_close(found, expected)


@pytest.mark.uninterpreted
def test_no_matrix_of_features_by_features():
    """D^2 would be 64 MiB."""
    measured = peak_memory_of(
        "memory_vicreg:prepare",
        {"loss": "vibcreg", "num_rows": 64, "dim": 4096},
        warm_up={"loss": "vibcreg", "num_rows": 8, "dim": 16},
        path=SUPPORT,
    )
    assert measured < 12 * 64 * 4096 * 4 + (8 << 20)


def test_module_is_its_function():
    pair = views(6, 5)
    module = VIbCRegLoss(2.0, 3.0, 4.0, False, 0.01, halve_variance=True, route="direct")
    expected = vibcreg_loss(
        *pair, lambda_param=2.0, mu_param=3.0, nu_param=4.0, eps=0.01, halve_variance=True
    )
    torch.testing.assert_close(module(*pair), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(VIbCRegLoss()(*pair), vibcreg_loss(*pair), rtol=0, atol=0)
    assert "nu_param=4.0" in repr(module)


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX, torch.ones(2, 4), ValueError, r" must have the shape of .*\(3, 4\), got \(2, 4"),
        (torch.ones(3), torch.ones(3), ValueError, r" must be a matrix .* got shape \(3,\)"),
        (MATRIX[:0], MATRIX[:0], ValueError, r" must have at least one row, got shape \(0, 4\)"),
        (MATRIX[:1], MATRIX[:1], ValueError, r" must have at least two rows: .*shape \(1, 4\)"),
        (MATRIX.long(), MATRIX, TypeError, r" must be floating point .* got torch.int64"),
        (MATRIX, [[1.0]], TypeError, r" must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r" must be on the device of .*\(cpu\), got meta"),
    ],
)
def test_errors_name_the_views(first, second, error, message):
    with pytest.raises(error, match=f"^embeddings[01]{message}"):
        vibcreg_loss(first, second)
    with pytest.raises(error, match=f"^z_[ab]{message}"):
        VIbCRegLoss()(first, second)


@pytest.mark.parametrize("name", ["lambda_param", "mu_param", "nu_param", "eps"])
def test_errors_name_the_option(name, monkeypatch):
    for loss in (VIbCRegLoss, partial(vibcreg_loss, MATRIX, MATRIX)):
        with pytest.raises(ValueError, match=rf"^{name} must be finite and at least 0, got -1"):
            loss(**{name: -1.0})
        with pytest.raises(ValueError, match=rf"^{name} must be finite and at least 0, got inf"):
            loss(**{name: math.inf})
        for choice in ("grad_scale", "route"):
            with pytest.raises(ValueError, match=rf"^{choice} must be one of \(.*\), got 'best'"):
                loss(**{choice: "best"})
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        VIbCRegLoss(gather_distributed=True)
