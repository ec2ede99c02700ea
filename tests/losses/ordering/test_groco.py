"""GroCo: the published loss and gradient, who is whose positive and negative, its errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.functional import groco_loss
from sslfast.losses import GroCoLoss

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def views_of(
    num_images: int, num_views: int, dim: int, *, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    shape = (num_views + 1, num_images, dim)
    content, *noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [(content + part).to(dtype).requires_grad_() for part in noise]


def published(views: list[Tensor], full: int, topk_neg: int, stop_grad: bool = True) -> Tensor:
    """As the authors' code computes it, with diffsort; written from its description."""
    diffsort = pytest.importorskip("diffsort", reason="diffsort is not installed")

    def constant(rows: Tensor) -> Tensor:
        return rows.detach() if stop_grad else rows

    total = views[0].new_zeros(())
    for index, anchor in enumerate(views):
        positives = [
            F.cosine_similarity(anchor, constant(other), dim=1)
            for place, other in enumerate(views[:full])
            if place != index
        ]
        unit = F.normalize(anchor, eps=1e-8)
        similarity = unit @ constant(unit).T
        similarity = similarity.masked_fill(torch.eye(len(anchor), dtype=torch.bool), -torch.inf)
        negatives = similarity.topk(topk_neg, dim=1).values.flip(1)
        values = torch.cat((negatives, torch.stack(positives, 1).sort(1).values), 1)
        network = diffsort.DiffSortNet("odd_even", values.shape[1], steepness=1)
        _, shares = network(values)
        target = torch.eye(values.shape[1], dtype=values.dtype).expand_as(shares)
        losses = [
            F.binary_cross_entropy(given[..., group].sum(2).clip(0, 1), wanted[..., group].sum(2))
            for given, wanted in ((shares, target),)
            for group in (slice(topk_neg, None), slice(topk_neg))
        ]
        total = total + sum(losses) / 2
    return total / len(views)


@pytest.mark.parametrize(
    ("num_images", "num_views", "full", "topk_neg"),
    [(2, 2, 2, 1), (16, 2, 2, 10), (11, 2, 2, 10), (16, 4, 4, 10), (14, 5, 2, 10), (9, 4, 3, 3)],
)
@pytest.mark.parametrize("stop_grad", [True, False])
def test_published_loss_and_gradient(num_images, num_views, full, topk_neg, stop_grad):
    views = views_of(num_images, num_views, 12)
    expected = published(views, full, topk_neg, stop_grad)
    loss = GroCoLoss(num_full_views=full, topk_neg=topk_neg, stop_grad=stop_grad)(views)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(
        torch.autograd.grad(loss, views), torch.autograd.grad(expected, views), **CLOSE
    )


def test_float32_rows_are_nearer_to_the_truth_than_the_published_form():
    views = views_of(40, 2, 32, dtype=torch.float32)
    wide = [view.detach().double().requires_grad_() for view in views]
    errors = []
    truth = torch.autograd.grad(published(wide, 2, 10), wide)
    for loss in (groco_loss(views), published(views, 2, 10)):
        assert loss.item() == pytest.approx(groco_loss(wide).item(), rel=1e-6)
        gradients = torch.autograd.grad(loss, views)
        errors.append(sum((g - t).norm() / t.norm() for g, t in zip(gradients, truth, strict=True)))
    assert errors[0] <= errors[1]


@pytest.mark.parametrize(("steepness", "expected"), [(1.0, 2.0), (10.0, 20.0)])
def test_known_value_of_two_opposite_images(steepness, expected):
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    view = torch.cat((row, -row))  # cosine 1 to the positive, -1 to the negative
    keep = math.atan(expected) / math.pi + 0.5
    loss = groco_loss([view, 2 * view], topk_neg=1, steepness=steepness)
    assert loss.item() == pytest.approx(-math.log(keep), rel=1e-12)


def test_a_sequence_of_views_is_their_stack():
    views = views_of(13, 3, 7)
    for full in (None, 2, 3):
        expected = groco_loss(views, num_full_views=full, topk_neg=4)
        stacked = groco_loss(torch.stack(views, 1), num_full_views=full, topk_neg=4)
        assert torch.equal(stacked, expected)
    assert torch.equal(
        groco_loss(views, topk_neg=4), groco_loss(tuple(views), num_full_views=3, topk_neg=4)
    )


def test_small_crops_are_nobodys_positives():
    """A small crop moves no list but its own and, as a negative, those of its view."""
    views = views_of(6, 3, 5)
    loss = groco_loss(views[:2], topk_neg=3) * 2 / 3
    with_small = groco_loss(views, num_full_views=2, topk_neg=3)
    whole = torch.autograd.grad(with_small, views[:2])
    torch.testing.assert_close(whole, torch.autograd.grad(loss, views[:2]), **CLOSE)
    assert torch.autograd.grad(groco_loss(views, topk_neg=3), views[0])[0].ne(whole[0]).any()


