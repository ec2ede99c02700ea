"""VICReg: its formula, other libraries' conventions, limits, precision, bad arguments."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import value_and_gradients
from places import SUPPORT
from vicreg_inputs import covariance_term, official_off_diagonal, variance_term, views

from sslfast.functional import vicreg_loss
from sslfast.losses import VICRegLoss
from sslfast.losses.redundancy.vicreg import _vicreg_eager
from sslfast.testing import peak_memory_of

MATRIX = torch.ones(3, 4)
MIB = 1 << 20


def official(first, second, sim=25.0, std=25.0, cov=1.0):
    """The authors' form."""
    loss = sim * F.mse_loss(first, second)
    loss = loss + std * (variance_term(first) / 2 + variance_term(second) / 2)
    return loss + cov * (covariance_term(first) + covariance_term(second))


def solo_learn(first, second):
    """solo-learn's form: the variance term is the sum of both views."""
    loss = 25.0 * F.mse_loss(first, second)
    loss = loss + 25.0 * (variance_term(first) + variance_term(second))
    return loss + covariance_term(first) + covariance_term(second)


@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (9, 9), (40, 13), (13, 40), (7, 1)], ids=str)
def test_value_and_gradient_of_the_official_form(shape, route):
    pair = views(*shape)
    expected = value_and_gradients(official if shape[1] > 1 else official_of_one_feature, pair)
    found = value_and_gradients(partial(vicreg_loss, route=route), pair)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def official_of_one_feature(first, second):
    """Without a covariance, whose strides need two features."""
    loss = 25.0 * F.mse_loss(first, second)
    return loss + 12.5 * (variance_term(first) + variance_term(second))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_each_weight_multiplies_its_term(weights):
    pair = views(11, 6)
    names = ("lambda_param", "mu_param", "nu_param")
    found = value_and_gradients(
        partial(vicreg_loss, **dict(zip(names, weights, strict=True))), pair
    )
    expected = value_and_gradients(lambda a, b: official(a, b, *weights), pair)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_solo_learn_does_not_halve_the_variance():
    pair = views(17, 6)
    found = value_and_gradients(partial(vicreg_loss, halve_variance=False), pair)
    torch.testing.assert_close(found, value_and_gradients(solo_learn, pair), rtol=1e-9, atol=1e-12)
    assert found[0] > vicreg_loss(*pair) + 1


def test_equals_its_formula_written_out():
    pair = views(4, 3)
    columns = [view.detach().T.tolist() for view in pair]
    pairs = [zip(*both, strict=True) for both in zip(*columns, strict=True)]
    loss = 25 * sum((x - y) ** 2 for both in pairs for x, y in both) / 12
    for view in columns:
        centred = [[x - sum(column) / 4 for x in column] for column in view]
        cov = [
            [sum(x * y for x, y in zip(a, b, strict=True)) / 3 for b in centred] for a in centred
        ]
        loss += 12.5 * sum(max(0, 1 - math.sqrt(cov[i][i] + 1e-4)) for i in range(3)) / 3
        loss += sum(cov[i][j] ** 2 for i in range(3) for j in range(3) if i != j) / 3
    assert vicreg_loss(*pair).item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"route": "gram"}, {"route": "direct"}], ids=str)
