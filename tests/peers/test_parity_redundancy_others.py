"""Value, gradient and state of lightly's TiCo, MMCR and W-MSE 1.5, where it is installed."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import Any

import pytest
import torch
from conftest import or_skip
from torch import Tensor

from sslfast.bench.peers import lightly_loss
from sslfast.losses import MMCRLoss, TiCoLoss, Whitening2d, WMSELoss

with or_skip():
    LightlyTiCoLoss = lightly_loss("tico_loss", "TiCoLoss")
    LightlyMMCRLoss = lightly_loss("mmcr_loss", "MMCRLoss")
    LightlyWMSELoss = lightly_loss("wmse_loss", "WMSELoss")
    LightlyWhitening2d = lightly_loss("wmse_loss", "Whitening2d")

DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _whitening_of_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightly 1.5 looks for `torch.linalg.solve_triangular` as a module and never finds it."""
    module = sys.modules[LightlyWMSELoss.__module__]
    monkeypatch.setattr(module, "_SOLVE_TRIANGULAR_AVAILABLE", True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def views(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    content, *noise = normal(3, *shape, seed=seed)
    return tuple((content + 0.5 * each).to(dtype).requires_grad_() for each in noise)


def assert_same(ours: Any, theirs: Any, inputs: tuple[Tensor, ...], rounding: float = 64) -> None:
    """Equal values and gradients, to a few roundings of the largest number."""
    actual, expected = ours(*inputs), theirs(*inputs)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    eps = rounding * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=eps, atol=eps)
    for gradient, truth in zip(
        torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        atol = eps * float(truth.abs().max())
        torch.testing.assert_close(gradient, truth, rtol=0, atol=atol)


def parameters(function: Any) -> list[tuple[str, Any]]:
    found = inspect.signature(function).parameters.items()
    return [(name, parameter.default) for name, parameter in found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"beta": 0.3, "rho": 2.0}])
@pytest.mark.parametrize(("num_rows", "dim"), [(2, 3), (17, 32), (64, 16), (16, 130)])
def test_tico_step_after_step(num_rows, dim, options, dtype):
    ours, theirs = TiCoLoss(**options), LightlyTiCoLoss(**options)
    for step, update in enumerate((False, True, True, False, True, False)):
        pair = views(num_rows, dim, seed=step, dtype=dtype)
        before = None if ours.C is None else ours.C.clone()

        calls = (partial(loss, update_covariance_matrix=update) for loss in (ours, theirs))
        assert_same(*calls, pair)
        if update:
            torch.testing.assert_close(ours.C, theirs.C)
        elif before is None:
            assert ours.C is None
        else:
            assert torch.equal(ours.C, before)


def test_tico_signature_and_attributes():
    assert parameters(TiCoLoss) == parameters(LightlyTiCoLoss)
    assert parameters(TiCoLoss.forward) == parameters(LightlyTiCoLoss.forward)
    ours, theirs = TiCoLoss(), LightlyTiCoLoss()
    for name in ("beta", "rho", "C", "gather_distributed"):
        assert getattr(ours, name) == getattr(theirs, name)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lmda", [0.0, 5e-3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 2, 3), (17, 1, 33), (9, 3, 40), (40, 2, 9)])
def test_mmcr(shape, lmda, dtype):
    """The gradient U V^T is rounded in proportion to largest over least singular value."""
    pair = views(*shape, dtype=dtype)
    assert_same(MMCRLoss(lmda), LightlyMMCRLoss(lmda), pair, rounding=512)


def test_mmcr_signature_begins_as_theirs():
    assert parameters(MMCRLoss)[:1] == parameters(LightlyMMCRLoss)
    assert parameters(MMCRLoss.forward) == parameters(LightlyMMCRLoss.forward)
    assert MMCRLoss().lmda == LightlyMMCRLoss().lmda
    for loss_class in (MMCRLoss, LightlyMMCRLoss):
        with pytest.raises(ValueError, match="lmda"):
            loss_class(-0.1)


def wmse_pair(**options: Any) -> tuple[WMSELoss, torch.nn.Module]:
    return WMSELoss(**options), LightlyWMSELoss(**options)


def under_one_seed(loss: Any) -> Any:
    def call(stacked: Tensor) -> Tensor:
        torch.manual_seed(11)
        return loss(stacked)

    return call


def first_minus_second(x0: Tensor, x1: Tensor) -> Tensor:
    """Depends on the order of the rows, and of the views."""
    weights = torch.arange(1, len(x0) + 1).to(x0)
    return ((x0 - 0.5 * x1).square().sum(1) * weights).mean()


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 2, "w_size": 24},
        {"num_samples": 3, "w_size": 24, "w_iter": 2},
        {"num_samples": 2, "w_size": 48, "eps": 0.2, "momentum": 0.3},
        {"num_samples": 3, "w_size": 24, "loss_fn": first_minus_second},
        {"num_samples": 2, "w_size": 24, "track_running_stats": False},
    ],
    ids=["two", "three", "damped", "own_loss", "untracked"],
)
def test_wmse_with_its_draws_and_statistics(options):
    ours, theirs = wmse_pair(embedding_dim=7, **options)
    ours, theirs = ours.double(), theirs.double()
    for step in range(3):
        stacked = normal(48 * options["num_samples"], 7, seed=step).requires_grad_()
        assert_same(under_one_seed(ours), under_one_seed(theirs), (stacked,), rounding=4096)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    for loss in (ours, theirs):
        loss.eval()
    stacked = normal(48 * options["num_samples"], 7, seed=9).requires_grad_()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    assert_same(under_one_seed(ours), under_one_seed(theirs), (stacked,), rounding=4096)
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_wmse_leaves_the_random_generator_as_theirs():
    ours, theirs = wmse_pair(embedding_dim=4, w_size=8, w_iter=3)
    states = []
    for loss in (ours, theirs):
        torch.manual_seed(5)
        loss(normal(48, 4, dtype=torch.float32))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_wmse_signatures_attributes_and_buffers():
    for ours, theirs in ((WMSELoss, LightlyWMSELoss), (Whitening2d, LightlyWhitening2d)):
        mine, other = parameters(ours), parameters(theirs)
        assert [name for name, _ in mine] == [name for name, _ in other]
        assert [d for n, d in mine if n != "loss_fn"] == [d for n, d in other if n != "loss_fn"]
        assert parameters(ours.forward) == parameters(theirs.forward)
    ours, theirs = wmse_pair(num_samples=3)
    for name in ("w_iter", "w_size", "num_samples", "num_pairs"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [(n, b.dtype, b.shape) for n, b in ours.named_buffers()] == [
        (n, b.dtype, b.shape) for n, b in theirs.named_buffers()
    ]
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("eps", [0, 0.3])
def test_whitening2d(eps, track, training):
    ours, theirs = (
        layer(6, momentum=0.2, track_running_stats=track, eps=eps).double()
        for layer in (Whitening2d, LightlyWhitening2d)
    )
    for step in range(3):
        rows = normal(20, 6, seed=step).requires_grad_()
        assert_rows_same(ours, theirs, rows)
    ours.train(training)
    theirs.train(training)
    assert_rows_same(ours, theirs, normal(20, 6, seed=7).requires_grad_())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def assert_rows_same(ours: Any, theirs: Any, rows: Tensor) -> None:
    weights = normal(*rows.shape, seed=99)
    results = [whitened(layer, rows, weights) for layer in (ours, theirs)]
    torch.testing.assert_close(*results)


def whitened(layer: Any, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    result = layer(rows)
    return result, torch.autograd.grad((result * weights).sum(), rows)[0]