def test_the_order_of_images_and_of_full_views_does_not_matter(generator):
    views = views_of(12, 3, 9)
    order = torch.randperm(12, generator=generator)
    expected = groco_loss(views, topk_neg=5)
    torch.testing.assert_close(groco_loss([v[order] for v in views], topk_neg=5), expected)
    torch.testing.assert_close(groco_loss(views[::-1], topk_neg=5), expected)
    torch.testing.assert_close(groco_loss([3 * v for v in views], topk_neg=5), expected)


def test_autocast_does_not_round():
    views = [view.detach() for view in views_of(16, 2, 8, dtype=torch.float32)]
    expected = groco_loss(views)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(groco_loss(views), expected)


def test_half_precision_is_widened():
    views = [view.detach().bfloat16() for view in views_of(16, 2, 8)]
    loss = groco_loss(views)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, groco_loss([view.float() for view in views]))


def test_a_zero_row_has_a_finite_gradient():
    views = [view.detach().clone() for view in views_of(6, 2, 5)]
    views[0][2] = 0
    leaf = views[0].requires_grad_()
    (gradient,) = torch.autograd.grad(groco_loss([leaf, views[1]], topk_neg=4), leaf)
    assert gradient.isfinite().all()


def test_finite_differences():
    views = views_of(5, 2, 4)
    assert torch.autograd.gradcheck(
        lambda *rows: groco_loss(rows, topk_neg=3, stop_grad=False), tuple(views)
    )


def test_a_second_derivative_raises():
    views = views_of(5, 2, 4)
    (first,) = torch.autograd.grad(groco_loss(views, topk_neg=3), views[0], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), views[0])


PAIR = [torch.eye(4), torch.eye(4)]


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (torch.ones(4, 3), ValueError, r"embeddings must have shape .* got shape \(4, 3\)"),
        (torch.ones(0, 2, 3), ValueError, r"embeddings must have shape .* shape \(0, 2, 3\)"),
        (torch.ones(4, 1, 3), ValueError, r"embeddings must hold at least two views, got 1"),
        (torch.ones(4, 2, 3).long(), TypeError, r"embeddings must be floating .* torch.int64"),
        ([], ValueError, r"embeddings must hold at least two views, got none"),
        ([torch.eye(4)], ValueError, r"embeddings must hold at least two views, got 1"),
        (
            [torch.eye(4), torch.ones(4, 3)],
            ValueError,
            r"embeddings\[1\] must have the shape of embeddings\[0\] \(4, 4\), got \(4, 3\)",
        ),
        (["rows", "rows"], TypeError, r"embeddings\[0\] must be a tensor, got str"),
        (None, TypeError, r"embeddings must be a tensor or a sequence of them, got NoneType"),
        ({}, TypeError, r"embeddings must be a tensor or a sequence of them, got dict"),
        (
            [torch.eye(4), torch.eye(4, device="meta")],
            ValueError,
            r"embeddings\[1\] must be on the device of .* \(cpu\), got meta",
        ),
    ],
)
def test_errors_name_the_embeddings(embeddings, error, message):
    with pytest.raises(error, match="^" + message):
        groco_loss(embeddings, topk_neg=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"topk_neg": 4}, ValueError, r"topk_neg must be at most the 3 negatives .* got 4"),
        ({}, ValueError, r"topk_neg must be at most the 3 negatives that 4 images have, got 10"),
        ({"topk_neg": 0}, ValueError, r"topk_neg must be at least 1, got 0"),
        ({"topk_neg": 2.0}, TypeError, r"topk_neg must be an integer, got float"),
        ({"num_full_views": 1}, ValueError, r"num_full_views must be at least 2, got 1"),
        ({"num_full_views": 3}, ValueError, r"num_full_views must be at most the 2 .* got 3"),
        ({"steepness": 0.0}, ValueError, r"steepness must be finite and above 0, got 0.0"),
        ({"steepness": math.nan}, ValueError, r"steepness must be finite and above 0, got nan"),
        ({"network": "merge"}, ValueError, r"network must be one of .*, got 'merge'"),
        ({"relaxation": "soft"}, ValueError, r"relaxation must be one of .*, got 'soft'"),
    ],
)
def test_errors_name_the_option(options, error, message):
    with pytest.raises(error, match="^" + message):
        groco_loss(PAIR, **options)
    with pytest.raises(error, match="^" + message):
        GroCoLoss(**options)(PAIR)


def test_one_image_has_no_negative():
    with pytest.raises(ValueError, match=r"^topk_neg must be at most the 0 negatives .* got 1"):
        groco_loss([torch.ones(1, 3), torch.ones(1, 3)], topk_neg=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("view", [0, 1])
def test_what_is_not_finite_never_reaches_the_network(value, view):
    views = [torch.eye(4), torch.eye(4)]
    views[view][2, 1] = value
    with pytest.raises(ValueError, match="must be finite, got nan"):
        groco_loss(views, topk_neg=3)


def test_distributed_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        GroCoLoss(gather_distributed=True)


def test_repr_names_the_options():
    assert "topk_neg=7, stop_grad=False" in repr(GroCoLoss(topk_neg=7, stop_grad=False))
