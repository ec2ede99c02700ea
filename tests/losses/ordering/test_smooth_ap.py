"""Smooth-AP: the authors' blocks, pytorch-metric-learning, any classes, the hard limit, memory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from places import SUPPORT
from torch import Tensor

from sslfast.functional import smooth_ap_loss
from sslfast.losses import SmoothAPLoss
from sslfast.losses.ordering import _average_precision, smooth_ap
from sslfast.testing import peak_memory_of, threads

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
MIB = 1 << 20


def rows_of(num_rows: int, dim: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(13)
    rows = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    return rows.to(dtype).requires_grad_()


def by_blocks(rows: Tensor, num_ids: int, temperature: float) -> Tensor:
    """The authors' form, block by block and row by row, exponents cut at 50."""

    def step(difference: Tensor) -> Tensor:
        return 1 / (1 + (-difference / temperature).clamp(-50, 50).exp())

    size = len(rows) // num_ids
    similarity = rows @ rows.T
    precisions = []
    for i in range(len(rows)):
        block = slice(i // size * size, (i // size + 1) * size)
        for j in range(block.start, block.stop):
            before = step(similarity[i] - similarity[i, j])
            rank = 1 + before.sum() - before[j]
            positive_rank = 1 + before[block].sum() - before[j]
            precisions.append(positive_rank / rank / size)
    return 1 - torch.stack(precisions).sum() / len(rows)


def check(actual: Tensor, expected: Tensor, rows: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), **tolerance)
    gradients = [
        torch.autograd.grad(loss, rows, retain_graph=True)[0] for loss in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, **tolerance)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize(("num_rows", "num_ids"), [(6, 3), (20, 5), (12, 1), (12, 12)])
def test_blocks_as_the_authors_have_them(num_rows, num_ids, temperature):
    leaf = rows_of(num_rows, 7)
    rows = F.normalize(leaf)
    expected = by_blocks(rows, num_ids, temperature)
    options = {"temperature": temperature, "normalize": False}
    check(smooth_ap_loss(rows, num_ids=num_ids, **options), expected, leaf, rtol=1e-8, atol=1e-12)
    labels = torch.arange(num_ids).repeat_interleave(num_rows // num_ids)
    module = SmoothAPLoss(temperature, num_ids=num_ids)
    assert torch.equal(module(leaf), smooth_ap_loss(leaf, labels, temperature=temperature))


def test_blocks_of_other_ranks_are_other_classes(monkeypatch):
    monkeypatch.setattr(smooth_ap, "rank", lambda: 1)
    assert smooth_ap._labels(torch.ones(6, 2), None, 3, True).tolist() == [3, 3, 4, 4, 5, 5]
    assert smooth_ap._labels(torch.ones(6, 2), None, 3, False).tolist() == [0, 0, 1, 1, 2, 2]


def metric_learning() -> torch.nn.Module:
    losses = pytest.importorskip(
        "pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed"
    )
    return losses.SmoothAPLoss()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_metric_learning_where_classes_are_as_many_as_their_rows(size):
    rows, labels = rows_of(size * size, 9), torch.arange(size).repeat_interleave(size)
    check(SmoothAPLoss()(rows, labels), metric_learning()(rows, labels), rows, rtol=0, atol=1e-6)


def test_metric_learning_counts_the_rows_of_a_class_as_classes():
    rows, labels = rows_of(24, 9), torch.arange(6).repeat_interleave(4)
    theirs = metric_learning()(rows, labels)
    check(smooth_ap_loss(rows, num_ids=4), theirs, rows, rtol=0, atol=1e-6)
    assert abs(smooth_ap_loss(rows, labels) - theirs) > 0.01


def test_labels_come_in_any_order_and_any_number(generator):
    rows = rows_of(40, 8)
    labels = torch.randint(-3, 6, (40,), generator=generator)
    order = torch.randperm(40, generator=generator)
    expected = smooth_ap_loss(rows, labels, temperature=0.1)
    for other in (labels[order], 1000 * labels[order], labels[order].short()):
        check(smooth_ap_loss(rows[order], other, temperature=0.1), expected, rows, **CLOSE)


def test_the_limit_of_a_cold_sigmoid_is_the_average_precision():
    rows, labels = rows_of(30, 6).detach(), torch.arange(30) % 4
    similarity = F.normalize(rows) @ F.normalize(rows).T
    precisions = []
    for i in range(30):
        hits = (labels == labels[i])[similarity[i].argsort(descending=True)].double()
        precision = hits.cumsum(0) / torch.arange(1, 31)
        precisions.append((precision * hits).sum() / hits.sum())
    expected = 1 - torch.stack(precisions).mean().item()
    assert smooth_ap_loss(rows, labels, temperature=1e-7).item() == pytest.approx(
        expected, abs=1e-9
    )


def test_perfect_order_keeps_its_digits():
    """1 - AP of classes far apart is e^-60 or so, where 1 minus a sum would be 0."""
    labels = torch.arange(8) // 4
    rows = F.one_hot(labels, 2).float().requires_grad_()
    loss = smooth_ap_loss(rows, labels, temperature=1 / 60)
    # Four negatives at distance 1, behind 1 + 3/2 rows at the same place.
    assert loss.item() == pytest.approx(4 * math.exp(-60) / 2.5, rel=1e-4)


def test_a_row_alone_in_its_class_is_nearly_in_order():
    rows = rows_of(9, 16)
    labels = torch.arange(9)
    similarity = (F.normalize(rows) @ F.normalize(rows).T).detach()
    before = ((similarity - similarity.diagonal()[:, None]) / 0.1).sigmoid()
    before = before.sum(1) - before.diagonal()
    loss = smooth_ap_loss(rows, labels, temperature=0.1)
    assert loss.item() == pytest.approx((before / (1 + before)).mean().item(), rel=1e-9)
    assert loss < 0.01


def test_one_row_alone_has_no_loss():
    rows = rows_of(1, 4)
    loss = smooth_ap_loss(rows, torch.zeros(1, dtype=torch.long))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, rows)[0], torch.zeros_like(rows))


