"""RankMe: how many directions the embeddings really use."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast.evaluation._gram import (
    check_embeddings,
    check_eps,
    effective_rank,
    singular_values,
    smaller_gram,
)


@torch.no_grad()
def rankme(embeddings: Tensor, *, eps: float = 1e-7) -> float:
    """Effective rank exp(-sum_k p_k log p_k), p_k = sigma_k / sum(sigma) + eps.

    Garrido et al. 2023 (RankMe), equations 1 and 2, eps = 1e-7 for float32 as there. Singular
    values of the embeddings as they are: neither centred nor normalised. Between 1 (collapse) and
    min(N, D), up to eps: a rank of 1 reads 1.003 at D = 2048 and 1.013 at D = 8192. All-zero
    embeddings give 0, the formula's limit of no direction. `EmbeddingSpectrum` has it for batches
    that come one after another, and for several ranks.

    The singular values come from the N x N or D x D Gram matrix, whichever is smaller, in float64:
    they are resolved down to about 1e-8 of the largest, below eps.

    Args:
        embeddings: ``(N, D)``; the spectrum is taken in float64.
        eps: added to every share; at least 0.

    Raises:
        ValueError: not a non-empty, finite, floating-point matrix, or eps < 0.

    Differs from others: stable-pretraining adds 1e-5, which reads a rank of 1 as 1.27 at D = 2048
    and as 2.57 at D = 8192, and decomposes the embeddings themselves.
    """
    check_embeddings("embeddings", embeddings)
    check_eps(eps)
    return effective_rank(singular_values(smaller_gram(embeddings)), eps)
