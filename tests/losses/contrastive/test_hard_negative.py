"""HardNegativeLoss: the published formula, its limits, low temperatures, every bad argument."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import leaves, views
from torch import Tensor

from sslfast.functional import hard_negative_loss, ntxent_loss
from sslfast.losses import HardNegativeLoss
from sslfast.losses.contrastive.hard_negative import _hard_negative_eager

MATRIX = torch.ones(3, 4)


def powers_of(
    first: Tensor, second: Tensor, temperature: float, tau_plus: float, beta: float
) -> tuple[Tensor, Tensor, float]:
    """Of each row the positive and the debiased sum of the negatives, and the bound of the sum."""
    num_images = len(first)
    rows = F.normalize(torch.cat((first, second)))
    powers = (rows @ rows.T / temperature).exp()
    images = torch.arange(num_images).repeat(2)
    negatives = powers[images[:, None] != images].view(2 * num_images, -1)  # (2N, 2N - 2)
    positives = powers.diagonal(num_images).repeat(2)  # (2N,)
    weights = negatives**beta
    reweighted = (weights * negatives).sum(1) / weights.mean(1)
    count = 2 * num_images - 2
    sums = (reweighted - tau_plus * count * positives) / (1 - tau_plus)
    return positives, sums, count * math.exp(-1 / temperature)


def published(first: Tensor, second: Tensor, **options: float) -> Tensor:
    """Powers as they stand in the paper and in its authors' program, weights not held constant."""
    positives, sums, least = powers_of(first, second, **options)
    return -(positives / (positives + sums.clamp(min=least))).log().mean()


OPTIONS = list(product((0.07, 0.2, 0.5, 1.0), (0.0, 0.01, 0.1, 0.5), (0.0, 0.5, 1.0, 2.0)))


@pytest.mark.parametrize("num_images", [2, 3, 40])
@pytest.mark.parametrize(("temperature", "tau_plus", "beta"), OPTIONS)
def test_value_and_gradient_of_the_published_formula(temperature, tau_plus, beta, num_images):
    pair = leaves(num_images, 16)
    options = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta}
    actual = hard_negative_loss(*pair, **options)
    expected = published(*pair, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(actual, pair),
        torch.autograd.grad(expected, pair),
        rtol=1e-8,
        atol=1e-10,
    )


def test_published_formula_meets_both_sides_of_the_bound():
    """Or the test above would not see one of them."""
    bounded = []
    for temperature, tau_plus, beta in OPTIONS:
        _, sums, least = powers_of(*views(40, 16), temperature, tau_plus, beta)
        bounded.append((sums < least).double().mean().item())
    assert sum(0.1 < share < 0.9 for share in bounded) >= 5
    assert 0.0 in bounded


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0])
def test_without_correction_and_weights_it_is_nt_xent(temperature):
    pair = leaves(9, 8)
    plain = hard_negative_loss(*pair, temperature=temperature, tau_plus=0.0, beta=0.0)
    expected = ntxent_loss(*pair, temperature=temperature)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(plain, pair),
        torch.autograd.grad(expected, pair),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_equal_negatives_need_no_weights(beta, temperature):
    """Orthogonal images: R = n, P = exp(1 / temperature)."""
    orthogonal = torch.eye(4, dtype=torch.float64)
    positive = math.exp(1 / temperature)
    for tau_plus in (0.0, 0.02, 0.3):
        debiased = (6 - tau_plus * 6 * positive) / (1 - tau_plus)
        negatives = max(debiased, 6 * math.exp(-1 / temperature))
        value = hard_negative_loss(
            orthogonal, orthogonal, temperature=temperature, tau_plus=tau_plus, beta=beta
        )
        assert value.item() == pytest.approx(math.log1p(negatives / positive), rel=1e-10)


def test_concentration_tends_to_the_hardest_negative():
    first, second = views(6, 4)
    value = hard_negative_loss(first, second, temperature=1.0, tau_plus=0.0, beta=1e4)
    rows = F.normalize(torch.cat((first, second)))
    similarity = rows @ rows.T
    images = torch.arange(6).repeat(2)
    hardest = similarity.masked_fill(images[:, None] == images, -math.inf).amax(1)
    positive = similarity.diagonal(6).repeat(2)
    expected = F.softplus(math.log(10) + hardest - positive).mean()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)


