"""Barlow Twins: lightly's value and gradient, other conventions by formula, limits, bad input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import or_skip
from places import SUPPORT
from torch import Tensor

from sslfast.bench.peers import lightly_loss
from sslfast.functional import barlow_twins_loss
from sslfast.losses import BarlowTwinsLoss
from sslfast.losses.redundancy.barlow_twins import _barlow_twins_eager
from sslfast.testing import check_case, peak_memory_of

MIB = 1 << 20
MATRIX = torch.eye(4, 3)
ROUTES = ("auto", "gram", "direct")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def views(num_images: int, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    images = draw(num_images, dim) + 0.5 * draw(num_images, 1, seed=1)
    both = (2 + images + 0.5 * draw(num_images, dim, seed=seed) for seed in (2, 3))
    return [view.to(dtype).requires_grad_() for view in both]


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *rows: Tensor) -> None:
    """Equal values and gradients, to a few roundings of the largest number."""
    actual, expected = ours(*rows), theirs(*rows)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    eps = 64 * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=eps, atol=eps)
    gradients = (torch.autograd.grad(value, rows) for value in (actual, expected))
    for gradient, truth in zip(*gradients, strict=True):
        assert truth.abs().max() > 0
        size = max(truth.abs().max().item(), 1)  # two images: only eps keeps it from being 0
        torch.testing.assert_close(gradient, truth, rtol=0, atol=eps * size)


@pytest.fixture
def lightly() -> Callable[..., torch.nn.Module]:
    with or_skip():
        return lightly_loss("barlow_twins_loss", "BarlowTwinsLoss")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5), (3, 3), (17, 64), (64, 17), (96, 96)], ids=str)
def test_value_and_gradient_of_lightly(lightly, shape, dtype, route):
    assert_same(BarlowTwinsLoss(route=route), lightly(), *views(*shape, dtype=dtype))


@pytest.mark.parametrize("lambda_param", [0.0, 0.0051, 1.0])
def test_lambda_of_lightly(lightly, lambda_param):
    assert_same(BarlowTwinsLoss(lambda_param), lightly(lambda_param), *views(17, 29))


def test_is_a_drop_in_for_lightly(lightly):
    def of(function: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(function).parameters.values()
        return [(each.name, each.default) for each in found if each.kind != each.KEYWORD_ONLY]

    assert of(BarlowTwinsLoss) == of(lightly)
    assert of(BarlowTwinsLoss.forward) == of(lightly.forward)
    assert BarlowTwinsLoss().state_dict() == lightly().state_dict()
    loss = BarlowTwinsLoss(0.1, True)
    assert (loss.lambda_param, loss.gather_distributed) == (0.1, True)
    loss.lambda_param = 0.0
    assert_same(loss, lightly(0.0), *views(6, 5))


def by_matrix(a: Tensor, b: Tensor, lambda_param: float) -> Tensor:
    """Equation 1 of standardised rows, element by element."""
    difference = torch.einsum("ni,nj->ij", a, b) / len(a) - torch.eye(a.shape[1], dtype=a.dtype)
    weight = torch.full_like(difference, lambda_param).fill_diagonal_(1)
    return (weight * difference.square()).sum()


def authors(a: Tensor, b: Tensor) -> Tensor:
    """Batch norm without scale and shift, lambda .0051."""
    rows = (F.batch_norm(view, None, None, training=True) for view in (a, b))
    return by_matrix(*rows, 0.0051)


def solo_learn(a: Tensor, b: Tensor) -> Tensor:
    rows = (F.batch_norm(view, None, None, training=True) for view in (a, b))
    return 0.025 * by_matrix(*rows, 5e-3)


def stable_pretraining(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased deviation, and eps on it."""
    rows = ((view - view.mean(0)) / (view.std(0) + 1e-5) for view in (a, b))
    return by_matrix(*rows, 5e-3)