def test_places_have_variances_and_covariances_of_their_own(options):
    pair = views(6, 2, 3, 5)
    losses = [
        vicreg_loss(pair[0][:, i, j], pair[1][:, i, j], **options)
        for i in range(2)
        for j in range(3)
    ]
    expected = torch.stack(losses).mean()
    found = vicreg_loss(*pair, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for gradients in zip(
        torch.autograd.grad(found, pair), torch.autograd.grad(expected, pair), strict=True
    ):
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_known_values():
    """Uncorrelated columns of deviation above 1 cost nothing; one repeated row costs the hinge."""
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    best = (2 * signs).requires_grad_()
    value, gradient = value_and_gradients(lambda rows: vicreg_loss(rows, rows.detach()), [best])
    assert value == 0
    assert gradient.abs().max() == 0
    collapsed = torch.full((5, 3), 7.0, dtype=torch.float64, requires_grad=True)
    value, gradient = value_and_gradients(lambda rows: vicreg_loss(rows, rows), [collapsed])
    assert value.item() == pytest.approx(25 * 0.99, rel=1e-12)
    assert gradient.abs().max() == 0
    same = 3 * signs[:, :1].repeat(1, 2)  # two equal columns: covariance 12 = 4/3 of 9
    assert vicreg_loss(same, same).item() == pytest.approx(2 * 12.0**2, rel=1e-12)


def test_symmetries():
    first, second = (view.detach() for view in views(9, 5))
    value = vicreg_loss(first, second)
    order, features = torch.randperm(9), torch.randperm(5)
    shift = 1000 * torch.arange(5.0, dtype=torch.float64)
    for same in (
        (second, first),
        (first[order], second[order]),
        (first[:, features], second[:, features]),
        (first + shift, second + shift),
        (-first, -second),
    ):
        torch.testing.assert_close(vicreg_loss(*same), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_constant_columns_have_a_finite_value_and_gradient_0(dtype, eps):
    first, second = (view.detach().clone() for view in views(8, 4, dtype=dtype))
    for view in (first, second):
        view[:, 1] = 3.3
    pair = first.requires_grad_(), second.requires_grad_()
    value, *gradients = value_and_gradients(partial(vicreg_loss, eps=eps), pair)
    assert value.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[:, 1].abs().max() == 0
        assert gradient[:, 0].abs().max() > 0


@pytest.mark.parametrize("options", [{}, {"route": "gram"}, {"route": "direct"}], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (3, 6), (3, 2, 3)], ids=str)
def test_gradcheck(shape, options):
    assert torch.autograd.gradcheck(partial(vicreg_loss, **options), views(*shape))


def test_one_view_may_be_constant():
    first, second = views(9, 5)
    expected = torch.autograd.grad(vicreg_loss(first, second), (first, second))
    for index in (0, 1):
        pair = [view.detach() for view in (first, second)]
        pair[index].requires_grad_()
        (gradient,) = torch.autograd.grad(vicreg_loss(*pair), pair[index])
        torch.testing.assert_close(gradient, expected[index])


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)], ids=str)
def test_a_second_derivative_raises(shape):
    first, second = views(*shape)
    (gradient,) = torch.autograd.grad(vicreg_loss(first, second), first, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss_and_half_gradients(dtype):
    pair = views(16, 24, dtype=dtype)
    value, *gradients = value_and_gradients(vicreg_loss, pair)
    exact = vicreg_loss(*(view.double() for view in pair))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=0)
    assert all(each.dtype == dtype and each.isfinite().all() for each in gradients)
    mixed = vicreg_loss(pair[0], pair[1].float())
    torch.testing.assert_close(mixed.double(), exact, rtol=0.01, atol=0)


def test_float16_stays_finite_where_the_usual_form_overflows():
    """N sigma^2 = 131072: each variance times N is beyond float16 before it is divided."""
    pair = tuple(view.detach().half().requires_grad_() for view in views(2048, 8, magnitude=8.0))
    assert not _vicreg_eager(*pair).isfinite()
    value, *gradients = value_and_gradients(vicreg_loss, pair)
    exact, *truths = value_and_gradients(
        vicreg_loss, [view.detach().double().requires_grad_() for view in pair]
    )
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=0)
    for gradient, truth in zip(gradients, truths, strict=True):
        assert (gradient - truth).norm() < 2e-3 * truth.norm()


def test_columns_far_from_0_keep_their_digits():
    first, second = (view.detach() + 1e4 for view in views(64, 8))
    pair = tuple(view.float().requires_grad_() for view in (first, second))
    found = value_and_gradients(vicreg_loss, pair)
    exact = value_and_gradients(
        vicreg_loss, [view.detach().double().requires_grad_() for view in pair]
    )
    for value, truth in zip(found, exact, strict=True):
        assert (value - truth).norm() < 1e-5 * truth.norm()


