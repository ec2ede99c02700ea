"""Value, gradient and memory bank of `lightly.loss.NTXentLoss` 1.5, where it is installed."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import or_skip
from contrastive_inputs import leaves, views
from torch import Tensor

from sslfast.bench.peers import lightly_ntxent, lightly_version
from sslfast.losses import NTXentLoss

with or_skip():
    LightlyNTXentLoss = lightly_ntxent()


def build(temperature: float, bank: int | tuple[int, int], seed: int = 0) -> tuple:
    losses = []
    for loss_class in (NTXentLoss, LightlyNTXentLoss):
        torch.manual_seed(seed)
        losses.append(loss_class(temperature, bank))
    return tuple(losses)


def assert_same(ours: NTXentLoss, theirs: torch.nn.Module, pair: tuple[Tensor, ...]) -> None:
    """Equal values and gradients, to the rounding of a logit.

    A gradient is of size ``p / (temperature N |x|)`` for a probability p, which lightly rounds
    beside 1 even where the loss, and so the whole gradient, is tiny.
    """
    actual, expected = ours(*pair), theirs(*pair)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    rounding = 8 * torch.finfo(actual.dtype).eps / ours.temperature
    torch.testing.assert_close(actual, expected, rtol=0, atol=rounding * max(1, expected.item()))
    gradients = zip(
        torch.autograd.grad(actual, pair), torch.autograd.grad(expected, pair), strict=True
    )
    shortest = min(view.detach().norm(dim=1).min().item() for view in pair)
    atol = rounding / (ours.temperature * len(pair[0]) * shortest)
    for gradient, expected_gradient in gradients:
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("num_images", [1, 2, 3, 17, 256])
def test_value_and_gradient(num_images, temperature, dtype):
    assert_same(*build(temperature, 0), leaves(num_images, 32, dtype=dtype))


@pytest.mark.parametrize("num_images", [1, 3, 5, 11, 14])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_memory_bank_through_its_wrap_around(temperature, num_images):
    ours, theirs = build(temperature, (11, 16))
    wrapped = False
    for step in range(13):
        before = int(ours.memory_bank.bank_ptr)
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)
        torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
        assert_same(ours, theirs, leaves(num_images, 16, seed=step, dtype=torch.float32))
        wrapped |= int(ours.memory_bank.bank_ptr) <= before
    assert wrapped


def test_memory_bank_rests_in_evaluation():
    ours, theirs = build(0.1, (11, 16))
    first, second = views(4, 16, dtype=torch.float32)
    torch.testing.assert_close(ours(first, second), theirs(first, second))
    assert torch.equal(ours.memory_bank.bank, theirs.memory_bank.bank)
    assert ours.memory_bank.bank_ptr.tolist() == theirs.memory_bank.bank_ptr.tolist() == [0]


def test_integer_memory_bank_size_is_accepted_with_a_warning_as_by_1_5():
    with pytest.warns(UserWarning, match="size"):
        ours = NTXentLoss(0.1, 9)
    if lightly_version() >= "1.6":
        pytest.skip("lightly 1.6 refuses an integer memory bank size")
    with pytest.warns(UserWarning, match="size"):
        theirs = LightlyNTXentLoss(0.1, 9)
    pair = leaves(4, 16, dtype=torch.float32)
    torch.manual_seed(5)
    value = ours(*pair)
    torch.manual_seed(5)
    torch.testing.assert_close(value, theirs(*pair))
    torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
    assert ours.memory_bank.size == theirs.memory_bank.size == (9,)


def test_signature_attributes_buffers_and_state():
    for ours, theirs in (
        (NTXentLoss, LightlyNTXentLoss),
        (NTXentLoss.forward, LightlyNTXentLoss.forward),
    ):
        signatures = [
            [(name, argument.default) for name, argument in parameters.items()]
            for parameters in (inspect.signature(x).parameters for x in (ours, theirs))
        ]
        assert signatures[0] == signatures[1]
    ours, theirs = build(0.1, (6, 4))
    for name in ("temperature", "gather_distributed", "eps"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.memory_bank.size == theirs.memory_bank.size
    assert [(n, b.dtype, b.shape) for n, b in ours.named_buffers()] == [
        (n, b.dtype, b.shape) for n, b in theirs.named_buffers()
    ]
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0,), "temperature"), ((1e-9,), "temperature"), ((0.5, (4, -1)), "memory bank size")],
)
def test_both_refuse(arguments, message):
    for loss_class in (NTXentLoss, LightlyNTXentLoss):
        with pytest.raises(ValueError, match=message):
            loss_class(*arguments)