def test_more_concentration_and_less_correction_raise_the_loss():
    first, second = views(12, 6)

    def losses(**options):
        return torch.stack([hard_negative_loss(first, second, **each) for each in options["of"]])

    by_beta = losses(of=[{"beta": beta} for beta in (0.0, 0.5, 1.0, 2.0)])
    by_tau = losses(of=[{"tau_plus": tau} for tau in (0.3, 0.1, 0.01, 0.0)])
    assert (by_beta.diff() > 0).all()
    assert (by_tau.diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau_plus", [0.0, 1e-6, 0.1, 0.999])
@pytest.mark.parametrize("kind", ["random", "collapsed", "same view", "opposite", "one feature"])
def test_finite_at_temperature_0_01(kind, tau_plus, dtype):
    first, second = views(16, 1 if kind == "one feature" else 24)
    if kind == "collapsed":
        first, second = torch.ones_like(first), torch.ones_like(first)
    elif kind == "same view":
        second = first
    elif kind == "opposite":
        second = -first
    pair = [view.to(dtype).clone().requires_grad_() for view in (first, second)]
    for beta in (0.0, 1.0, 4.0):
        loss = hard_negative_loss(*pair, temperature=0.01, tau_plus=tau_plus, beta=beta)
        assert loss.isfinite()
        assert loss >= 0
        for gradient in torch.autograd.grad(loss, pair):
            assert gradient.dtype == dtype
            assert gradient.isfinite().all()


def test_powers_of_the_published_form_overflow_where_this_one_is_exact():
    pair = views(8, 4, dtype=torch.float32)
    options = {"temperature": 0.01, "tau_plus": 0.1, "beta": 1.0}
    assert not published(*pair, **options).isfinite()
    exact = published(*(view.double() for view in pair), **options)
    torch.testing.assert_close(
        hard_negative_loss(*pair, **options).double(), exact, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("options", [{}, {"tau_plus": 0.0}, {"beta": 0.0}, {"tau_plus": 0.4}])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_learnable_temperature_has_the_gradient_of_the_eager_form(shape, options):
    first, second = views()
    gradients = []
    for loss_function in (hard_negative_loss, _hard_negative_eager):
        temperature = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
        loss_function(first, second, temperature=temperature, **options).sum().backward()
        assert temperature.grad.shape == shape
        gradients.append(temperature.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients)


def test_gradcheck_of_embeddings_and_temperature():
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def loss(first, second, temperature):
        return hard_negative_loss(first, second, temperature=temperature, tau_plus=0.05)

    assert torch.autograd.gradcheck(loss, (*leaves(3, 4), temperature))


def test_symmetries():
    first, second = views()
    value = hard_negative_loss(first, second)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    rotation, _ = torch.linalg.qr(views(5, 5)[0])
    lengths = torch.linspace(0.01, 100, 6, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(hard_negative_loss(second, first), value)
    torch.testing.assert_close(hard_negative_loss(first[order], second[order]), value)
    torch.testing.assert_close(hard_negative_loss(first @ rotation, second @ rotation), value)
    torch.testing.assert_close(hard_negative_loss(lengths * first, second), value)
    assert hard_negative_loss(first[order], second[order.flip(0)]) != value


def test_module_has_the_defaults_of_the_authors_and_anneals():
    first, second = views()
    loss = HardNegativeLoss()
    assert (loss.temperature, loss.tau_plus, loss.beta) == (0.5, 0.1, 1.0)
    torch.testing.assert_close(
        loss(first, second), published(first, second, temperature=0.5, tau_plus=0.1, beta=1.0)
    )
    loss.beta = 0.25
    torch.testing.assert_close(
        loss(first, second), published(first, second, temperature=0.5, tau_plus=0.1, beta=0.25)
    )


def test_parameter_temperature_is_a_parameter_of_the_module():
    loss = HardNegativeLoss(torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(*views(dtype=torch.float32)).backward()
    assert loss.temperature.grad.abs() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float64(dtype):
    pair = views(16, 24, dtype=dtype)
    value = hard_negative_loss(*pair)
    exact = hard_negative_loss(*(view.double() for view in pair))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=0.01)


def test_autocast_rounds_positives_and_negatives_alike():
    pair = leaves(12, 32, dtype=torch.float32)
    exact = hard_negative_loss(*pair, temperature=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        value = hard_negative_loss(*pair, temperature=0.2)
    gradient, _ = torch.autograd.grad(value, pair)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.float32)
    assert value != exact
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.05)


def test_compiles_without_a_graph_break_for_any_batch_size_and_beta():
    torch.compiler.reset()
    loss = HardNegativeLoss(0.2)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_images, beta in ((4, 1.0), (7, 1.0), (9, 0.5)):
        loss.beta = beta
        pair = leaves(num_images)
        actual, expected = compiled(*pair), loss(*pair)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, pair), torch.autograd.grad(expected, pair)
        )


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX, torch.ones(2, 4), ValueError, r"1 must have the shape of .*\(3, 4\), got \(2, 4"),
        (torch.ones(3), torch.ones(3), ValueError, r"0 must be a matrix .* got shape \(3,\)"),
        (
            torch.ones(1, 4),
            torch.ones(1, 4),
            ValueError,
            r"0 must have at least two rows: .*no negatives, got shape \(1, 4\)",
        ),
        (MATRIX.long(), MATRIX, TypeError, r"0 must be floating point .* got torch.int64"),
        (MATRIX, [[1.0]], TypeError, r"1 must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r"1 must be on the device of .*\(cpu\), got meta"),
    ],
)
def test_errors_name_the_embeddings(first, second, error, message):
    with pytest.raises(error, match="^embeddings" + message):
        hard_negative_loss(first, second)
    with pytest.raises(error, match="^out" + message):
        HardNegativeLoss()(first, second)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 0.0, "finite and at least 1e-8"),
        ("temperature", math.nan, "finite and at least 1e-8"),
        ("tau_plus", -0.1, "finite and at least 0 and below 1"),
        ("tau_plus", 1.0, "finite and at least 0 and below 1"),
        ("tau_plus", math.nan, "finite and at least 0 and below 1"),
        ("beta", -1.0, "finite and at least 0"),
        ("beta", math.inf, "finite and at least 0"),
    ],
)
def test_errors_name_the_option(name, value, expected):
    message = rf"^{name} must be {expected}, got {value}$"
    with pytest.raises(ValueError, match=message):
        hard_negative_loss(MATRIX, MATRIX, **{name: value})
    with pytest.raises(ValueError, match=message):
        HardNegativeLoss(**{name: value})
    loss = HardNegativeLoss()
    setattr(loss, name, value)
    with pytest.raises(ValueError, match=message):
        loss(MATRIX, MATRIX)


@pytest.mark.parametrize("name", ["tau_plus", "beta"])
@pytest.mark.parametrize("value", ["0.1", None, True])
def test_errors_name_the_kind_of_option(name, value):
    with pytest.raises(TypeError, match=rf"^{name} must be a number, got {type(value).__name__}"):
        HardNegativeLoss(**{name: value})


def test_errors_name_the_missing_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        HardNegativeLoss(gather_distributed=True)