def test_finite_differences():
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 1])
    assert torch.autograd.gradcheck(
        lambda rows: smooth_ap_loss(rows, labels, temperature=0.2), rows_of(7, 3)
    )


@pytest.mark.parametrize("chunk", [1, 50, 400, 1 << 20])
def test_chunks_make_no_difference(monkeypatch, chunk):
    rows, labels = rows_of(33, 5), torch.arange(33) ** 2 % 7
    expected = smooth_ap_loss(rows, labels, temperature=0.1)
    monkeypatch.setattr(_average_precision, "CHUNK", chunk)
    check(smooth_ap_loss(rows, labels, temperature=0.1), expected, rows, **CLOSE)


def test_a_class_size_that_is_told_makes_no_difference():
    rows, labels = rows_of(20, 5), torch.arange(20) % 6
    expected = smooth_ap_loss(rows, labels)
    for size in (4, 7, 100):
        check(smooth_ap_loss(rows, labels, max_class_size=size), expected, rows, **CLOSE)


def test_same_bits_with_any_number_of_threads():
    rows, labels = rows_of(300, 32, dtype=torch.float32), torch.arange(300) % 60
    results = []
    for count in (1, 2):
        with threads(count):
            loss = smooth_ap_loss(rows, labels)
            results.append((loss.detach(), *torch.autograd.grad(loss, rows)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_nothing_is_kept_for_a_gradient_that_nobody_asks_for():
    rows, labels = rows_of(12, 5), torch.arange(12) % 3
    expected = smooth_ap_loss(rows, labels)
    with torch.no_grad():
        loss = smooth_ap_loss(rows, labels)
    assert torch.equal(loss, expected)
    assert not loss.requires_grad


def test_autocast_does_not_round():
    rows, labels = rows_of(24, 16, dtype=torch.float32).detach(), torch.arange(24) % 6
    expected = smooth_ap_loss(rows, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(smooth_ap_loss(rows, labels), expected)


@pytest.mark.parametrize("gathered", [False, True])
def test_opcheck(gathered):
    rows, labels = rows_of(6, 3), torch.arange(6) % 2
    keys = (rows_of(8, 3), torch.arange(8) % 3) if gathered else (None, None)
    arguments = (rows, keys[0], labels, keys[1], 0.1, 0, True)
    torch.library.opcheck(_average_precision._forward, arguments)


def test_a_second_derivative_raises():
    rows = rows_of(6, 3)
    loss = smooth_ap_loss(rows, torch.arange(6) % 2, temperature=0.1)
    (first,) = torch.autograd.grad(loss, rows, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), rows)


def test_memory_grows_with_rows_alone():
    """A B x B matrix of 4096 rows would take 64 MiB, all sigmoids 4096 times as much."""

    def peak(num_rows: int) -> int:
        return peak_memory_of(
            "memory_smooth_ap:prepare",
            {"num_rows": num_rows, "dim": 32, "class_size": 4},
            warm_up={"num_rows": 8, "dim": 4, "class_size": 2},
            path=SUPPORT,
        )

    small, large = peak(2048), peak(4096)
    print(f"{small / MIB:.1f} MiB, then {large / MIB:.1f} MiB")
    held = 8 * 4 * _average_precision.CHUNK  # a chunk's tensors
    assert small <= held + 2048 * 4 * 32 * 12
    assert large - small <= 2048 * 4 * 32 * 12 + 4 * MIB


ROWS = torch.eye(4)
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"embeddings": torch.ones(4)}, ValueError, r"embeddings must be a matrix \(B, D\)"),
        ({"embeddings": ROWS[:0]}, ValueError, r"embeddings must have at least one row"),
        ({"embeddings": ROWS.long()}, TypeError, r"embeddings must be floating .* torch.int64"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(B,\) = \(4,\), .* \(3,\)"),
        ({"labels": LABELS.float()}, TypeError, r"labels must hold integers .* torch.float32"),
        ({"labels": [0, 0, 1, 1]}, TypeError, r"labels must be a tensor, got list"),
        ({"labels": LABELS.to("meta")}, ValueError, r"labels must be on the device .* got meta"),
        ({"labels": None}, ValueError, r"labels or num_ids must be given, .* got neither"),
        ({"num_ids": 2}, ValueError, r"labels or num_ids must be given, and not both, got both"),
        ({"labels": None, "num_ids": 3}, ValueError, r"num_ids must divide the 4 rows, got 3"),
        ({"labels": None, "num_ids": 0}, ValueError, r"num_ids must be at least 1, got 0"),
        ({"labels": None, "num_ids": 2.0}, TypeError, r"num_ids must be an integer, got float"),
        ({"temperature": 0.0}, ValueError, r"temperature must be finite .*, got 0.0"),
        ({"temperature": math.nan}, ValueError, r"temperature must be finite .*, got nan"),
        ({"temperature": "1"}, TypeError, r"temperature must be a number, got str"),
        ({"max_class_size": 0}, ValueError, r"max_class_size must be at least 1, got 0"),
        (
            {"max_class_size": 1},
            ValueError,
            r"max_class_size must be at least the rows of the largest class, 2, got 1",
        ),
    ],
)
def test_errors_name_the_argument(changed, error, message):
    arguments = {"embeddings": ROWS, "labels": LABELS, **changed}
    with pytest.raises(error, match="^" + message):
        smooth_ap_loss(**arguments)
    tensors = {name: arguments.pop(name) for name in ("embeddings", "labels")}
    with pytest.raises(error, match="^" + message):
        SmoothAPLoss(**arguments)(**tensors)


def test_distributed_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        SmoothAPLoss(gather_distributed=True)


def test_repr_names_the_options():
    assert "temperature=0.05, normalize=False" in repr(SmoothAPLoss(0.05, normalize=False))
