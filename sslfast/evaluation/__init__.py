"""How good embeddings are: kNN accuracy, rank and other signs of collapse, supervised ceiling."""

from __future__ import annotations

from sslfast.evaluation.diagnostics import (
    alignment,
    feature_std,
    participation_ratio,
    uniformity,
)
from sslfast.evaluation.features import embed
from sslfast.evaluation.knn import knn_accuracy, knn_predict
from sslfast.evaluation.rankme import rankme
from sslfast.evaluation.spectrum import EmbeddingSpectrum
from sslfast.evaluation.supervised import train_supervised

__all__ = [
    "EmbeddingSpectrum",
    "alignment",
    "embed",
    "feature_std",
    "knn_accuracy",
    "knn_predict",
    "participation_ratio",
    "rankme",
    "train_supervised",
    "uniformity",
]
