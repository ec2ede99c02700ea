"""ListNet and ListMLE: known values, likelihoods, padding, ties, the usual formulas, errors."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from sslfast.functional import listmle_loss, listnet_loss
from sslfast.losses import ListMLELoss, ListNetLoss

BOTH = (listnet_loss, listmle_loss)
MODULES = (ListNetLoss, ListMLELoss)
SCORES = torch.tensor([[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, -0.2, 4.0]], dtype=torch.float64)
GRADES = torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
EPS = 1e-10  # what the usual code adds before its logarithms


def drawn(num_lists: int = 7, length: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(num_lists, length, generator=generator, dtype=torch.float64)
    grades = torch.randint(5, scores.shape, generator=generator).double()
    ends = torch.randint(1, length + 1, (num_lists, 1), generator=generator)
    return scores, grades.masked_fill(torch.arange(length) >= ends, -1.0)


def value_and_gradient(loss, scores: Tensor, *others, **options) -> tuple[Tensor, Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    value = loss(leaf, *others, **options)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def test_listnet_of_two_elements() -> None:
    """P_y = (3/4, 1/4), P_s = (1/3, 2/3)."""
    grades = torch.tensor([[math.log(3.0), 0.0]])
    scores = torch.tensor([[0.0, math.log(2.0)]])
    expected = -(0.75 * math.log(1 / 3) + 0.25 * math.log(2 / 3))
    assert listnet_loss(scores, grades).item() == pytest.approx(expected)


def test_listnet_is_least_where_scores_are_grades() -> None:
    _, grades = drawn()
    value, gradient = value_and_gradient(listnet_loss, grades + 5.0, grades)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    entropies = [row[row >= 0].softmax(-1) for row in grades]
    expected = -sum((p * p.log()).sum() for p in entropies) / len(grades)
    torch.testing.assert_close(value, expected)


def test_listmle_likelihoods_of_all_orders_sum_to_one() -> None:
    scores = SCORES[:1]
    orders = [torch.tensor([order], dtype=torch.float64) for order in permutations(range(4))]
    total = sum(torch.exp(-listmle_loss(scores, order)) for order in orders)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_listmle_by_hand() -> None:
    """The order of the second list is 1 > 0 with two places of padding."""
    first = [2.0, 0.5, 0.3, -1.0]
    terms = [math.log(sum(math.exp(s - first[i]) for s in first[i:])) for i in range(4)]
    expected = (sum(terms) + math.log(1 + math.exp(-1.0))) / 2
    assert listmle_loss(SCORES, GRADES).item() == pytest.approx(expected)


def listmle_pairwise(scores: Tensor, grades: Tensor, order: Tensor) -> Tensor:
    """Each element against all that are not ranked before it, nothing sorted or accumulated."""
    place, there = order.argsort(), grades != -1
    lower = grades.unsqueeze(-1) > grades.unsqueeze(-2)  # (B, i, k) k has a lower grade than i
    tied = grades.unsqueeze(-1) == grades.unsqueeze(-2)
    after = (lower | (tied & (place.unsqueeze(-1) <= place))) & there.unsqueeze(-2)
    against = scores.unsqueeze(-2).expand(-1, scores.shape[1], -1)
    terms = against.masked_fill(~after, -1e9).logsumexp(-1) - scores
    return terms.where(there, 0).sum(-1).mean()


def test_listmle_against_all_pairs() -> None:
    scores, grades = drawn(9, 25)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    value, gradient = value_and_gradient(listmle_loss, scores, grades, tie_order=order)
    expected, wanted = value_and_gradient(listmle_pairwise, scores, grades, order)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, wanted)


def usual_listnet(scores: Tensor, grades: Tensor) -> Tensor:
    """With -inf for padding, and EPS added to the probabilities."""
    padding = grades == -1
    wanted = grades.masked_fill(padding, -torch.inf).softmax(1)
    found = scores.masked_fill(padding, -torch.inf).softmax(1)
    return -(wanted * (found + EPS).log()).sum(1).mean()


def usual_listmle(scores: Tensor, grades: Tensor, shuffled: Tensor) -> Tensor:
    """By exponentials relative to the best score, and EPS added to their sums."""
    columns = scores[:, shuffled]
    ranked, order = grades[:, shuffled].sort(descending=True, dim=1, stable=True)
    there = ranked != -1
    relative = columns.gather(1, order).masked_fill(~there, -torch.inf)
    relative = relative - relative.max(1, keepdim=True).values
    sums = relative.exp().flip(1).cumsum(1).flip(1)
    terms = torch.where(there, (sums + EPS).log() - relative.where(there, 0), 0)
    return terms.sum(1).mean()


def test_parity_with_the_usual_forms() -> None:
    scores, grades = drawn()
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(1))
    pairs = [
        (value_and_gradient(listnet_loss, scores, grades), usual_listnet, ()),
        (
            value_and_gradient(listmle_loss, scores, grades, tie_order=order),
            usual_listmle,
            (order,),
        ),
    ]
    for (value, gradient), usual, rest in pairs:
        expected, wanted = value_and_gradient(usual, scores, grades, *rest)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-7)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", BOTH)
def test_scores_far_below_the_best_keep_their_gradient(loss) -> None:
    """The best element 40 below: the loss is 40 and still pushes with full force."""
    scores, grades = torch.tensor([[-40.0, 0.0]]), torch.tensor([[60.0, 0.0]])
    value, gradient = value_and_gradient(loss, scores, grades)
    assert value.item() == pytest.approx(40.0)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize("loss", BOTH)
def test_padding_is_as_if_it_were_not_there(loss) -> None:
    scores, grades = drawn()
    value, gradient = value_and_gradient(loss, scores, grades)
    singly = []
    for row, wanted in zip(scores, grades, strict=True):
        there = wanted != -1
        singly.append(loss(row[there].unsqueeze(0), wanted[there].unsqueeze(0)))
    torch.testing.assert_close(value, torch.stack(singly).mean())
    assert gradient[grades == -1].count_nonzero() == 0
    poisoned = scores.masked_fill(grades == -1, math.nan)
    again, same = value_and_gradient(loss, poisoned, grades)
    assert again == value
    assert torch.equal(same, gradient)


@pytest.mark.parametrize("loss", BOTH)
def test_list_of_padding_counts_as_zero(loss) -> None:
    scores, grades = SCORES[:1], GRADES[:1]
    more = torch.cat((grades, torch.full_like(grades, -1.0)))
    value, gradient = value_and_gradient(loss, torch.cat((scores, scores)), more)
    torch.testing.assert_close(value, loss(scores, grades) / 2)
    assert gradient[1].count_nonzero() == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", BOTH)
def test_any_indicator_of_padding(loss) -> None:
    scores, grades = drawn()
    moved = grades.masked_fill(grades == -1, 99.0)
    torch.testing.assert_close(
        loss(scores, moved, padded_value_indicator=99.0), loss(scores, grades)
    )
    whole = loss(scores, grades, padded_value_indicator=None)
    assert not torch.isclose(whole, loss(scores, grades))
    torch.testing.assert_close(whole, loss(scores, grades + 1.0, padded_value_indicator=None))


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16])
def test_grades_of_any_kind(loss, dtype: torch.dtype) -> None:
    scores, grades = drawn()
    grades = grades.clamp_min(0)
    torch.testing.assert_close(loss(scores, grades.to(dtype)), loss(scores, grades))


def test_tie_order_decides_ties_and_nothing_else() -> None:
    scores = SCORES[:1]
    tied = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    order = torch.tensor([3, 2, 0, 1])
    resolved = torch.tensor([[2.0, 1.0, 0.0, 3.0]])  # 3 before 0 before 1
    torch.testing.assert_close(
        listmle_loss(scores, tied, tie_order=order), listmle_loss(scores, resolved)
    )
    torch.testing.assert_close(
        listmle_loss(scores, tied), listmle_loss(scores, torch.tensor([[3.0, 2.0, 0.0, 1.0]]))
    )
    torch.testing.assert_close(
        listmle_loss(scores, resolved, tie_order=order), listmle_loss(scores, resolved)
    )


def test_module_draws_the_order_of_ties() -> None:
    tied = torch.zeros_like(SCORES)
    shuffling, fixed = ListMLELoss(), ListMLELoss(shuffle_ties=False)
    torch.manual_seed(0)
    found = [shuffling(SCORES, tied) for _ in range(20)]
    assert len({value.item() for value in found}) > 1
    torch.manual_seed(0)
    assert torch.equal(shuffling(SCORES, tied), found[0])
    torch.manual_seed(0)
    order = torch.randperm(4)
    assert torch.equal(found[0], listmle_loss(SCORES, tied, tie_order=order))
    assert torch.equal(shuffling(SCORES, tied, order), found[0])
    assert torch.equal(fixed(SCORES, tied), listmle_loss(SCORES, tied))
    assert "shuffle_ties=True" in repr(shuffling)


def test_modules_pass_their_arguments_on() -> None:
    scores, grades = drawn()
    moved = grades.masked_fill(grades == -1, 99.0)
    assert torch.equal(ListNetLoss()(scores, grades), listnet_loss(scores, grades))
    assert torch.equal(ListNetLoss(99.0)(scores, moved), listnet_loss(scores, grades))
    module = ListMLELoss(99.0, shuffle_ties=False)
    assert torch.equal(module(scores, moved), listmle_loss(scores, grades))
    assert repr(ListNetLoss(99.0)) == "ListNetLoss(padded_value_indicator=99.0)"


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize(
    ("scores", "grades", "error", "message"),
    [
        ([[1.0]], GRADES, TypeError, r"scores must be a tensor, got list"),
        (SCORES.long(), GRADES, TypeError, r"scores must be floating point .* got torch.int64"),
        (SCORES[0], GRADES, ValueError, r"scores must be lists \(B, n\).* got shape \(4,\)"),
        (SCORES[:0], GRADES[:0], ValueError, r"scores must be lists .* got shape \(0, 4\)"),
        (SCORES[:, :0], GRADES[:, :0], ValueError, r"scores must be lists .* shape \(2, 0\)"),
        (SCORES, [[1.0]], TypeError, r"relevance must be a tensor, got list"),
        (SCORES, GRADES.bool(), TypeError, r"relevance must be floating point .* torch.bool"),
        (SCORES, GRADES[:, :3], ValueError, r"relevance must have the shape .* got \(2, 3\)"),
        (SCORES, GRADES.to("meta"), ValueError, r"relevance must be on the device .* got meta"),
        (SCORES / 0, GRADES, ValueError, r"scores must be finite, got inf at index \(0, 0\)"),
        (SCORES, GRADES * math.nan, ValueError, r"relevance must be finite, got nan at index"),
    ],
)
def test_errors_name_the_argument(loss, scores, grades, error, message: str) -> None:
    with pytest.raises(error, match="^" + message):
        loss(scores, grades)
    with pytest.raises(error, match="^" + message):
        MODULES[BOTH.index(loss)]()(scores, grades)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("value", "error"), [("x", TypeError), (math.nan, ValueError)])
def test_errors_name_the_indicator(module, value, error) -> None:
    with pytest.raises(error, match=r"^padded_value_indicator must be .*, got"):
        module(value)


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ([0, 1, 2, 3], TypeError, "must be an int64 tensor, got list"),
        (torch.arange(4).int(), TypeError, "must be an int64 tensor, got torch.int32"),
        (torch.arange(3), ValueError, r"permutation of the n = 4 positions, got shape \(3,\)"),
        (torch.tensor([0, 1, 1, 3]), ValueError, r"permutation of the n = 4 positions, got \[0, 1"),
    ],
)
def test_errors_name_the_tie_order(order, error, message: str) -> None:
    with pytest.raises(error, match=f"^tie_order .*{message}"):
        listmle_loss(SCORES, GRADES, tie_order=order)
