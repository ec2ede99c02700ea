"""SIE and its predictor: the authors' form, the matrices that are not formed, bad arguments."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import value_and_gradients
from places import SUPPORT
from torch import nn
from vicreg_inputs import covariance_term, normal, variance_term, views

from sslfast.functional import sie_loss, vicreg_loss
from sslfast.losses import HypernetworkPredictor, SIELoss
from sslfast.testing import peak_memory_of

MATRIX = torch.ones(3, 4)


def authors(first, second, predictions, with_predictions=True):
    """The authors' form: parts, predictions and both together."""
    start = first.shape[1] - predictions.shape[1]
    loss = 4.5 * 10.0 * F.mse_loss(predictions, second[:, start:])
    if start:
        loss = loss + 10.0 * F.mse_loss(first[:, :start], second[:, :start])
    loss = loss + 10.0 * (variance_term(first) / 2 + variance_term(second) / 2)
    if with_predictions:
        loss = loss + 10.0 * variance_term(predictions) / 2
    return loss + covariance_term(first) + covariance_term(second)


def inputs(num_rows, dim, num_equivariant, **options):
    first, second = views(num_rows, dim, **options)
    predictions = normal(num_rows, num_equivariant, seed=5).to(first.dtype)
    return first, second, predictions.requires_grad_()


@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
@pytest.mark.parametrize("shape", [(2, 5, 2), (9, 9, 4), (40, 13, 1), (13, 40, 39), (8, 6, 6)])
def test_value_and_gradient_of_the_authors_form(shape, route):
    tensors = inputs(*shape)
    found = value_and_gradients(partial(sie_loss, route=route), tensors)
    torch.testing.assert_close(found, value_and_gradients(authors, tensors), rtol=1e-9, atol=1e-12)


def test_predictions_may_go_without_a_variance():
    tensors = inputs(9, 7, 3)
    found = value_and_gradients(partial(sie_loss, regularize_predictions=False), tensors)
    expected = value_and_gradients(partial(authors, with_predictions=False), tensors)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found[0] < sie_loss(*tensors)


def test_exact_predictions_without_a_factor_are_vicreg():
    """The squares of both parts over their own numbers of features, and the same rest."""
    first, second = views(9, 8)
    parts = [
        F.mse_loss(first[:, :5], second[:, :5]),
        F.mse_loss(first[:, 5:], second[:, 5:]),
    ]
    value = sie_loss(
        first, second, first[:, 5:], equivariant_factor=1, regularize_predictions=False
    )
    rest = vicreg_loss(first, second, lambda_param=0.0, mu_param=10.0)
    torch.testing.assert_close(value, 10 * sum(parts) + rest, rtol=1e-12, atol=0)


def test_slices_of_one_matrix_receive_one_gradient():
    """The predictor's input is a slice of the first view: its gradient joins that of the loss."""
    torch.manual_seed(0)
    predictor = HypernetworkPredictor(3).double()
    first, second = views(9, 7)
    parameters = normal(9, 4, seed=2)

    def loss(function, first, second):
        return function(first, second, predictor(first[:, 4:], parameters))

    found, expected = (
        value_and_gradients(partial(loss, function), (first, second))
        for function in (sie_loss, authors)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4, 2), (4, 6, 6)], ids=str)
