"""NeCo: the published loss and gradient, masks, references, its errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast import relaxed_sort
from sslfast.functional import neco_loss
from sslfast.losses import NeCoLoss

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def patches(
    num_images: int, num_patches: int, num_references: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and references, all asking for gradients."""
    generator = torch.Generator().manual_seed(12)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    content = normal(num_images, num_patches, dim)
    return tuple(
        tensor.requires_grad_()
        for tensor in (
            content + 0.5 * normal(num_images, num_patches, dim),
            content + 0.5 * normal(num_images, num_patches, dim),
            normal(num_images, num_references, dim),
        )
    )


def published(
    student: Tensor,
    teacher: Tensor,
    references: Tensor,
    steepnesses: tuple[float, float],
    network: str = "bitonic",
    mask: Tensor | None = None,
) -> Tensor:
    """As the authors' code computes it, with diffsort; written from its description."""
    diffsort = pytest.importorskip("diffsort", reason="diffsort is not installed")

    def shares(rows: Tensor, steepness: float) -> Tensor:
        cosines = F.normalize(rows, dim=-1) @ F.normalize(references, dim=-1).transpose(1, 2)
        lists = cosines.flatten(0, 1)
        return diffsort.DiffSortNet(network, lists.shape[1], steepness=steepness)(lists)[1]

    student_shares = shares(student, steepnesses[0])
    with torch.no_grad():
        teacher_shares = shares(teacher, steepnesses[1])
    entropies = -(teacher_shares * student_shares.log()).sum(2)  # (B P, n): sums over ranks
    if mask is None:
        return entropies.mean()
    weights = mask.reshape(-1, 1).to(entropies).expand_as(entropies)
    return (entropies * weights).sum() / weights.sum()


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize(
    ("shape", "steepnesses"),
    [
        ((2, 3, 2, 5), (5.0, 5.0)),
        ((2, 7, 11, 9), (10.0, 10.0)),
        ((1, 4, 16, 8), (10.0, 100.0)),
        ((2, 5, 49, 32), (10.0, 10.0)),
    ],
)
def test_published_loss_and_gradient(shape, steepnesses, network):
    student, teacher, references = patches(*shape)
    expected = published(student, teacher, references, steepnesses, network)
    module = NeCoLoss(*steepnesses, network=network)
    loss = module(student, teacher, references)
    torch.testing.assert_close(loss, expected, **CLOSE)
    leaves = (student, references)
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), **CLOSE
    )


def test_published_loss_at_the_published_steepness():
    """At 100 diffsort's 1 - alpha keeps few digits of a small share: the value agrees to those."""
    student, teacher, references = patches(2, 6, 49, 64)
    expected = published(student, teacher, references, (100.0, 100.0))
    assert neco_loss(student, teacher, references).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_mask_weighs_patches():
    student, teacher, references = patches(3, 5, 7, 6)
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = published(student, teacher, references, (8.0, 8.0), mask=mask)
    for kind in (torch.bool, torch.int64, torch.float32):
        loss = neco_loss(student, teacher, references, mask=mask.to(kind), steepness=8.0)
        torch.testing.assert_close(loss, expected, **CLOSE)
    halves = neco_loss(student, teacher, references, mask=0.5 * mask, steepness=8.0)
    torch.testing.assert_close(halves, expected, **CLOSE)


def test_a_mask_of_nothing_is_a_loss_of_nothing():
    student, teacher, references = patches(2, 3, 4, 5)
    loss = neco_loss(student, teacher, references, mask=torch.zeros(2, 3))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, student)[0], torch.zeros_like(student))


def test_equal_lists_cost_the_entropy_of_the_permutation():
    student, _, references = patches(2, 3, 8, 5)
    loss = neco_loss(student, student, references, steepness=10.0)
    lists = (F.normalize(student, dim=-1) @ F.normalize(references, dim=-1).mT).flatten(0, 1)
    _, shares = relaxed_sort(lists, network="bitonic", permutation=True)
    torch.testing.assert_close(loss, -(shares * shares.log()).sum(2).mean(), **CLOSE)


def test_the_teacher_gets_no_gradient():
    student, teacher, references = patches(2, 3, 4, 5)
    loss = neco_loss(student, teacher, references)
    gradients = torch.autograd.grad(loss, (student, teacher, references), allow_unused=True)
    assert gradients[0].abs().max() > 0
    assert gradients[1] is None
    assert gradients[2].abs().max() > 0


def test_shared_references_are_the_same_for_every_image():
    student, teacher, references = patches(3, 4, 6, 5)
    shared = references[0].detach()
    expected = neco_loss(student, teacher, shared.expand(3, 6, 5))
    torch.testing.assert_close(neco_loss(student, teacher, shared), expected, **CLOSE)


def test_one_reference_is_always_in_order():
    student, teacher, references = patches(2, 3, 1, 5)
    loss = neco_loss(student, teacher, references)
    assert loss.item() == 0


