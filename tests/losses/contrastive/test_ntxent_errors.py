"""Bad arguments of NT-Xent: each error names the argument, what it got and what was expected."""

from __future__ import annotations

import math

import pytest
import torch

from sslfast.functional import ntxent_loss
from sslfast.losses import NTXentLoss

MATRIX = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (
            MATRIX,
            torch.ones(3, 3),
            ValueError,
            r"1 must have the shape of .*0 \(2, 3\), got \(3, 3",
        ),
        (
            MATRIX,
            torch.ones(2, 4),
            ValueError,
            r"1 must have the shape of .*0 \(2, 3\), got \(2, 4",
        ),
        (torch.ones(3), torch.ones(3), ValueError, r"0 must be a matrix .* got shape \(3,\)"),
        (MATRIX, torch.ones(2, 3, 1), ValueError, r"1 must be a matrix .* got shape \(2, 3, 1\)"),
        (
            torch.ones(0, 3),
            torch.ones(0, 3),
            ValueError,
            r"0 must have at least one row, got shape \(0, 3\)",
        ),
        (torch.ones(2, 0), torch.ones(2, 0), ValueError, r"0 must be a matrix .* shape \(2, 0\)"),
        (MATRIX.long(), MATRIX, TypeError, r"0 must be floating point .* got torch.int64"),
        (MATRIX, MATRIX.cfloat(), TypeError, r"1 must be floating point .* got torch.complex64"),
        ([[1.0]], MATRIX, TypeError, r"0 must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r"1 must be on the device of .* \(cpu\), got meta"),
    ],
)
def test_errors_name_the_embeddings(first, second, error, message):
    with pytest.raises(error, match="^embeddings" + message):
        ntxent_loss(first, second)
    with pytest.raises(error, match="^out" + message):
        NTXentLoss()(first, second)
    with pytest.raises(error, match="^out" + message):
        NTXentLoss(memory_bank_size=(4, 3))(first, second)


@pytest.mark.parametrize("value", [0.0, -0.1, 1e-9, math.inf, math.nan])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_errors_name_the_temperature(value, kind):
    message = rf"^temperature must be finite and at least 1e-8, got {value}"
    with pytest.raises(ValueError, match=message[:50]):
        NTXentLoss(kind(value))
    with pytest.raises(ValueError, match=message[:50]):
        ntxent_loss(MATRIX, MATRIX, temperature=kind(value))
    loss = NTXentLoss()
    loss.temperature = kind(value)
    with pytest.raises(ValueError, match=message[:50]):
        loss(MATRIX, MATRIX)


def test_errors_name_the_kind_of_temperature():
    with pytest.raises(TypeError, match=r"^temperature must be a number or a tensor, got str"):
        NTXentLoss("0.5")
    with pytest.raises(TypeError, match=r"^temperature must be floating point .* got torch.int64"):
        NTXentLoss(torch.tensor(1))
    with pytest.raises(ValueError, match=r"^temperature must have one element, got shape \(2,\)"):
        NTXentLoss(torch.ones(2))
    with pytest.raises(ValueError, match=r"^temperature must be on the device .*\(cpu\), got meta"):
        ntxent_loss(MATRIX, MATRIX, temperature=torch.tensor(0.5, device="meta"))


@pytest.mark.parametrize(
    ("negatives", "error", "message"),
    [
        (torch.ones(4, 2), ValueError, r"must have the 3 features of .* got shape \(4, 2\)"),
        (torch.ones(0, 3), ValueError, r"must have at least one row, got shape \(0, 3\)"),
        (torch.ones(3), ValueError, r"must be a matrix .* got shape \(3,\)"),
        (torch.ones(4, 3).int(), TypeError, r"must be floating point .* got torch.int32"),
        (torch.ones(4, 3, device="meta"), ValueError, r"must be on the device .* got meta"),
    ],
)
def test_errors_name_the_negatives(negatives, error, message):
    with pytest.raises(error, match="^negatives " + message):
        ntxent_loss(MATRIX, MATRIX, negatives=negatives)


def test_negatives_do_not_go_with_gathering():
    with pytest.raises(ValueError, match=r"^gather_distributed must be False when negatives"):
        ntxent_loss(MATRIX, MATRIX, negatives=MATRIX, gather_distributed=True)


@pytest.mark.parametrize("size", [-1, (-1, 3), (4, -3), ()])
def test_errors_name_the_memory_bank_size(size):
    with pytest.raises(ValueError, match=r"^memory bank size must be .* none negative, got"):
        NTXentLoss(memory_bank_size=size)


@pytest.mark.parametrize("bank", [0, (4, 3)])
def test_distributed_is_asked_for_once_and_refused_where_it_is_missing(monkeypatch, bank):
    answers = [True, False]
    monkeypatch.setattr(torch.distributed, "is_available", lambda: answers.pop(0))
    NTXentLoss(memory_bank_size=bank, gather_distributed=True)
    assert answers == [False]
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        NTXentLoss(memory_bank_size=bank, gather_distributed=True)
    NTXentLoss(memory_bank_size=bank, gather_distributed=False)
