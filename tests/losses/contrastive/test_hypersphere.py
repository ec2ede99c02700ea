"""Alignment, uniformity and their sum: lightly's values, known values, limits, bad arguments."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import or_skip, value_and_gradients
from contrastive_inputs import leaves, views
from torch import Tensor

from sslfast.bench.peers import lightly_loss
from sslfast.functional import alignment_loss, hypersphere_loss, uniformity_loss
from sslfast.losses import AlignmentLoss, HypersphereLoss, UniformityLoss

MATRIX = torch.ones(3, 4)


def lightly():
    with or_skip():
        return lightly_loss("hypersphere_loss", "HypersphereLoss")


def published_uniformity(rows: Tensor, t: float) -> Tensor:
    """The authors' form."""
    return torch.pdist(rows).pow(2).mul(-t).exp().mean().log()


@pytest.mark.parametrize("num_images", [2, 3, 17, 200])
@pytest.mark.parametrize(
    "options",
    [{}, {"t": 2.0, "lam": 0.3}, {"alpha": 1.0}, {"alpha": 3.0, "lam": 0.0}, {"lam": -1.0}],
    ids=str,
)
def test_value_and_gradient_of_lightly(options, num_images):
    ours, theirs = HypersphereLoss(**options), lightly()(**options)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        pair = leaves(num_images, 24, dtype=dtype)
        expected = value_and_gradients(theirs, pair)
        for actual, wanted in zip(value_and_gradients(ours, pair), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def test_signature_and_attributes_of_lightly():
    """One more argument here, the last: ranks are gathered."""
    theirs = inspect.signature(lightly().__init__).parameters.values()
    ours = list(inspect.signature(HypersphereLoss.__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[:-1]] == [(p.name, p.default) for p in theirs]
    assert (ours[-1].name, ours[-1].default) == ("gather_distributed", False)
    assert list(inspect.signature(HypersphereLoss.forward).parameters) == list(
        inspect.signature(lightly().forward).parameters
    )
    for name in ("t", "lam", "alpha"):
        assert getattr(HypersphereLoss(2.0, 3.0, 4.0), name) == getattr(
            lightly()(2.0, 3.0, 4.0), name
        )


def test_is_the_weighted_sum_of_its_parts():
    first, second = views()
    parts = alignment_loss(first, second, alpha=1.5)
    parts += 0.7 * (uniformity_loss(first, t=3.0) + uniformity_loss(second, t=3.0)) / 2
    torch.testing.assert_close(
        hypersphere_loss(first, second, t=3.0, lam=0.7, alpha=1.5), parts, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("normalize", [True, False])
def test_alignment_equals_its_formula_written_out(alpha, normalize):
    first, second = views(4, 3)
    rows = (F.normalize(first), F.normalize(second)) if normalize else (first, second)
    terms = [math.dist(x.tolist(), y.tolist()) ** alpha for x, y in zip(*rows, strict=True)]
    value = alignment_loss(first, second, alpha=alpha, normalize=normalize)
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-12)


@pytest.mark.parametrize("t", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_uniformity_equals_its_formula_written_out(t, normalize):
    embeddings, _ = views(5, 3)
    rows = (F.normalize(embeddings) if normalize else embeddings).tolist()
    terms = [math.exp(-t * math.dist(rows[i], rows[j]) ** 2) for i in range(5) for j in range(i)]
    value = uniformity_loss(embeddings, t=t, normalize=normalize)
    assert value.item() == pytest.approx(math.log(sum(terms) / 10), rel=1e-10)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_has_the_gradient_of_the_published_form(t, normalize):
    (embeddings, _) = leaves(13, 7)

    def published(rows: Tensor) -> Tensor:
        return published_uniformity(F.normalize(rows) if normalize else rows, t)

    torch.testing.assert_close(
        value_and_gradients(partial(uniformity_loss, t=t, normalize=normalize), (embeddings,)),
        value_and_gradients(published, (embeddings,)),
        rtol=1e-10,
        atol=1e-12,
    )


def test_known_values():
    orthogonal = torch.eye(5, dtype=torch.float64)
    simplex = torch.eye(4, dtype=torch.float64) - 0.25
    antipodes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    collapsed = torch.ones(6, 3, dtype=torch.float64)
    assert uniformity_loss(orthogonal, t=2.0).item() == pytest.approx(-4.0, rel=1e-12)
    assert uniformity_loss(simplex, t=2.0).item() == pytest.approx(-2 * 8 / 3, rel=1e-12)
    assert uniformity_loss(antipodes, t=2.0).item() == pytest.approx(-8.0, rel=1e-12)
    assert uniformity_loss(collapsed, t=2.0).item() == pytest.approx(0.0, abs=1e-14)
    assert uniformity_loss(collapsed, normalize=False).item() == 0.0
    assert alignment_loss(orthogonal, orthogonal.roll(1, 0)).item() == pytest.approx(2.0)
    assert alignment_loss(antipodes, -antipodes, alpha=3.0).item() == pytest.approx(8.0)
    assert alignment_loss(collapsed, 2 * collapsed).item() == 0.0


def test_uniformity_has_its_minimum_at_the_simplex():
    simplex = (torch.eye(4, dtype=torch.float64) - 0.25).requires_grad_()
    value = uniformity_loss(simplex)
    (gradient,) = torch.autograd.grad(value, simplex)
    assert gradient.abs().max() < 1e-12
    for seed in range(5):
        assert uniformity_loss(simplex + 0.1 * views(4, 4, seed=seed)[0]) > value


def test_uniformity_symmetries():
    embeddings, _ = views()
    rotation, _ = torch.linalg.qr(views(5, 5)[0])
    lengths = torch.linspace(0.01, 100, 6, dtype=torch.float64).unsqueeze(1)
    for normalize in (True, False):
        value = uniformity_loss(embeddings, normalize=normalize)
        for same in (embeddings[torch.randperm(6)], embeddings @ rotation):
            torch.testing.assert_close(uniformity_loss(same, normalize=normalize), value)
    value = uniformity_loss(embeddings)
    torch.testing.assert_close(uniformity_loss(lengths * embeddings), value)
    as_given = uniformity_loss(embeddings, normalize=False)
    torch.testing.assert_close(uniformity_loss(embeddings + 7.0, normalize=False), as_given)
    torch.testing.assert_close(
        uniformity_loss(F.normalize(embeddings), normalize=False), value, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("t", [2.0, 100.0])
def test_nearly_identical_rows(t):
    """Centred rows give distances to eps of themselves, unit rows to eps of 1."""
    eps = torch.finfo(torch.float32).eps
    rows = F.normalize(torch.ones(20, 8) + 1e-2 * views(20, 8, dtype=torch.float32)[0])
    leaf, exact_leaf = rows.clone().requires_grad_(), rows.double().requires_grad_()
    exact, exact_gradient = value_and_gradients(partial(published_uniformity, t=t), (exact_leaf,))
    centred, gradient = value_and_gradients(partial(uniformity_loss, t=t, normalize=False), (leaf,))
    assert (centred - exact).abs() < eps * max(1, exact.abs())
    assert (gradient - exact_gradient).norm() < 16 * eps * exact_gradient.norm()
    assert (uniformity_loss(rows, t=t) - exact).abs() < 4 * t * eps


def test_mean_that_underflows_keeps_its_logarithm():
    rows = 100 * torch.eye(4, dtype=torch.float32)
    assert published_uniformity(rows, 2.0) == -math.inf
    assert uniformity_loss(rows, normalize=False).item() == pytest.approx(-40000.0, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_pairs_at_distance_0_have_gradient_0(alpha):
    first = torch.eye(3, dtype=torch.float64).requires_grad_()
    second = torch.eye(3, dtype=torch.float64).roll(1, 1)
    second[0] = first.detach()[0]
    (gradient,) = torch.autograd.grad(
        alignment_loss(first, second, alpha=alpha, normalize=False), first
    )
    assert gradient[0].abs().max() == 0
    assert gradient[1:].isfinite().all()
    assert gradient[1:].abs().max() > 0


def test_equal_rows_have_uniformity_gradient_0():
    rows = torch.ones(4, 3, requires_grad=True)
    for normalize in (True, False):
        (gradient,) = torch.autograd.grad(uniformity_loss(rows, normalize=normalize), rows)
        assert gradient.abs().max() < 1e-6


def test_gradcheck():
    first, second = leaves(4, 3)
    for alpha in (1.0, 2.0):
        assert torch.autograd.gradcheck(partial(alignment_loss, alpha=alpha), (first, second))
    for normalize in (True, False):
        assert torch.autograd.gradcheck(partial(uniformity_loss, normalize=normalize), (first,))
    assert torch.autograd.gradcheck(hypersphere_loss, (first, second))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_losses_and_half_gradients(dtype):
    first, second = leaves(16, 24, dtype=dtype)
    for loss, rows in (
        (alignment_loss, (first, second)),
        (uniformity_loss, (first,)),
        (partial(uniformity_loss, t=0.1, normalize=False), (first,)),
        (hypersphere_loss, (first, second)),
    ):
        value = loss(*rows)
        exact = loss(*(each.double() for each in rows))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=0.01)
        for gradient in torch.autograd.grad(value, rows):
            assert gradient.dtype == dtype
            assert gradient.isfinite().all()


def test_autocast():
    first, second = leaves(12, 32, dtype=torch.float32)
    exact = hypersphere_loss(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        value = hypersphere_loss(first, second)
        aligned = alignment_loss(first, second)
        as_given = uniformity_loss(first, t=0.1, normalize=False)
    assert value.dtype == aligned.dtype == as_given.dtype == torch.float32
    assert value != exact
    torch.testing.assert_close(value, exact, rtol=0.01, atol=0.01)
    torch.testing.assert_close(aligned, alignment_loss(first, second), rtol=0, atol=0)
    as_given_exact = uniformity_loss(first, t=0.1, normalize=False)
    torch.testing.assert_close(as_given, as_given_exact, rtol=0.01, atol=0.01)
    for gradient in torch.autograd.grad(value, (first, second)):
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (AlignmentLoss(1.5), 2),
        (UniformityLoss(), 1),
        (UniformityLoss(normalize=False), 1),
        (HypersphereLoss(), 2),
    ],
    ids=["alignment", "uniformity", "uniformity as given", "hypersphere"],
)
def test_compiles_without_a_graph_break_for_any_batch_size(loss, count):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_images in (4, 7, 9):
        rows = leaves(num_images)[:count]
        actual, expected = (value_and_gradients(each, rows) for each in (compiled, loss))
        torch.testing.assert_close(actual, expected)


def test_modules_are_their_functions():
    first, second = views()
    for module, expected in (
        (
            AlignmentLoss(3.0, normalize=False),
            alignment_loss(first, second, alpha=3, normalize=False),
        ),
        (HypersphereLoss(2.0, 0.5, 1.0), hypersphere_loss(first, second, t=2, lam=0.5, alpha=1)),
    ):
        assert torch.equal(module(first, second), expected)
    for normalize in (True, False):
        module = UniformityLoss(0.3, normalize=normalize)
        assert torch.equal(module(first), uniformity_loss(first, t=0.3, normalize=normalize))


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX, torch.ones(2, 4), ValueError, r" must have the shape of .*\(3, 4\), got \(2, 4"),
        (torch.ones(3), torch.ones(3), ValueError, r" must be a matrix .* got shape \(3,\)"),
        (MATRIX[:0], MATRIX[:0], ValueError, r" must have at least one row, got shape \(0, 4\)"),
        (MATRIX.long(), MATRIX, TypeError, r" must be floating point .* got torch.int64"),
        (MATRIX, [[1.0]], TypeError, r" must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r" must be on the device of .*\(cpu\), got meta"),
    ],
)
def test_errors_name_the_views(first, second, error, message):
    for loss, names in (
        (alignment_loss, "embeddings[01]"),
        (hypersphere_loss, "embeddings[01]"),
        (AlignmentLoss(), "out[01]"),
        (HypersphereLoss(), "z_[ab]"),
    ):
        with pytest.raises(error, match=f"^{names}{message}"):
            loss(first, second)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (torch.ones(3), ValueError, r"must be a matrix .* got shape \(3,\)"),
        (MATRIX[:0], ValueError, r"must have at least one row, got shape \(0, 4\)"),
        (MATRIX[:1], ValueError, r"must have at least two rows: .*one pair, got shape \(1, 4\)"),
        (MATRIX.int(), TypeError, r"must be floating point .* got torch.int32"),
        (None, TypeError, r"must be a tensor, got NoneType"),
    ],
)
def test_errors_name_the_embeddings(embeddings, error, message):
    for loss in (uniformity_loss, UniformityLoss(), UniformityLoss(normalize=False)):
        with pytest.raises(error, match=f"^embeddings {message}"):
            loss(embeddings)


