"""Mixed Barlow Twins against the authors' two scripts by formula; mixup; limits; bad input."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from sslfast.functional import barlow_twins_loss, mixed_barlow_twins_loss, mixup
from sslfast.losses import MixedBarlowTwinsLoss
from sslfast.testing import check_case

MATRIX = torch.eye(4, 3)
ORDER = torch.tensor([2, 0, 3, 1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def views(num_images: int, dim: int) -> list[Tensor]:
    images = draw(num_images, dim)
    return [(images + draw(num_images, dim, seed=k)).requires_grad_() for k in (1, 2, 3)]


def script(a: Tensor, b: Tensor, m: Tensor, lam: float, p: Tensor, *, imagenet: bool) -> Tensor:
    """The formulas of the two scripts, matrix by matrix."""
    a, b, m = ((rows - rows.mean(0)) / rows.std(0) for rows in (a, b, m))
    num_images, dim = a.shape
    lambda_param = 0.0051 if imagenet else 0.005

    def correlation(left: Tensor, right: Tensor) -> Tensor:
        return left.T @ right / num_images  # (D, D)

    difference = correlation(a, b) - torch.eye(dim, dtype=a.dtype)
    weight = torch.full_like(difference, lambda_param).fill_diagonal_(1)
    twins = (weight * difference.square()).sum()
    own = correlation(b, b) if imagenet else correlation(a, b)
    target0 = lam * correlation(a, a) + (1 - lam) * correlation(b[p], a)
    target1 = lam * own + (1 - lam) * correlation(b[p], b)
    first = (correlation(m, a) - target0).square().sum()
    second = (correlation(m, b) - target1).square().sum()
    return twins + (0.5 * 1.0 if imagenet else 5.0) * lambda_param * (first + second)


IMAGENET = {"lambda_param": 0.0051, "mixup_scale": 0.5, "second_target": "own_view"}


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
@pytest.mark.parametrize("shape", [(5, 12), (24, 11), (9, 9)], ids=str)
@pytest.mark.parametrize("imagenet", [False, True])
def test_value_and_gradient_of_the_authors_scripts(imagenet, shape, route, kind):
    rows = views(*shape)
    p = torch.randperm(shape[0], generator=torch.Generator().manual_seed(5))
    loss = MixedBarlowTwinsLoss(route=route, **(IMAGENET if imagenet else {}))
    actual = loss(*rows, kind(0.3125), p)
    expected = script(*rows, 0.3125, p, imagenet=imagenet)
    torch.testing.assert_close(actual, expected)
    gradients = (torch.autograd.grad(value, rows) for value in (actual, expected))
    for gradient, truth in zip(*gradients, strict=True):
        assert truth.abs().max() > 1e-4
        torch.testing.assert_close(gradient, truth)


def test_scripts_are_different_losses():
    rows = views(6, 5)
    values = [script(*rows, 0.3, torch.arange(6).roll(1), imagenet=flag) for flag in (False, True)]
    assert abs(values[0] - values[1]) > 0.1


def test_gradcheck():
    rows = views(5, 7)

    def loss(*rows: Tensor) -> Tensor:
        return mixed_barlow_twins_loss(*rows, lam=0.3, permutation=torch.arange(5).roll(2))

    assert torch.autograd.gradcheck(loss, rows)


def test_a_mixture_that_is_one_of_embeddings_costs_nothing():
    """Where the mixture's standardised rows are the mixture of the views' there is no residual."""
    a, b, _ = (view.detach() for view in views(8, 5))
    for lam, mixed in ((1.0, a), (0.0, b)):
        loss = mixed_barlow_twins_loss(a, b, 3 * mixed + 1, lam=lam)
        torch.testing.assert_close(loss, barlow_twins_loss(a, b, ddof=1, eps=0.0))


def test_without_permutation_each_image_is_mixed_with_itself():
    rows = views(8, 5)
    torch.testing.assert_close(
        mixed_barlow_twins_loss(*rows, lam=0.3),
        mixed_barlow_twins_loss(*rows, lam=0.3, permutation=torch.arange(8)),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_permutation_of_any_integers(dtype):
    rows = views(4, 3)
    torch.testing.assert_close(
        mixed_barlow_twins_loss(*rows, lam=0.3, permutation=ORDER.to(dtype)),
        script(*rows, 0.3, ORDER, imagenet=False),
    )


def test_scale_of_0_is_barlow_twins():
    rows = views(8, 5)
    torch.testing.assert_close(
        MixedBarlowTwinsLoss(mixup_scale=0.0)(*rows, 0.3),
        barlow_twins_loss(*rows[:2], ddof=1, eps=0.0),
    )


def test_lam_receives_no_gradient():
    lam = torch.tensor(0.3, requires_grad=True)
    loss = mixed_barlow_twins_loss(*views(8, 5), lam=lam)
    assert torch.autograd.grad(loss, lam, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_stays_finite_and_within_the_error_rule(dtype):
    rows = [8 * view.detach() for view in views(2048, 64)]
    names = ("embeddings0", "embeddings1", "embeddings_mixed")
    order = torch.randperm(2048, generator=torch.Generator().manual_seed(1))

    def eager(**rows: Any) -> Tensor:
        value: Tensor = script(*rows.values(), 0.3, order, imagenet=False)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    def fused(**rows: Any) -> Tensor:
        return mixed_barlow_twins_loss(**rows, lam=0.3, permutation=order)

    arguments = dict(zip(names, rows, strict=True))
    check_case(fused, eager, arguments, dtype=dtype, rounding=dtype).require()


def test_constant_columns_stay_finite():
    a, b, m = (view.detach() for view in views(8, 5))
    a[:, 0] = b[:, 1] = m[:, 2] = 3.1
    rows = [view.float().requires_grad_() for view in (a, b, m)]
    loss = mixed_barlow_twins_loss(*rows, lam=0.3, permutation=torch.arange(8).roll(1))
    gradients = torch.autograd.grad(loss, rows)
    assert loss.isfinite()
    for column, gradient in enumerate(gradients):
        assert gradient.isfinite().all()
        assert not gradient[:, column].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mixup_mixes_with_what_it_returns(dtype):
    images0, images1 = (draw(7, 3, 4, 4, seed=seed).to(dtype) for seed in (0, 1))
    before = images1.clone()
    mixed, lam, permutation = mixup(images0, images1, generator=torch.Generator().manual_seed(3))
    assert (mixed.dtype, lam.dtype, permutation.dtype) == (dtype, torch.float32, torch.int64)
    assert lam.ndim == 0
    assert permutation.sort().values.tolist() == list(range(7))
    share = lam.to(dtype)
    eps = 4 * torch.finfo(dtype).eps
    expected = share * images0 + (1 - share) * images1[permutation]
    torch.testing.assert_close(mixed, expected, rtol=eps, atol=eps)
    assert torch.equal(images1, before)


def test_mixup_draws_from_its_generator_alone():
    images = draw(50, 2), draw(50, 2, seed=1)
    state = torch.get_rng_state()
    first, again = (mixup(*images, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    _, lam, permutation = mixup(*images)
    assert not torch.equal(torch.get_rng_state(), state)
    assert lam != first[1]
    assert not torch.equal(permutation, first[2])


def test_mixup_draws_uniform_shares():
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(2, 1)
    shares = torch.stack([mixup(image, image, generator=generator)[1] for _ in range(2000)])
    expected = torch.linspace(0, 1, 2000)
    assert (shares.sort().values - expected).abs().max() < 0.04  # Kolmogorov, 1.36 / sqrt(2000)


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX.byte(), MATRIX, TypeError, "images0 must be floating point .* torch.uint8"),
        (MATRIX[:0], MATRIX[:0], ValueError, r"images0 must hold at least one image, got \(0, 3"),
        (MATRIX, MATRIX[:2], ValueError, r"images1 must have shape and dtype .* got \(2, 3\)"),
        (MATRIX, MATRIX.double(), ValueError, r"images1 must have .* got \(4, 3\), torch.float64"),
        (MATRIX, MATRIX.to("meta"), ValueError, "images1 must be on the device .* got meta"),
    ],
)
def test_mixup_names_the_images(first, second, error, message):
    with pytest.raises(error, match="^" + message):
        mixup(first, second)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lam": 1.5}, ValueError, "lam must be from 0 to 1, got 1.5"),
        ({"lam": torch.tensor(-0.5)}, ValueError, "lam must be from 0 to 1, got -0.5"),
        ({"lam": torch.ones(2)}, ValueError, r"lam must have one element, got shape \(2,\)"),
        ({"lam": "0.5"}, TypeError, "lam must be a number, got str"),
        ({"permutation": ORDER[:3]}, ValueError, r"permutation must have shape .* got .*\(3,\)"),
        ({"permutation": ORDER + 1}, ValueError, "permutation must hold each of 0 to 3 once"),
        ({"permutation": ORDER * 0}, ValueError, "permutation must hold each of 0 to 3 once"),
        ({"permutation": ORDER.float()}, TypeError, "permutation must hold integers"),
        ({"permutation": [2, 0, 3, 1]}, TypeError, "permutation must be a tensor, got list"),
        ({"mixup_scale": -1.0}, ValueError, "mixup_scale must be finite and at least 0, got -1"),
        ({"second_target": "b"}, ValueError, "second_target must be one of .*mixture.* got 'b'"),
        ({"lambda_param": -1.0}, ValueError, "lambda_param must be finite and at least 0"),
        ({"ddof": -1}, ValueError, "ddof must be 0 .* got -1"),
        ({"embeddings_mixed": MATRIX[:3]}, ValueError, "embeddings_mixed must have the shape"),
        ({"embeddings_mixed": MATRIX.int()}, TypeError, "embeddings_mixed must be floating"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    arguments = {
        "embeddings0": MATRIX,
        "embeddings1": MATRIX,
        "embeddings_mixed": MATRIX,
        "lam": 0.5,
        **options,
    }
    with pytest.raises(error, match="^" + message):
        mixed_barlow_twins_loss(**arguments)
    taken = inspect.signature(MixedBarlowTwinsLoss).parameters
    if options.keys() <= taken.keys():
        with pytest.raises(error, match="^" + message):
            MixedBarlowTwinsLoss(**options)


def test_one_image_alone_is_refused():
    with pytest.raises(ValueError, match=r"^embeddings0 must have at least two rows"):
        mixed_barlow_twins_loss(MATRIX[:1], MATRIX[:1], MATRIX[:1], lam=0.5)


def test_repr_shows_every_option():
    text = repr(MixedBarlowTwinsLoss(0.1, second_target="own_view"))
    for name in inspect.signature(MixedBarlowTwinsLoss).parameters:
        assert f"{name}=" in text
    assert "second_target='own_view'" in text
