"""NT-Xent: what the formula promises, in every number format and compiled."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import unit_rows, views

from sslfast.functional import ntxent_loss
from sslfast.losses import NTXentLoss
from sslfast.losses.contrastive.ntxent import _ntxent_eager


def test_equals_equation_1_written_out():
    first, second = views(num_images=3)
    rows = F.normalize(torch.cat((first, second)))
    terms = []
    for i in range(6):
        exps = [math.exp(float(rows[i] @ rows[j]) / 0.3) for j in range(6)]
        terms.append(-math.log(exps[(i + 3) % 6] / (sum(exps) - exps[i])))
    assert ntxent_loss(first, second, temperature=0.3).item() == pytest.approx(sum(terms) / 6)


def test_with_negatives_equals_one_sided_infonce_written_out():
    first, second = views(num_images=3)
    negatives = unit_rows(4, 5)
    queries, keys = F.normalize(first), F.normalize(second)
    terms = []
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query @ key) / 0.3)
        others = [math.exp(float(query @ negative) / 0.3) for negative in negatives]
        terms.append(-math.log(positive / (positive + sum(others))))
    loss = ntxent_loss(first, second, temperature=0.3, negatives=negatives)
    assert loss.item() == pytest.approx(sum(terms) / 3)


def test_one_pair_has_no_negative_so_loss_and_gradient_are_zero():
    first, second = (view.requires_grad_() for view in views(num_images=1))
    loss = ntxent_loss(first, second)
    gradients = torch.autograd.grad(loss, (first, second))
    assert loss.item() == 0.0
    assert all(torch.equal(gradient, torch.zeros(1, 5).double()) for gradient in gradients)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_known_values_of_collapsed_and_of_orthogonal_embeddings(temperature):
    num_images = 4
    collapsed = torch.ones(num_images, 3, dtype=torch.float64)
    orthogonal = torch.eye(num_images, dtype=torch.float64)
    loss = ntxent_loss(collapsed, collapsed, temperature=temperature)
    assert loss.item() == pytest.approx(math.log(2 * num_images - 1))
    loss = ntxent_loss(orthogonal, orthogonal, temperature=temperature)
    expected = math.log1p((2 * num_images - 2) * math.exp(-1 / temperature))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_simplex_is_the_minimum():
    simplex = torch.eye(4, dtype=torch.float64) - 0.25
    first, second = (simplex.clone().requires_grad_() for _ in range(2))
    loss = ntxent_loss(first, second, temperature=0.5)
    gradients = torch.autograd.grad(loss, (first, second))
    assert torch.stack(gradients).abs().max() < 1e-12
    for seed in range(5):
        step, other = views(4, 4, seed=seed)
        assert ntxent_loss(simplex + 0.1 * step, simplex + 0.1 * other, temperature=0.5) > loss


def test_small_losses_keep_their_digits_where_the_eager_form_returns_zero():
    orthogonal = torch.eye(8)
    expected = math.log1p(14 * math.exp(-1 / 0.04))
    assert _ntxent_eager(orthogonal, orthogonal, temperature=0.04).item() == 0.0
    loss = ntxent_loss(orthogonal, orthogonal, temperature=0.04)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_swap_of_views_and_permutation_of_images_change_nothing():
    first, second = views()
    loss = ntxent_loss(first, second)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(ntxent_loss(second, first), loss)
    torch.testing.assert_close(ntxent_loss(first[order], second[order]), loss)
    assert ntxent_loss(first[order], second) != loss


def test_rotation_and_row_lengths_change_nothing():
    first, second = views()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    lengths = torch.linspace(0.01, 100, 6, dtype=torch.float64).unsqueeze(1)
    loss = ntxent_loss(first, second, temperature=0.1)
    torch.testing.assert_close(
        ntxent_loss(first @ rotation, second @ rotation, temperature=0.1), loss
    )
    torch.testing.assert_close(ntxent_loss(lengths * first, second, temperature=0.1), loss)


def test_one_feature_leaves_only_signs_and_no_gradient():
    first, second = (view.requires_grad_() for view in views(4, 1, dtype=torch.float32))
    loss = ntxent_loss(first, second, temperature=0.5)
    torch.testing.assert_close(loss, ntxent_loss(first.sign(), second.sign(), temperature=0.5))
    for gradient in torch.autograd.grad(loss, (first, second)):
        assert gradient.abs().max() < 1e-6


def test_gradient_is_orthogonal_to_the_embeddings():
    first, second = (view.requires_grad_() for view in views())
    gradients = torch.autograd.grad(ntxent_loss(first, second), (first, second))
    for view, gradient in zip((first, second), gradients, strict=True):
        assert gradient.abs().max() > 1e-3
        assert (view * gradient).sum(1).abs().max() < 1e-14


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("queue", [False, True])
def test_learnable_temperature_has_the_gradient_of_the_eager_form(shape, queue):
    first, second = views()
    negatives = unit_rows(7, 5) if queue else None
    gradients = []
    for loss_function in (ntxent_loss, _ntxent_eager):
        temperature = torch.full(shape, 0.2, dtype=torch.float64, requires_grad=True)
        loss = loss_function(first, second, temperature=temperature, negatives=negatives)
        loss.sum().backward()
        assert temperature.grad.shape == shape
        gradients.append(temperature.grad)
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(*gradients)


def test_gradcheck_of_embeddings_and_temperature():
    first, second = (view.requires_grad_() for view in views(3, 4))
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    negatives = unit_rows(5, 4)

    def within_batch(first, second, temperature):
        return ntxent_loss(first, second, temperature=temperature)

    def against_negatives(first, second, temperature):
        return ntxent_loss(first, second, temperature=temperature, negatives=negatives)

    for function in (within_batch, against_negatives):
        assert torch.autograd.gradcheck(function, (first, second, temperature))


def test_parameter_temperature_is_a_parameter_of_the_module():
    loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(*views(dtype=torch.float32)).backward()
    assert loss.temperature.grad.abs() > 0


def test_temperature_may_be_changed_between_steps():
    first, second = views()
    loss = NTXentLoss(0.5)
    loss.temperature = 0.1
    torch.testing.assert_close(loss(first, second), ntxent_loss(first, second, temperature=0.1))


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.01])
def test_half_precision_gives_a_finite_float32_loss_and_half_gradients(dtype, temperature, queue):
    first, second = (view.requires_grad_() for view in views(16, 24, dtype=dtype))
    options = {"temperature": temperature}
    if queue:
        options["negatives"] = unit_rows(40, 24).float()
    loss = ntxent_loss(first, second, **options)
    gradients = torch.autograd.grad(loss, (first, second))
    exact = _ntxent_eager(first.double(), second.double(), temperature=temperature)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    if not queue:
        torch.testing.assert_close(loss.double(), exact, rtol=0.02, atol=0.02)
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_float64_stays_float64_and_mixed_views_promote():
    first, second = views()
    assert ntxent_loss(first, second).dtype == torch.float64
    mixed = ntxent_loss(first.bfloat16(), second.bfloat16().float())
    same = ntxent_loss(first.bfloat16().float(), second.bfloat16().float())
    assert torch.equal(mixed, same)


def test_autocast_rounds_positives_and_negatives_alike():
    first, second = (view.requires_grad_() for view in views(12, 32, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ntxent_loss(first, second, temperature=0.02)
        same = ntxent_loss(first, first, temperature=0.001)
    gradient, _ = torch.autograd.grad(loss, (first, second))
    exact = ntxent_loss(first, second, temperature=0.02)
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)
    assert gradient.dtype == torch.float32
    assert same >= 0


def test_autocast_reaches_an_encoder():
    encoder = torch.nn.Linear(8, 4)
    first, second = views(6, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = NTXentLoss(0.1, memory_bank_size=(5, 4))(encoder(first), encoder(second))
    loss.backward()
    assert loss.dtype == torch.float32
    assert encoder.weight.grad.isfinite().all()


@pytest.mark.parametrize("queue", [False, True])
def test_compiles_without_a_graph_break(queue):
    torch.compiler.reset()
    torch.manual_seed(0)
    loss = NTXentLoss(0.2, memory_bank_size=(7, 5) if queue else 0)
    expected_loss = copy.deepcopy(loss)
    compiled = torch.compile(loss, fullgraph=True)
    for step in range(3):
        first, second = (view.requires_grad_() for view in views(4, seed=step))
        actual, expected = compiled(first, second), expected_loss(first, second)
        torch.testing.assert_close(actual, expected)
        for gradients in zip(
            torch.autograd.grad(actual, (first, second)),
            torch.autograd.grad(expected, (first, second)),
            strict=True,
        ):
            torch.testing.assert_close(*gradients)
        torch.testing.assert_close(loss.memory_bank.bank, expected_loss.memory_bank.bank)


def test_compiles_with_a_learnable_temperature_and_under_autocast():
    torch.compiler.reset()
    loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.2)))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    first, second = views(dtype=torch.float32)
    torch.testing.assert_close(compiled(first, second), loss(first, second))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(first, second), loss(first, second))
