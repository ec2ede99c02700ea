"""How good embeddings are: kNN accuracy, effective rank, the supervised ceiling."""

from __future__ import annotations

from sslfast.evaluation.features import embed
from sslfast.evaluation.knn import knn_predict, knn_top1
from sslfast.evaluation.rankme import rankme
from sslfast.evaluation.supervised import train_supervised

__all__ = ["embed", "knn_predict", "knn_top1", "rankme", "train_supervised"]
