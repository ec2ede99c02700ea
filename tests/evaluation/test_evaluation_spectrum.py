"""RankMe and its cheap companions: known spectra, precision, batches against the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslfast.evaluation import (
    EmbeddingSpectrum,
    alignment,
    feature_std,
    participation_ratio,
    rankme,
    uniformity,
)
from sslfast.evaluation._gram import effective_rank, singular_values, smaller_gram
from sslfast.functional import alignment_loss, uniformity_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_spectrum(sigma: Tensor, rows: int, columns: int) -> Tensor:
    left = torch.linalg.qr(normal(rows, len(sigma), seed=1))[0]
    right = torch.linalg.qr(normal(columns, len(sigma), seed=2))[0]
    return (left * sigma) @ right.T


def rankme_by_svd(embeddings: Tensor, eps: float = 1e-7) -> float:
    p = torch.linalg.svdvals(embeddings.double())
    p = p / p.sum() + eps
    return float((-(p * p.log()).sum()).exp())


def spectrum_of(embeddings: Tensor, *sizes: int) -> EmbeddingSpectrum:
    spectrum = EmbeddingSpectrum()
    for batch in embeddings.split(list(sizes)):
        spectrum.update(batch)
    return spectrum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (20, 20), (1, 5), (5, 1), (5000, 3)])
def test_rankme_is_that_of_the_singular_values(shape, dtype):
    embeddings = (normal(*shape) * torch.logspace(0, -3, shape[1], dtype=torch.float64)).to(dtype)
    expected = rankme_by_svd(embeddings)
    assert rankme(embeddings) == pytest.approx(expected, rel=1e-6)
    assert spectrum_of(embeddings, shape[0]).rankme() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_a_float64_gram_resolves_one_part_in_a_hundred_million(shape):
    sigma = torch.logspace(0, -7.5, 12, dtype=torch.float64)
    found = singular_values(smaller_gram(with_spectrum(sigma, *shape)))
    assert (found - sigma).abs().max() < 1e-8
    torch.testing.assert_close(found[:8], sigma[:8], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("dim", "reading"), [(2048, 1.0033), (8192, 1.0133)])
def test_collapse_to_one_direction_reads_little_above_one(dim, reading):
    one = torch.zeros(dim, dtype=torch.float64)
    one[0] = 3.0
    assert effective_rank(one, 1e-7) == pytest.approx(reading, abs=1e-4)
    embeddings = torch.arange(1, 17).unsqueeze(1) * normal(1, dim).float()
    expected = math.exp(-15 * 1e-7 * math.log(1e-7))
    assert rankme(embeddings) == pytest.approx(expected, rel=1e-5)


def test_collapse_in_many_rows_reads_little_above_one():
    embeddings = normal(600, 1).float() @ normal(1, 256).float()
    assert 1 <= rankme(embeddings) < 1.02
    assert participation_ratio(embeddings) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_participation_ratio_of_known_spectra(shape):
    sigma = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    embeddings = with_spectrum(sigma, *shape)
    expected = (9 + 4 + 1) ** 2 / (81 + 16 + 1)
    for scale in (1.0, 1e-12, 1e12):
        scaled = (scale * embeddings).float()
        assert participation_ratio(scaled) == pytest.approx(expected, rel=1e-5)
        assert spectrum_of(scaled, shape[0]).participation_ratio() == pytest.approx(expected)
    assert participation_ratio(torch.eye(5)) == pytest.approx(5.0)
    assert participation_ratio(torch.zeros(4, 3)) == 0.0
    assert spectrum_of(torch.zeros(4, 3), 4).participation_ratio() == 0.0


@pytest.mark.parametrize("shape", [(60, 9), (6, 9)])
def test_centred_participation_ratio_is_that_of_the_covariance(shape):
    embeddings = normal(*shape) * torch.logspace(0, -1, 9, dtype=torch.float64) + 20
    covariance = torch.cov(embeddings.T)
    expected = float(covariance.trace() ** 2 / covariance.square().sum())
    assert participation_ratio(embeddings, center=True) == pytest.approx(expected)
    streamed = spectrum_of(embeddings, 2, shape[0] - 2).participation_ratio(center=True)
    assert streamed == pytest.approx(expected)
    assert participation_ratio(embeddings) < expected
    assert participation_ratio(torch.ones(4, 3), center=True) == 0.0


def test_feature_std_and_ddof():
    embeddings = normal(30, 4) + 1e6
    torch.testing.assert_close(feature_std(embeddings), embeddings.std(0))
    torch.testing.assert_close(feature_std(embeddings, ddof=0), embeddings.std(0, correction=0))
    streamed = spectrum_of(embeddings, 1, 17, 12)
    torch.testing.assert_close(streamed.feature_std(), embeddings.std(0))
    torch.testing.assert_close(streamed.feature_std(ddof=0), embeddings.std(0, correction=0))
    assert feature_std(embeddings.bfloat16()).dtype == torch.float32


def test_alignment_and_uniformity_are_the_losses():
    first, second = normal(9, 5), normal(9, 5, seed=1)
    assert alignment(first, second) == float(alignment_loss(first, second))
    assert alignment(first, second, alpha=1.0) == float(alignment_loss(first, second, alpha=1.0))
    assert alignment(first, 3 * first) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(first) == float(uniformity_loss(first))
    assert uniformity(first, t=0.5) == float(uniformity_loss(first, t=0.5))
    with pytest.raises(ValueError, match="at least two rows"):
        uniformity(first[:1])


@pytest.mark.parametrize("sizes", [(37,), (1,) * 37, (30, 7), (3, 20, 14)])
@pytest.mark.parametrize("dim", [5, 20, 60])
def test_batches_are_the_whole(dim, sizes):
    embeddings = normal(37, dim) @ torch.diag(torch.logspace(0, -3, dim, dtype=torch.float64)) + 1
    spectrum = spectrum_of(embeddings, *sizes)
    assert spectrum.num_rows == 37
    found, truth = spectrum.singular_values(), torch.linalg.svdvals(embeddings)
    torch.testing.assert_close(found, truth, rtol=0, atol=float(2e-8 * truth.max()))
    assert spectrum.rankme() == pytest.approx(rankme(embeddings))
    assert spectrum.participation_ratio() == pytest.approx(participation_ratio(embeddings))
    torch.testing.assert_close(spectrum.feature_std(), feature_std(embeddings))


@pytest.mark.parametrize(("first", "second"), [(4, 33), (33, 4), (15, 22), (0, 37), (37, 0)])
def test_merged_spectra_are_the_whole(first, second):
    embeddings = normal(37, 12)
    parts = [EmbeddingSpectrum(), EmbeddingSpectrum()]
    for part, rows in zip(parts, embeddings.split([first, second]), strict=True):
        if len(rows):
            part.update(rows)
    before = parts[1].rankme() if second else None
    parts[0].merge(parts[1])
    assert parts[0].num_rows == 37
    assert parts[0].rankme() == pytest.approx(rankme(embeddings))
    torch.testing.assert_close(parts[0].feature_std(), feature_std(embeddings))
    parts[0].update(embeddings)
    if before is not None:
        assert parts[1].rankme() == before


def test_what_is_kept_does_not_grow_with_the_rows():
    spectrum = EmbeddingSpectrum()
    for seed in range(40):
        spectrum.update(normal(5, 16, seed=seed))
        assert sum(map(len, spectrum._rows)) <= 16
    assert spectrum._gram.shape == (16, 16)
    few = spectrum_of(normal(7, 1000), 7)
    few.rankme()
    assert few._gram is None


def test_a_batch_may_be_written_again_and_gradients_are_not_kept():
    batch = normal(4, 6).requires_grad_()
    spectrum = spectrum_of(batch, 4)
    expected = rankme(batch)
    with torch.no_grad():
        batch.zero_()
    assert spectrum.rankme() == pytest.approx(expected)
    assert not spectrum.singular_values().requires_grad
    spectrum.reset()
    assert spectrum.num_rows == 0


def test_one_process_has_nothing_to_reduce():
    spectrum = spectrum_of(normal(4, 6), 4)
    before = spectrum.rankme()
    spectrum.all_reduce()
    assert spectrum.rankme() == before


BAD = [torch.ones(3), torch.ones(3, 2, dtype=torch.long), torch.ones(0, 2)]


@pytest.mark.parametrize(
    "call", [rankme, participation_ratio, feature_std, EmbeddingSpectrum().update]
)
def test_bad_embeddings(call):
    for bad in BAD:
        with pytest.raises(ValueError, match=r"embeddings must be a non-empty .* got torch\."):
            call(bad)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        call(torch.tensor([[1.0, math.nan]]))


def test_bad_options_and_order():
    spectrum = EmbeddingSpectrum()
    for call in (spectrum.rankme, spectrum.singular_values, spectrum.participation_ratio):
        with pytest.raises(ValueError, match="update must have taken in a batch"):
            call()
    spectrum.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"embeddings must have 3 features on cpu .* got 2"):
        spectrum.update(torch.ones(1, 2))
    with pytest.raises(ValueError, match="other must have 3 features"):
        spectrum.merge(spectrum_of(torch.ones(1, 2), 1))
    for call in (spectrum.feature_std, lambda: feature_std(torch.ones(1, 3))):
        with pytest.raises(ValueError, match="more rows than ddof=1, got 1"):
            call()
    with pytest.raises(ValueError, match="ddof must not be negative, got -1"):
        feature_std(torch.ones(1, 3), ddof=-1)
    for call in (spectrum.rankme, lambda eps: rankme(torch.ones(1, 3), eps=eps)):
        with pytest.raises(ValueError, match="eps must not be negative, got nan"):
            call(eps=math.nan)