def test_without_references_the_batch_is_shuffled():
    student, teacher, _ = patches(3, 4, 1, 5)
    torch.manual_seed(7)
    loss = NeCoLoss()(student, teacher)
    torch.manual_seed(7)
    order = torch.randperm(12)
    references = teacher.flatten(0, 1)[order].reshape(3, 4, 5)
    assert torch.equal(loss, neco_loss(student, teacher, references))
    torch.manual_seed(8)
    assert not torch.equal(loss, NeCoLoss()(student, teacher))


def test_the_order_of_patches_does_not_matter():
    student, teacher, references = patches(2, 6, 5, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = neco_loss(student, teacher, references)
    torch.testing.assert_close(
        neco_loss(student[:, order], teacher[:, order], references), expected, **CLOSE
    )
    torch.testing.assert_close(neco_loss(3 * student, 2 * teacher, references), expected, **CLOSE)


def test_autocast_does_not_round():
    student, teacher, references = (t.detach().float() for t in patches(2, 3, 8, 16))
    expected = neco_loss(student, teacher, references)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neco_loss(student, teacher, references), expected)


def test_a_share_of_nothing_leaves_loss_and_gradient_finite():
    """In float32 a steep exponential network has shares of 0 where the teacher has some."""
    student, teacher, references = (t.detach().float() for t in patches(2, 3, 8, 4))
    student.requires_grad_()
    options = {"relaxation": "logistic", "steepness": 1000.0, "teacher_steepness": 1.0}
    loss = neco_loss(student, teacher, references, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_finite_differences():
    """Of the student alone: the references move the target too, to which no gradient goes."""
    student, teacher, references = patches(1, 2, 4, 3)
    assert torch.autograd.gradcheck(
        lambda rows: neco_loss(rows, teacher, references, steepness=3.0), student
    )


def test_a_second_derivative_raises():
    student, teacher, references = patches(1, 2, 4, 3)
    loss = neco_loss(student, teacher, references)
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), student)


ROWS = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"student": ROWS[0]}, ValueError, r"student must have shape \(B, P, D\) .* \(3, 4\)"),
        ({"student": ROWS[:0]}, ValueError, r"student must have shape .* got shape \(0, 3, 4\)"),
        ({"student": ROWS.long()}, TypeError, r"student must be floating .* got torch.int64"),
        ({"teacher": ROWS[:, :2]}, ValueError, r"teacher must have the shape .* got \(2, 2, 4\)"),
        ({"teacher": None}, TypeError, r"teacher must be a tensor, got NoneType"),
        ({"teacher": ROWS.to("meta")}, ValueError, r"teacher must be on the device .* got meta"),
        ({"references": ROWS[:1]}, ValueError, r"references must have shape .* \(1, 3, 4\)"),
        ({"references": ROWS[..., :2]}, ValueError, r"references must have shape .* \(2, 3, 2\)"),
        ({"references": ROWS[:, :0]}, ValueError, r"references must hold at least one, got shape"),
        ({"references": ROWS[0, :0]}, ValueError, r"references must hold at least one, got shape"),
        ({"references": ROWS[0, 0]}, ValueError, r"references must have shape .* shape \(4,\)"),
        ({"mask": ROWS[..., 0].T}, ValueError, r"mask must have shape .* \(2, 3\), .* \(3, 2\)"),
        ({"mask": [1]}, TypeError, r"mask must be a tensor, got list"),
        ({"mask": ROWS[..., 0].cfloat()}, TypeError, r"mask must be bool or real, got torch.compl"),
        ({"mask": -ROWS[..., 0]}, ValueError, r"mask must be at least 0 everywhere, got -1.0"),
        ({"mask": ROWS[..., 0].to("meta")}, ValueError, r"mask must be on the device .* got meta"),
        ({"steepness": 0}, ValueError, r"steepness must be finite and above 0, got 0"),
        ({"teacher_steepness": -1.0}, ValueError, r"teacher_steepness must be .*, got -1.0"),
        ({"teacher_steepness": "1"}, TypeError, r"teacher_steepness must be a number, got str"),
        ({"network": "merge"}, ValueError, r"network must be one of .*, got 'merge'"),
        ({"relaxation": "soft"}, ValueError, r"relaxation must be one of .*, got 'soft'"),
    ],
)
def test_errors_name_the_argument(changed, error, message):
    arguments = {"student": ROWS, "teacher": ROWS, "references": ROWS, **changed}
    with pytest.raises(error, match="^" + message):
        neco_loss(**arguments)
    if set(changed) & {"steepness", "teacher_steepness", "network", "relaxation"}:
        with pytest.raises(error, match="^" + message):
            NeCoLoss(**changed)


@pytest.mark.parametrize("name", ["student", "teacher", "references"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_reaches_the_network(name, value):
    arguments = {key: ROWS.clone() for key in ("student", "teacher", "references")}
    arguments[name][1, 2, 0] = value
    with pytest.raises(ValueError, match="must be finite, got nan"):
        neco_loss(**arguments)


def test_repr_names_the_options():
    assert "steepness=20.0, teacher_steepness=None, network=" in repr(NeCoLoss(20.0))
