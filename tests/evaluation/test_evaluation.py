"""kNN, RankMe and the supervised ceiling on cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sslfast.evaluation import embed, knn_accuracy, knn_predict, rankme, train_supervised


def _clusters(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 4
    centres = 5 * torch.eye(4, 16)
    return centres[labels] + 0.3 * torch.randn(rows, 16, generator=generator), labels


def test_knn_finds_separable_clusters() -> None:
    gallery, labels = _clusters(200, seed=0)
    queries, truth = _clusters(50, seed=1)
    assert knn_accuracy(gallery, labels, queries, truth, k=20) == 1.0
    assert knn_accuracy(gallery, labels, queries, (truth + 1) % 4, k=20) == 0.0


def test_knn_does_not_depend_on_chunks_or_row_lengths() -> None:
    gallery, labels = _clusters(100, seed=2)
    queries = torch.randn(37, 16, generator=torch.Generator().manual_seed(3))
    whole = knn_predict(gallery, labels, queries, k=10)
    parts = [knn_predict(gallery, labels, rows, k=10) for rows in queries.split(5)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, knn_predict(7 * gallery, labels, 0.1 * queries, k=10))


@pytest.mark.parametrize("k", [1, 7, 90, 500])
def test_knn_is_the_vote_by_classes(k: int) -> None:
    """Against an N x classes table of votes, with classes that nobody is in."""
    generator = torch.Generator().manual_seed(8)
    gallery, queries = (torch.randn(rows, 5, generator=generator) for rows in (90, 40))
    labels = 3 * torch.randint(9, (90,), generator=generator)
    cosine = nn.functional.normalize(queries) @ nn.functional.normalize(gallery).T
    similarity, index = cosine.double().topk(min(k, 90), dim=1)
    votes = torch.zeros(40, 30, dtype=torch.float64)
    votes.scatter_add_(1, labels[index], ((similarity - 1) / 0.3).exp())
    expected = votes.argsort(dim=1, descending=True)
    chosen = {"k": k, "temperature": 0.3}
    assert torch.equal(knn_predict(gallery, labels, queries, **chosen), expected[:, 0])
    truth = labels[:40]
    for top in (1, 2, 5, 40):
        named = (expected == truth[:, None]) & (votes.gather(1, expected) > 0)
        share = named[:, :top].any(1).double().mean()
        assert knn_accuracy(gallery, labels, queries, truth, top=top, **chosen) == share


def test_knn_ties_go_to_lower_rows_and_lower_classes() -> None:
    gallery = torch.ones(4, 2)
    labels = torch.tensor([9, 2, 2, 5])
    query = torch.ones(1, 2)
    assert knn_predict(gallery, labels, query, k=1).item() == 9
    assert knn_predict(gallery, labels, query, k=2).item() == 2
    assert knn_predict(gallery, labels.flip(0), query, k=2).item() == 2
    assert knn_predict(gallery, torch.tensor([9, 7, 9, 7]), query, k=4).item() == 7


def test_knn_of_a_small_gallery_and_of_no_queries() -> None:
    gallery, labels = _clusters(3, seed=9)
    assert torch.equal(
        knn_predict(gallery, labels, gallery, k=200), knn_predict(gallery, labels, gallery, k=3)
    )
    assert knn_predict(gallery, labels, gallery[:0]).shape == (0,)


def test_knn_memory_does_not_grow_with_classes() -> None:
    gallery, labels = _clusters(40, seed=10)
    expected = knn_predict(gallery, labels, gallery, k=5)
    assert torch.equal(knn_predict(gallery, labels + (1 << 40), gallery, k=5), expected + (1 << 40))


def test_knn_weights_by_exp_of_similarity_over_temperature() -> None:
    """One neighbour at cosine 1 against two at 0.8: the vote turns at exp(0.2 / t) = 2."""
    gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    turn = 0.2 / math.log(2)
    assert knn_predict(gallery, labels, query, k=3, temperature=0.9 * turn).item() == 0
    assert knn_predict(gallery, labels, query, k=3, temperature=1.1 * turn).item() == 1


def test_knn_at_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    gallery, labels = _clusters(60, seed=4)
    queries = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))
    cold = knn_predict(gallery, labels, queries, k=60, temperature=1e-4)
    assert torch.equal(cold, knn_predict(gallery, labels, queries, k=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0.0"),
        ({"gallery": torch.full((8, 16), math.nan)}, "gallery must be finite"),
        ({"queries": torch.ones(2, 3)}, "queries must have the gallery's D = 16, got 3"),
        ({"gallery_labels": torch.zeros(3, dtype=torch.long)}, "gallery_labels must be integers"),
        ({"gallery": torch.ones(8)}, "gallery must be a floating-point"),
    ],
)
def test_knn_names_the_bad_argument(change: dict[str, object], message: str) -> None:
    gallery, labels = _clusters(8, seed=0)
    arguments = {"gallery": gallery, "gallery_labels": labels, "queries": gallery, **change}
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)


def test_knn_accuracy_refuses_top_0() -> None:
    gallery, labels = _clusters(8, seed=0)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        knn_accuracy(gallery, labels, gallery, labels, top=0)


def test_knn_accuracy_wants_a_label_for_every_query() -> None:
    gallery, labels = _clusters(8, seed=0)
    with pytest.raises(ValueError, match="query_labels"):
        knn_accuracy(gallery, labels, gallery, labels[:3])


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_singular_values_is_their_number(rank: int) -> None:
    basis = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(rank)))[0]
    embeddings = basis[:, :rank] @ torch.eye(rank, 8)
    assert rankme(embeddings) == pytest.approx(rank, rel=1e-4)


def test_rankme_of_known_spectrum() -> None:
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    expected = math.exp(0.5 * math.log(2) + 0.5 * math.log(4))
    assert rankme(torch.diag(4 * p), eps=0.0) == pytest.approx(expected)


def test_rankme_of_nothing_and_of_bad_input() -> None:
    assert rankme(torch.zeros(4, 3)) == 0.0
    for bad in (torch.ones(3), torch.ones(3, 2, dtype=torch.long), torch.ones(0, 2)):
        with pytest.raises(ValueError, match="embeddings must be a non-empty"):
            rankme(bad)
    with pytest.raises(ValueError, match="finite"):
        rankme(torch.tensor([[1.0, math.nan]]))


def test_embed_leaves_the_mode_and_does_not_depend_on_chunks() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    images = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    features = embed(encoder, images, chunk=3)
    assert encoder.training
    torch.testing.assert_close(features, embed(encoder, images))
    assert not features.requires_grad


def test_supervised_training_learns_separable_labels() -> None:
    torch.manual_seed(0)
    encoder = nn.Linear(16, 4)
    rows, labels = _clusters(256, seed=6)
    rows = rows[:, torch.randperm(16)]
    train_supervised(
        encoder, 4, 4, lambda: ((rows,), labels), range(60), 60, lr=0.05, weight_decay=0.0
    )
    with torch.no_grad():
        assert knn_accuracy(encoder(rows), labels, encoder(rows), labels, k=20) == 1.0
