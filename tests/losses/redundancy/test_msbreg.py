"""The terms of MSBReg: known values, limits, what each does to embeddings, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslfast.evaluation import participation_ratio
from sslfast.functional import brownian_loss, centroid_loss, singular_value_loss
from sslfast.losses import BrownianLoss, CentroidLoss, SingularValueLoss

VIEWS = torch.ones(2, 2, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_centroid_of_two_orthogonal_targets():
    """The centroid lies at 45 degrees to both: 2 - 2 cos 45."""
    targets = torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])
    expected = 2 - 2**0.5
    assert centroid_loss(targets, targets).item() == pytest.approx(expected)
    assert centroid_loss(targets.sum(1), targets[:, :1]).item() == pytest.approx(
        2 - 2 * 2 / 29**0.5
    )


def test_centroid_of_equal_and_opposite_views():
    views = normal(5, 1, 7).expand(5, 3, 7)
    assert centroid_loss(views, views).item() == pytest.approx(0.0, abs=1e-12)
    assert centroid_loss(-views, views).item() == pytest.approx(4.0)
    assert CentroidLoss()(views, views[:, 0]).item() == pytest.approx(0.0, abs=1e-12)


def test_targets_of_half_precision_and_their_gradient():
    embeddings, targets = normal(4, 2, 5), normal(4, 3, 5, seed=1).requires_grad_()
    value = centroid_loss(embeddings.bfloat16(), targets)
    assert value.dtype == torch.float64
    value.backward()
    assert targets.grad.abs().max() > 0


def test_brownian_steps_are_random_and_average_to_nothing():
    views = normal(2000, 2, 8)
    torch.manual_seed(0)
    first, second = BrownianLoss()(views), BrownianLoss()(views)
    assert first != second
    assert abs(first.item()) < 4 / (2000 * 8) ** 0.5
    torch.manual_seed(0)
    assert BrownianLoss()(views) == first


def test_brownian_cosine_with_given_directions():
    rows = normal(5, 4)
    assert brownian_loss(rows, directions=3 * rows).item() == pytest.approx(1.0)
    assert BrownianLoss()(rows, -rows).item() == pytest.approx(-1.0)


def test_brownian_pushes_all_views_of_an_image_the_same_way():
    views = normal(3, 1, 6).expand(3, 2, 6).clone().requires_grad_()
    brownian_loss(views).backward()
    torch.testing.assert_close(views.grad[:, 0], views.grad[:, 1])


@pytest.mark.parametrize(("num_rows", "dim"), [(4, 9), (9, 4), (6, 6)])
def test_singular_values_of_even_and_of_collapsed_batches(num_rows, dim):
    smaller = min(num_rows, dim)
    even = torch.eye(dim, dtype=torch.float64)[:num_rows]
    if num_rows > dim:
        even = torch.cat((even, -even))
    assert singular_value_loss(even).item() == pytest.approx(0.0, abs=1e-6)
    collapsed = torch.ones(num_rows, dim, dtype=torch.float64)
    assert singular_value_loss(collapsed).item() == pytest.approx(smaller - 1)


@pytest.mark.parametrize("shape", [(5, 9), (30, 9), (4, 3, 9)])
def test_singular_values_and_the_participation_ratio(shape):
    embeddings = normal(*shape) * torch.logspace(0, -1, 9, dtype=torch.float64)
    unit = torch.nn.functional.normalize(embeddings, dim=-1).flatten(0, -2)
    expected = min(unit.shape) / participation_ratio(unit) - 1
    assert SingularValueLoss()(embeddings).item() == pytest.approx(expected)
    turn = torch.linalg.qr(normal(9, 9, seed=1))[0]
    assert singular_value_loss(embeddings @ turn).item() == pytest.approx(expected)


def test_singular_values_of_nothing():
    zeros = torch.zeros(3, 5, requires_grad=True)
    loss = singular_value_loss(zeros)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(zeros.grad, torch.zeros(3, 5))


def test_descent_on_the_singular_values_spreads_a_batch():
    embeddings = (torch.ones(12, 5) + 0.1 * normal(12, 5).float()).requires_grad_()
    before = participation_ratio(embeddings)
    optimizer = torch.optim.SGD([embeddings], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        singular_value_loss(embeddings).backward()
        optimizer.step()
    assert before < 1.1
    assert participation_ratio(torch.nn.functional.normalize(embeddings)) > 4.9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: centroid_loss(torch.ones(3), VIEWS), ValueError, "embeddings must have shape"),
        (lambda: centroid_loss(VIEWS, torch.ones(0, 2, 3)), ValueError, "targets must have shape"),
        (lambda: centroid_loss(VIEWS, torch.ones(3, 2, 3)), ValueError, "targets must have the N"),
        (lambda: centroid_loss(VIEWS, torch.ones(2, 4)), ValueError, r"\(2, 3\) of embeddings"),
        (lambda: centroid_loss(VIEWS.long(), VIEWS), TypeError, "embeddings must be floating"),
        (lambda: centroid_loss(VIEWS, VIEWS.to("meta")), ValueError, "targets must be on the dev"),
        (lambda: brownian_loss(torch.ones(2, 2, 2, 2)), ValueError, "embeddings must have shape"),
        (
            lambda: brownian_loss(VIEWS, directions=VIEWS),
            ValueError,
            "directions must be a matrix",
        ),
        (
            lambda: brownian_loss(VIEWS, directions=torch.ones(2, 4)),
            ValueError,
            "directions must have the N and D",
        ),
        (lambda: singular_value_loss(torch.ones(3)), ValueError, "embeddings must have shape"),
        (
            lambda: singular_value_loss(VIEWS, grad_scale="half"),
            ValueError,
            "grad_scale must be one of .* got 'half'",
        ),
        (lambda: SingularValueLoss(grad_scale="half"), ValueError, "grad_scale must be one of"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