def mixed_barlow_twins(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased deviation without eps."""
    rows = ((view - view.mean(0)) / view.std(0) for view in (a, b))
    return by_matrix(*rows, 5e-3)


CONVENTIONS = [
    (authors, {"lambda_param": 0.0051}),
    (solo_learn, {"scale_loss": 0.025}),
    (stable_pretraining, {"ddof": 1, "eps_on": "deviation"}),
    (mixed_barlow_twins, {"ddof": 1, "eps": 0.0}),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(5, 12), (24, 11)], ids=str)
@pytest.mark.parametrize(
    ("theirs", "options"), CONVENTIONS, ids=lambda v: getattr(v, "__name__", "")
)
def test_value_and_gradient_of_other_conventions(theirs, options, shape, route):
    assert_same(BarlowTwinsLoss(route=route, **options), theirs, *views(*shape))


def test_conventions_are_different_losses():
    rows = views(8, 12)
    values = [theirs(*rows).item() for theirs, _ in CONVENTIONS]
    assert min(abs(x - y) for i, x in enumerate(values) for y in values[:i]) > 1e-6


def test_uncorrelated_columns_of_one_view_are_its_minimum():
    columns, _ = torch.linalg.qr(draw(16, 7) - draw(16, 7).mean(0))
    columns = columns - columns.mean(0)
    columns, _ = torch.linalg.qr(columns)
    loss = barlow_twins_loss(3 * columns, 5 * columns + 1, eps=0.0)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-20)
    assert barlow_twins_loss(columns, -columns, eps=0.0).item() == pytest.approx(4 * 7)


def test_one_positive_scale_and_offset_a_column_change_nothing():
    a, b = (view.detach() for view in views(12, 9))
    scale, offset = draw(9, seed=5).exp(), 10 * draw(9, seed=6)
    torch.testing.assert_close(
        barlow_twins_loss(scale * a + offset, b, eps=0.0), barlow_twins_loss(a, b, eps=0.0)
    )


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constant_columns_add_one_each(dtype, eps_on, eps):
    a, b = (view.detach().to(dtype) for view in views(12, 9))
    a[:, 2] = b[:, 5] = 3.1
    a.requires_grad_(), b.requires_grad_()
    loss = barlow_twins_loss(a, b, lambda_param=0.0, eps=eps, eps_on=eps_on)
    others = [column for column in range(9) if column not in (2, 5)]
    rest = barlow_twins_loss(a[:, others], b[:, others], lambda_param=0.0, eps=eps, eps_on=eps_on)
    torch.testing.assert_close(loss, rest + 2)
    gradients = torch.autograd.grad(loss, (a, b))
    assert all(gradient.isfinite().all() for gradient in gradients)
    if eps == 0:
        assert not gradients[0][:, 2].any()
        assert not gradients[1][:, 5].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("route", ["gram", "direct"])
def test_large_half_precision_stays_finite_and_within_the_error_rule(dtype, route):
    """2048 images of deviation 8: the square of a column is 131072, above what float16 holds."""
    arguments = {"embeddings0": 8 * draw(2048, 64), "embeddings1": 8 * draw(2048, 64, seed=1)}
    arguments["embeddings1"] += arguments["embeddings0"]

    def eager(**arguments: Any) -> Tensor:
        value = _barlow_twins_eager(**arguments)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    fused = partial(barlow_twins_loss, route=route)
    check_case(fused, eager, arguments, dtype=dtype, rounding=dtype).require()
    loss = fused(*(view.to(dtype) for view in arguments.values()))
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_two_dtypes_promote():
    a, b = (view.detach() for view in views(12, 9, dtype=torch.bfloat16))
    assert torch.equal(barlow_twins_loss(a, b.float()), barlow_twins_loss(a.float(), b.float()))


@pytest.mark.parametrize("eager", [False, True])
def test_peak_memory_has_no_matrix_of_the_width(eager):
    """D x D is 64 MiB, a view 1 MiB."""
    measured = peak_memory_of(
        "memory_barlow_twins:eager_or_fused",
        {"num_images": 64, "dim": 4096, "eager": eager},
        warm_up={"num_images": 4, "dim": 4, "eager": eager},
        path=SUPPORT,
    )
    print(f"{measured / MIB:.1f} MiB")
    assert measured > 192 * MIB if eager else measured < 8 * MIB


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX, torch.ones(5, 3), ValueError, r"1 must have the shape .* \(4, 3\), got \(5, 3\)"),
        (MATRIX, torch.ones(4, 2), ValueError, r"1 must have the shape .* \(4, 3\), got \(4, 2\)"),
        (MATRIX[:1], MATRIX[:1], ValueError, r"0 must have at least two rows: .* shape \(1, 3\)"),
        (MATRIX[:0], MATRIX[:0], ValueError, r"0 must have at least one row, got shape \(0, 3\)"),
        (MATRIX[0], MATRIX[0], ValueError, r"0 must be a matrix .* got shape \(3,\)"),
        (MATRIX.long(), MATRIX, TypeError, r"0 must be floating point .* got torch.int64"),
        (MATRIX, MATRIX.to("meta"), ValueError, r"1 must be on the device of .* got meta"),
    ],
)
def test_errors_name_the_embeddings(first, second, error, message):
    with pytest.raises(error, match="^embeddings" + message):
        BarlowTwinsLoss()(first, second)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lambda_param": -1.0}, ValueError, "lambda_param must be finite and at least 0, got -1"),
        ({"lambda_param": math.nan}, ValueError, "lambda_param must be finite .* got nan"),
        ({"lambda_param": "1"}, TypeError, "lambda_param must be a number, got str"),
        ({"scale_loss": 0.0}, ValueError, "scale_loss must be finite and above 0, got 0"),
        ({"ddof": 2}, ValueError, r"ddof must be 0 \(biased\) or 1 \(unbiased\), got 2"),
        ({"eps": -1e-5}, ValueError, "eps must be finite and at least 0, got -1e-05"),
        ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
        ({"eps_on": "std"}, ValueError, "eps_on must be one of .*variance.* got 'std'"),
        ({"statistics": "sync"}, ValueError, "statistics must be one of .*local.* got 'sync'"),
        ({"grad_scale": "ddp"}, ValueError, "grad_scale must be one of .*reference.* got 'ddp'"),
        ({"route": "fast"}, ValueError, "route must be one of .*gram.* got 'fast'"),
    ],
)
def test_errors_name_the_option(options, error, message):
    with pytest.raises(error, match="^" + message):
        BarlowTwinsLoss(**options)
    with pytest.raises(error, match="^" + message):
        barlow_twins_loss(MATRIX, MATRIX, **options)


def test_error_where_torch_knows_no_ranks(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        BarlowTwinsLoss(gather_distributed=True)


def test_repr_shows_every_option():
    text = repr(BarlowTwinsLoss(0.1, eps_on="deviation", route="gram"))
    for name in inspect.signature(BarlowTwinsLoss).parameters:
        assert f"{name}=" in text
    assert "lambda_param=0.1" in text
    assert "eps_on='deviation'" in text
