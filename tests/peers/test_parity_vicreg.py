"""Value, gradient and interface of lightly's VICReg and VICRegL 1.5, where it is installed."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import or_skip
from vicreg_inputs import normal, views

from sslfast.bench.peers import lightly_loss
from sslfast.losses import VICRegLLoss, VICRegLoss

with or_skip():
    LightlyVICRegLoss = lightly_loss("vicreg_loss", "VICRegLoss")
    LightlyVICRegLLoss = lightly_loss("vicregl_loss", "VICRegLLoss")

PAIRS = [(VICRegLoss, LightlyVICRegLoss), (VICRegLLoss, LightlyVICRegLLoss)]


def assert_same(ours, theirs, arguments, leaves, rounding=32):
    """Equal values and gradients, to a few roundings of the largest number."""
    actual, expected = ours(*arguments), theirs(*arguments)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    eps = rounding * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=eps, atol=0)
    for gradient, truth in zip(
        torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        atol = eps * float(truth.abs().max())
        torch.testing.assert_close(gradient, truth, rtol=0, atol=atol)


def crops(num_images, dim, channels, *, side, count, seed, dtype):
    """Lightly's arguments of one kind of crop; positions as random crops have them."""
    features = [
        (
            normal(num_images, dim, seed=seed + v).to(dtype).requires_grad_(),
            normal(num_images, side, side, channels, seed=seed + 10 + v).to(dtype).requires_grad_(),
        )
        for v in range(count)
    ]
    grids = [normal(num_images, side, side, 2, seed=seed + 20 + v).to(dtype) for v in range(count)]
    return features, grids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"lambda_param": 3.0, "mu_param": 0.5, "nu_param": 7.0, "eps": 0.01}], ids=str
)
@pytest.mark.parametrize(
    "shape", [(2, 3), (64, 32), (16, 100), (33, 33), (9, 4, 5), (8, 2, 3, 5)], ids=str
)
def test_vicreg_value_and_gradient(shape, options, dtype):
    pair = views(*shape, dtype=dtype)
    assert_same(VICRegLoss(**options), LightlyVICRegLoss(**options), pair, pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_matches": (3, 2), "alpha": 0.2, "nu_param": 7.0},
        {"num_matches": (-1, 5), "alpha": 0.0},
        {"alpha": 1.0, "eps": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize(("num_global", "num_local"), [(2, 0), (1, 2), (2, 2)])
def test_vicregl_value_and_gradient(num_global, num_local, options, dtype):
    features, grids = crops(6, 16, 9, side=5, count=num_global, seed=0, dtype=dtype)
    small = crops(6, 16, 9, side=3, count=num_local, seed=50, dtype=dtype) if num_local else ()
    leaves = [tensor for pair in (*features, *(small[0] if small else ())) for tensor in pair]
    ours, theirs = VICRegLLoss(**options), LightlyVICRegLLoss(**options)
    assert_same(ours, theirs, (features, grids, *small), leaves)


def test_vicregl_of_large_maps_in_float64():
    """Beyond 25 places lightly's distances come from products, which float64 survives."""
    features, grids = crops(6, 16, 9, side=7, count=2, seed=0, dtype=torch.float64)
    leaves = [tensor for pair in features for tensor in pair]
    assert_same(VICRegLLoss(), LightlyVICRegLLoss(), (features, grids), leaves)


def test_vicregl_global_loss_by_its_private_name():
    features, _ = crops(6, 16, 9, side=5, count=2, seed=0, dtype=torch.float64)
    small, _ = crops(6, 16, 9, side=3, count=2, seed=50, dtype=torch.float64)
    for given in ((features,), (features, small)):
        found, expected = (loss()._global_loss(*given) for loss in PAIRS[1])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_signature_attributes_and_state(ours, theirs):
    """What comes in addition is given by name."""
    for mine, other in ((ours.__init__, theirs.__init__), (ours.forward, theirs.forward)):
        parameters = inspect.signature(mine).parameters.values()
        shared = [(p.name, p.default) for p in parameters if p.kind != p.KEYWORD_ONLY]
        expected = inspect.signature(other).parameters.values()
        assert shared == [(p.name, p.default) for p in expected]
    made, reference = ours(), theirs()
    for name in set(inspect.signature(theirs.__init__).parameters) - {"self"}:
        assert getattr(made, name) == getattr(reference, name)
    made.load_state_dict(reference.state_dict())


def test_both_refuse_what_has_no_variance_or_does_not_match():
    for shapes in (((1, 4), (1, 4)), ((3, 4), (2, 4))):
        given = [torch.ones(shape) for shape in shapes]
        with pytest.raises(AssertionError):
            LightlyVICRegLoss()(*given)
        with pytest.raises(ValueError, match=r"^z_[ab] must have"):
            VICRegLoss()(*given)