def test_gradcheck(shape):
    assert torch.autograd.gradcheck(sie_loss, inputs(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss_and_half_gradients(dtype):
    tensors = inputs(16, 24, 10, dtype=dtype)
    value, *gradients = value_and_gradients(sie_loss, tensors)
    exact = sie_loss(*(each.double() for each in tensors))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=0)
    assert all(each.dtype == dtype and each.isfinite().all() for each in gradients)


def test_compiles_without_a_graph_break_for_any_batch_size():
    torch.compiler.reset()
    compiled = torch.compile(SIELoss(), fullgraph=True, dynamic=True, backend="aot_eager")
    for num_images in (4, 7, 9):
        tensors = inputs(num_images, 6, 2)
        found, expected = (value_and_gradients(each, tensors) for each in (compiled, SIELoss()))
        torch.testing.assert_close(found, expected)


def formed(predictor, rows, parameters, activation):
    """Every sample's matrices, as the authors' predictor forms them."""
    features = predictor.trunk(parameters)
    for index, layer in enumerate(predictor.layers):
        weights = layer.to_weight(features).view(len(rows), layer.out_features, -1)  # (N, O, I)
        rows = torch.relu(rows) if index and activation else rows
        rows = torch.bmm(weights, rows.unsqueeze(2)).squeeze(2)
        if layer.to_bias is not None:
            rows = rows + layer.to_bias(features)
    return rows


@pytest.mark.parametrize("hypernetwork", ["linear", "deep"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hypernetwork_bias", [False, True])
@pytest.mark.parametrize("hidden", [(), (5,), (7, 2)])
def test_predictor_equals_the_matrices_of_the_samples(
    hidden, hypernetwork_bias, bias, hypernetwork
):
    torch.manual_seed(0)
    predictor = HypernetworkPredictor(
        6,
        4,
        hidden,
        activation=True,
        hypernetwork=hypernetwork,
        bias=bias,
        hypernetwork_bias=hypernetwork_bias,
    ).double()
    rows, parameters = normal(8, 6).requires_grad_(), normal(8, 4, seed=1).requires_grad_()
    leaves = (rows, parameters, *predictor.parameters())
    found = predictor(rows, parameters)
    expected = formed(predictor, rows, parameters, activation=True)
    assert found.shape == (8, 6)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = normal(8, 6, seed=2)
    gradients, truths = (
        torch.autograd.grad((output * weights).sum(), leaves) for output in (found, expected)
    )
    torch.testing.assert_close(gradients, truths, rtol=1e-9, atol=1e-12)


def test_predictor_depends_on_the_transformation_linearly():
    predictor = HypernetworkPredictor(5, 3).double()
    rows, first, second = normal(4, 5), normal(4, 3, seed=1), normal(4, 3, seed=2)
    total = predictor(rows, first) + 2 * predictor(rows, second)
    torch.testing.assert_close(predictor(rows, first + 2 * second), total)
    torch.testing.assert_close(predictor(3 * rows, first), 3 * predictor(rows, first))
    assert predictor(rows[:1], first[:1]).shape == (1, 5)
    assert predictor(rows, torch.zeros(4, 3, dtype=torch.float64)).abs().max() == 0


def test_predictor_begins_as_a_linear_layer_of_the_parameters():
    torch.manual_seed(0)
    predictor = HypernetworkPredictor(64, 4)
    (weight,) = predictor.parameters()
    torch.manual_seed(0)
    assert torch.equal(weight, nn.Linear(4, 64 * 64, bias=False).weight)


def test_predictor_learns_a_rotation():
    """One matrix for each of two transformations, found by gradient descent."""
    torch.manual_seed(0)
    predictor = HypernetworkPredictor(2, 2).double()
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.05)
    rows, which = normal(64, 2), torch.arange(64) % 2
    turned = torch.stack((rows[:, 1], -rows[:, 0]), dim=1)
    target = torch.where(which.unsqueeze(1) == 1, turned, rows)
    parameters = F.one_hot(which, 2).double()
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(predictor(rows, parameters), target).backward()
        optimizer.step()
    torch.testing.assert_close(predictor(rows, parameters), target, atol=1e-2, rtol=0)


@pytest.mark.uninterpreted
def test_predictor_forms_no_matrix_of_a_sample():
    """N D^2 would be 64 MiB; the outer products with four parameters are 1 MiB."""
    measured = peak_memory_of(
        "memory_vicreg:predict",
        {"num_rows": 256, "dim": 256},
        warm_up={"num_rows": 8, "dim": 16},
        path=SUPPORT,
    )
    assert measured < 16 << 20


def test_module_is_its_function():
    tensors = inputs(6, 5, 2)
    module = SIELoss(2.0, 3.0, 4.0, 0.5, False, 0.01, regularize_predictions=False, route="direct")
    expected = sie_loss(
        *tensors,
        lambda_param=2.0,
        mu_param=3.0,
        nu_param=4.0,
        equivariant_factor=0.5,
        eps=0.01,
        regularize_predictions=False,
    )
    torch.testing.assert_close(module(*tensors), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(SIELoss()(*tensors), sie_loss(*tensors), rtol=0, atol=0)
    assert "equivariant_factor=0.5" in repr(module)


@pytest.mark.parametrize(
    ("first", "second", "predictions", "error", "message"),
    [
        (MATRIX, MATRIX[:2], MATRIX, ValueError, r"(z_b|embeddings1) must have the shape of"),
        (MATRIX[:1], MATRIX[:1], MATRIX[:1], ValueError, r"(z_a|embeddings0) .* least two rows"),
        (MATRIX, MATRIX, torch.ones(2, 4), ValueError, r"predictions must have the rows of .*2, 4"),
        (MATRIX, MATRIX, torch.ones(3, 5), ValueError, r"predictions .* no more features .*3, 5"),
        (MATRIX, MATRIX, torch.ones(3), ValueError, r"predictions must be a matrix \(N, E\)"),
        (MATRIX, MATRIX, None, TypeError, r"predictions must be a tensor, got NoneType"),
        (MATRIX, MATRIX, MATRIX.int(), TypeError, r"predictions must be floating point"),
        (MATRIX, MATRIX, MATRIX.to("meta"), ValueError, r"predictions must be on the device of"),
    ],
)
def test_errors_name_the_tensor(first, second, predictions, error, message):
    for loss in (sie_loss, SIELoss()):
        with pytest.raises(error, match=f"^{message}"):
            loss(first, second, predictions)


@pytest.mark.parametrize(
    "name", ["lambda_param", "mu_param", "nu_param", "equivariant_factor", "eps"]
)
def test_errors_name_the_option(name, monkeypatch):
    for loss in (SIELoss, partial(sie_loss, MATRIX, MATRIX, MATRIX)):
        for value in (-1.0, math.inf):
            message = rf"^{name} must be finite and at least 0, got {value}"
            with pytest.raises(ValueError, match=message):
                loss(**{name: value})
        for choice in ("grad_scale", "route"):
            with pytest.raises(ValueError, match=rf"^{choice} must be one of \(.*\), got 'best'"):
                loss(**{choice: "best"})
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        SIELoss(gather_distributed=True)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "num_features, num_parameters and hidden_features must be .*, got 0, 4"),
        ((3, 0), {}, "num_features, num_parameters and hidden_features must be .*, got 3, 0"),
        ((3, 2, (4, 0)), {}, r"num_features, .* got 3, 2 and \(4, 0\)"),
        ((3,), {"hypernetwork": "wide"}, "hypernetwork must be one of .*, got 'wide'"),
    ],
)
def test_errors_name_the_width(arguments, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        HypernetworkPredictor(*arguments, **options)


@pytest.mark.parametrize(
    ("rows", "parameters", "error", "message"),
    [
        (torch.ones(2, 4), torch.ones(2, 4), ValueError, r"rows must have shape \(2, 3\), got"),
        (torch.ones(2, 3), torch.ones(2, 3), ValueError, r"parameters must have shape \(2, 4\)"),
        (torch.ones(2, 3), torch.ones(1, 4), ValueError, r"parameters must have shape \(2, 4\)"),
        (torch.ones(2, 3), torch.ones(2, 4).int(), TypeError, r"parameters must be floating"),
        (torch.ones(2, 3), torch.ones(2, 4, device="meta"), ValueError, r"parameters .* device"),
    ],
)
def test_errors_name_the_predictors_input(rows, parameters, error, message):
    with pytest.raises(error, match=f"^{message}"):
        HypernetworkPredictor(3)(rows, parameters)