def test_autocast():
    pair = views(12, 32, dtype=torch.float32)
    exact = vicreg_loss(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        value = vicreg_loss(*pair)
    assert value.dtype == torch.float32
    assert value != exact
    torch.testing.assert_close(value, exact, rtol=0.01, atol=0)
    for gradient, truth in zip(
        torch.autograd.grad(value, pair), torch.autograd.grad(exact, pair), strict=True
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - truth).norm() < 0.01 * truth.norm()


@pytest.mark.parametrize("places", [(), (3,)])
def test_compiles_without_a_graph_break_for_any_batch_size(places):
    torch.compiler.reset()
    compiled = torch.compile(VICRegLoss(), fullgraph=True, dynamic=True, backend="aot_eager")
    for num_images in (4, 7, 9):
        pair = views(num_images, *places, 6)
        found, expected = (value_and_gradients(each, pair) for each in (compiled, VICRegLoss()))
        torch.testing.assert_close(found, expected)


@pytest.mark.uninterpreted
def test_no_matrix_of_features_by_features():
    """D^2 would be 64 MiB; views, their gradients and one centred copy are 5 MiB."""
    measured = peak_memory_of(
        "memory_vicreg:prepare",
        {"loss": "vicreg", "num_rows": 64, "dim": 4096},
        warm_up={"loss": "vicreg", "num_rows": 8, "dim": 16},
        path=SUPPORT,
    )
    assert measured < 8 * 64 * 4096 * 4 + 8 * MIB


def test_official_off_diagonal():
    square = torch.arange(9.0).view(3, 3)
    assert official_off_diagonal(square).tolist() == [1, 2, 3, 5, 6, 7]


def test_module_is_its_function():
    pair = views(6, 5)
    module = VICRegLoss(2.0, 3.0, 4.0, False, 0.01, halve_variance=False, route="direct")
    expected = vicreg_loss(
        *pair, lambda_param=2.0, mu_param=3.0, nu_param=4.0, eps=0.01, halve_variance=False
    )
    torch.testing.assert_close(module(*pair), expected, rtol=1e-12, atol=0)
    assert "nu_param=4.0" in repr(module)
    assert not module.state_dict()


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX, torch.ones(2, 4), ValueError, r" must have the shape of .*\(3, 4\), got \(2, 4"),
        (MATRIX, torch.ones(3, 1, 4), ValueError, r" must have the shape of .* got \(3, 1, 4\)"),
        (torch.ones(3), torch.ones(3), ValueError, r" must have shape \(N, ..., D\) .*\(3,\)"),
        (MATRIX[:0], MATRIX[:0], ValueError, r" must have shape .* least one row .* \(0, 4\)"),
        (MATRIX[:1], MATRIX[:1], ValueError, r" must have at least two rows: .*shape \(1, 4\)"),
        (MATRIX.long(), MATRIX, TypeError, r" must be floating point .* got torch.int64"),
        (MATRIX, [[1.0]], TypeError, r" must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r" must be on the device of .*\(cpu\), got meta"),
    ],
)
def test_errors_name_the_views(first, second, error, message):
    with pytest.raises(error, match=f"^embeddings[01]{message}"):
        vicreg_loss(first, second)
    with pytest.raises(error, match=f"^z_[ab]{message}"):
        VICRegLoss()(first, second)


@pytest.mark.parametrize("name", ["lambda_param", "mu_param", "nu_param", "eps"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_errors_name_the_number(name, value):
    for loss in (VICRegLoss, partial(vicreg_loss, MATRIX, MATRIX)):
        with pytest.raises(
            ValueError, match=rf"^{name} must be finite and at least 0, got {value}"
        ):
            loss(**{name: value})
        with pytest.raises(TypeError, match=rf"^{name} must be a number, got str"):
            loss(**{name: "1"})


@pytest.mark.parametrize("name", ["grad_scale", "route"])
def test_errors_name_the_choice(name):
    for loss in (VICRegLoss, partial(vicreg_loss, MATRIX, MATRIX)):
        with pytest.raises(ValueError, match=rf"^{name} must be one of \(.*\), got 'best'"):
            loss(**{name: "best"})


def test_distributed_is_asked_for_once_and_refused_where_it_is_missing(monkeypatch):
    answers = [True, False]
    monkeypatch.setattr(torch.distributed, "is_available", lambda: answers.pop(0))
    VICRegLoss(gather_distributed=True)
    assert answers == [False]
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        VICRegLoss(gather_distributed=True)


def test_repeated_calls_have_the_same_bits_on_any_number_of_threads():
    pair = views(300, 200, dtype=torch.float32)
    expected = value_and_gradients(vicreg_loss, pair)
    torch.set_num_threads(2)
    try:
        found = value_and_gradients(vicreg_loss, pair)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