def test_one_pair_has_no_uniformity():
    with pytest.raises(ValueError, match=r"^embeddings0 must have at least two rows: .* \(1, 4\)"):
        hypersphere_loss(MATRIX[:1], MATRIX[:1])
    with pytest.raises(ValueError, match=r"^z_a must have at least two rows: .* \(1, 4\)"):
        HypersphereLoss()(MATRIX[:1], MATRIX[:1])
    assert alignment_loss(MATRIX[:1], MATRIX[:1]) == 0


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_errors_name_the_option(value):
    for name, losses in (
        ("alpha", (AlignmentLoss, HypersphereLoss, partial(alignment_loss, MATRIX, MATRIX))),
        ("t", (UniformityLoss, HypersphereLoss, partial(uniformity_loss, MATRIX))),
    ):
        for loss in losses:
            with pytest.raises(
                ValueError, match=rf"^{name} must be finite and above 0, got {value}"
            ):
                loss(**{name: value})
            with pytest.raises(TypeError, match=rf"^{name} must be a number, got str"):
                loss(**{name: "2"})
    for loss in (HypersphereLoss, partial(hypersphere_loss, MATRIX, MATRIX)):
        with pytest.raises(ValueError, match=r"^lam must be finite, got inf"):
            loss(lam=math.inf)


def test_errors_name_the_missing_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for loss_class in (UniformityLoss, HypersphereLoss):
        with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch"):
            loss_class(gather_distributed=True)
