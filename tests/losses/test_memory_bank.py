"""The module around NT-Xent: its state and its bank of past embeddings."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import unit_rows, views

from sslfast.functional import ntxent_loss
from sslfast.losses import MemoryBankModule, NTXentLoss


def test_defaults_attributes_and_state_are_lightlys():
    loss = NTXentLoss()
    assert (loss.temperature, loss.gather_distributed, loss.eps) == (0.5, False, 1e-8)
    assert loss.memory_bank.size == (0,)
    assert loss.state_dict() == {}
    assert NTXentLoss(0.1, (8, 5), False).state_dict() == {}
    first, second = views()
    torch.testing.assert_close(loss(first, second), ntxent_loss(first, second))
    assert loss(first, second).shape == ()
    assert str(loss).startswith("NTXentLoss(\n  temperature=0.5, gather_distributed=False")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_keep_the_bank_and_go_their_own_way(clone):
    loss = NTXentLoss(0.1, memory_bank_size=(8, 5))
    first, second = (view.requires_grad_() for view in views(3))
    loss(first, second)
    twin = clone(loss)
    assert torch.equal(twin.memory_bank.bank, loss.memory_bank.bank)
    assert torch.equal(twin(first, second), loss(first, second))
    loss(first, second)
    assert not torch.equal(twin.memory_bank.bank_ptr, loss.memory_bank.bank_ptr)


def test_bank_is_read_before_it_is_updated_and_rests_in_evaluation():
    loss = NTXentLoss(0.1, memory_bank_size=(8, 5)).double()
    before = loss.memory_bank.bank.clone()
    first, second = views(3)
    expected = ntxent_loss(first, second, temperature=0.1, negatives=before)
    torch.testing.assert_close(loss(first, second), expected)
    assert torch.equal(loss.memory_bank.bank, before)
    torch.testing.assert_close(loss(first.requires_grad_(), second), expected)
    torch.testing.assert_close(loss.memory_bank.bank[:3], F.normalize(second))
    assert torch.equal(loss.memory_bank.bank[3:], before[3:])


def test_bank_gets_no_gradient_and_two_losses_may_share_a_backward_pass():
    loss = NTXentLoss(0.1, memory_bank_size=(8, 5))
    first, second = (view.requires_grad_() for view in views(3, dtype=torch.float32))
    (loss(first, second) + loss(second, first)).backward()
    assert first.grad.abs().max() > 0
    assert not loss.memory_bank.bank.requires_grad


def test_a_batch_that_does_not_match_leaves_the_bank_alone():
    loss = NTXentLoss(memory_bank_size=(8, 4))
    before = loss.memory_bank.bank.clone()
    first, second = (view.requires_grad_() for view in views(3, dim=5))
    with pytest.raises(ValueError, match=r"features of the memory bank \(8, 4\), got .*\(3, 5\)"):
        loss(first, second)
    assert torch.equal(loss.memory_bank.bank, before)


@pytest.mark.parametrize("num_rows", [1, 3, 5, 7])
def test_bank_fills_up_truncates_and_starts_again(num_rows):
    bank = MemoryBankModule((5, 2), feature_dim_first=False)
    expected, start = bank.bank.clone(), 0
    for step in range(7):
        rows = torch.full((num_rows, 2), float(step)) + torch.arange(num_rows).unsqueeze(1) / 10
        _, seen = bank(rows, update=True)
        assert torch.equal(seen, expected)
        fits = min(num_rows, 5 - start)
        expected[start : start + fits] = rows[:fits]
        start = 0 if start + num_rows >= 5 else start + num_rows
        assert torch.equal(bank.bank, expected)
        assert bank.bank_ptr.tolist() == [start]


def test_bank_layouts_and_disabled_bank():
    rows = unit_rows(3, 4).float()
    bank = MemoryBankModule((6, 4))
    output, negatives = bank(rows)
    assert output is rows
    assert negatives.shape == (4, 6)
    torch.testing.assert_close(bank.bank.norm(dim=1), torch.ones(6))
    for size in (0, (0,), (0, 4)):
        assert MemoryBankModule(size)(rows, update=True) == (rows, None)


def test_integer_bank_size_warns_and_takes_the_features_of_the_first_batch():
    with pytest.warns(UserWarning, match=r"size=9 leaves the feature dimension"):
        loss = NTXentLoss(memory_bank_size=9)
    first, second = views(4, 5, dtype=torch.float32)
    loss(first.requires_grad_(), second)
    assert loss.memory_bank.bank.shape == (9, 5)
    torch.testing.assert_close(loss.memory_bank.bank[:4], F.normalize(second))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NTXentLoss(memory_bank_size=(9, 5))
        NTXentLoss(memory_bank_size=0)
