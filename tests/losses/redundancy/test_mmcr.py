"""MMCR and its nuclear norms: known spectra, repeated and vanishing singular values, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslfast.functional import mmcr_loss
from sslfast.losses import MMCRLoss
from sslfast.losses._nuclear import nuclear_norms

VIEWS = torch.ones(2, 2, 3)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square)[0]


def with_spectrum(sigma: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A float64 matrix of these singular values and its U V^T."""
    left, right = orthonormal(rows, len(sigma), 1), orthonormal(columns, len(sigma), 2)
    return (left * sigma) @ right.T, left @ right.T


def norm_and_gradient(matrix: Tensor) -> tuple[Tensor, Tensor]:
    leaf = matrix.detach().clone().requires_grad_()
    norm = nuclear_norms(leaf)
    return norm.detach(), torch.autograd.grad(norm.sum(), leaf)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 17), (17, 6), (6, 6)])
@pytest.mark.parametrize("powers", [(0, 0), (0, -1), (0, -3)])
def test_norm_and_gradient_of_known_spectra(powers, shape, dtype):
    """Equal singular values too, whose vectors no decomposition can tell apart."""
    sigma = torch.logspace(*powers, 6, dtype=torch.float64)
    matrix, polar = with_spectrum(sigma, *shape)
    norm, gradient = norm_and_gradient(matrix.to(dtype))
    # A rounding of the matrix turns U V^T by as much as the rounding over the least sigma.
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(norm.double(), sigma.sum(), rtol=tolerance, atol=0)
    torch.testing.assert_close(
        gradient.double(), polar, rtol=0, atol=tolerance / float(sigma.min())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_vanishing_singular_values_have_gradient_zero(rank, dtype):
    integers = torch.zeros(5, 9, dtype=dtype)
    integers[range(rank), range(rank)] = torch.arange(1, rank + 1).to(dtype)
    norm, gradient = norm_and_gradient(integers)
    assert norm.item() == pytest.approx(rank * (rank + 1) / 2)
    torch.testing.assert_close(gradient, (integers > 0).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_rows_give_a_finite_gradient_of_unit_length(dtype):
    rows = torch.randn(1, 9, generator=torch.Generator().manual_seed(3)).to(dtype).expand(4, 9)
    norm, gradient = norm_and_gradient(rows)
    torch.testing.assert_close(norm, rows.norm())
    torch.testing.assert_close(gradient, rows / rows.norm(), rtol=1e-5, atol=1e-6)


def test_batches_of_matrices_are_matrices_one_by_one():
    matrices = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(4))
    norms, gradient = norm_and_gradient(matrices)
    assert norms.shape == (3, 4)
    for index in [(0, 0), (2, 3)]:
        torch.testing.assert_close(
            (norms[index], gradient[index]), norm_and_gradient(matrices[index])
        )
    with torch.no_grad():
        torch.testing.assert_close(nuclear_norms(matrices), norms)


def test_gradient_by_differences():
    matrices = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nuclear_norms, matrices)


def test_a_second_derivative_raises():
    matrices = torch.randn(2, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(nuclear_norms(matrices).sum(), matrices, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_images_with_equal_views(dtype):
    """Centroids of norm r have N singular values r, V equal views one of r sqrt(V)."""
    num_images, num_views, norm = 5, 3, 2.0
    images = norm * orthonormal(8, num_images).T.to(dtype)
    online = images.unsqueeze(1).expand(-1, num_views, -1).contiguous().requires_grad_()
    loss = mmcr_loss(online, online.detach(), lmda=0.5)
    expected = -num_images * norm + 0.5 * norm * math.sqrt(2 * num_views)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert online.grad.isfinite().all()


def test_turning_all_embeddings_changes_nothing():
    online, momentum = torch.randn(2, 6, 2, 9, dtype=torch.float64)
    turn = orthonormal(9, 9)
    loss = mmcr_loss(online, momentum, lmda=1.0)
    torch.testing.assert_close(mmcr_loss(online @ turn, momentum @ turn, lmda=1.0), loss)


def test_autocast_does_not_round():
    online, momentum = torch.randn(2, 6, 2, 9, generator=torch.Generator().manual_seed(5))
    expected = MMCRLoss()(online, momentum)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MMCRLoss()(online, momentum), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"online": torch.ones(2, 3)}, ValueError, r"online must have shape \(N, k, D\).*\(2, 3\)"),
        ({"momentum": torch.ones(0, 2, 3)}, ValueError, "momentum must have shape"),
        ({"momentum": torch.ones(2, 1, 3)}, ValueError, "momentum must have the shape of online"),
        ({"online": VIEWS.long()}, TypeError, "online must be floating point"),
        ({"momentum": VIEWS.to("meta")}, ValueError, "momentum must be on the device of online"),
        ({"lmda": -1.0}, ValueError, "lmda must be finite and at least 0, got -1.0"),
        ({"lmda": None}, TypeError, "lmda must be a number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mmcr_loss(**{"online": VIEWS, "momentum": VIEWS, **arguments})
