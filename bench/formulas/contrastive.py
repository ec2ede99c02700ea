"""Contrastive losses as others write them, in plain torch: peers, probes and chunked oracles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sslfast

CHUNK = 2048  # rows whose similarities exist at a time


def open_clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """open_clip's ``ClipLoss`` on one process: one product per direction, two cross-entropies."""
    per_image = logit_scale * image_features @ text_features.T  # (N, N)
    per_text = logit_scale * text_features @ image_features.T  # (N, N)
    labels = torch.arange(len(per_image), device=per_image.device)
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def supcontrast_loss(features: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """SupCon as it is commonly run: exponentials, both masks and log-probabilities as matrices.

    Equation 2 of Khosla et al. 2020 with L_out; the factor temperature / base_temperature is 1.
    """
    num_views = features.shape[1]
    rows = torch.cat(features.unbind(1))  # (V B, D)
    logits = rows @ rows.T / temperature  # (V B, V B)
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = 1 - torch.eye(len(rows), dtype=logits.dtype, device=rows.device)  # (V B, V B)
    same = (labels[:, None] == labels[None, :]).to(logits.dtype)  # (B, B)
    positives = same.repeat(num_views, num_views) * others  # (V B, V B)
    log_sum = (logits.exp() * others).sum(1, keepdim=True).log()  # (V B, 1)
    log_probability = logits - log_sum  # (V B, V B)
    return -((positives * log_probability).sum(1) / positives.sum(1)).mean()


def chunked_clip(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss a block of images at a time, the block computed again in the backward pass."""

    def block(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        logits = _wide(scale * images @ texts.T)  # (C, N)
        return logits.logsumexp(1), logits.logsumexp(0)

    sums = [
        _again(block, image_features[part], text_features, logit_scale)
        for part in _parts(len(image_features))
    ]
    rows = torch.cat([row for row, _ in sums])  # (N,)
    columns = torch.stack([column for _, column in sums]).logsumexp(0)  # (N,)
    positives = logit_scale * (image_features * text_features).sum(1)  # (N,)
    return ((rows + columns) / 2 - positives).mean()


def chunked_ntxent(embeddings0: Tensor, embeddings1: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent a block of rows at a time, the block computed again in the backward pass."""
    rows = F.normalize(torch.cat((embeddings0, embeddings1)))  # (2N, D)
    index = torch.arange(len(rows), device=rows.device)

    def block(queries: Tensor, keys: Tensor, own: Tensor) -> Tensor:
        logits = _wide(queries @ keys.T / temperature)  # (C, 2N)
        return logits.masked_fill(own[:, None] == index, -torch.inf).logsumexp(1)

    lse = torch.cat([_again(block, rows[part], rows, index[part]) for part in _parts(len(rows))])
    positives = (rows * rows.roll(len(embeddings0), 0)).sum(1) / temperature  # (2N,)
    return (lse - positives).mean()


def probed_logsumexp(
    queries: Tensor, *, rows: Tensor, ids: Tensor, scale: float, eager: bool
) -> Tensor:
    """Log-sum-exp of the probed rows (P,) of the symmetric form.

    The fused primitive computes every row of the (N, D) queries and hands out the probed ones;
    eager builds just those, P x N. A gradient reaches every row either way, so that a problem
    whose N x N matrix fits nowhere is still checked at its full size.
    """
    if not eager:
        return sslfast.similarity_logsumexp(queries, scale=scale, query_ids=ids)[rows]
    similarities = scale * queries[rows] @ queries.T  # (P, N)
    excluded = ids[rows, None] == ids[None, :]  # (P, N)
    return similarities.masked_fill(excluded, float("-inf")).logsumexp(dim=1)


def _parts(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, num_rows, CHUNK))


def _again(block: Callable[..., Any], *arguments: Tensor) -> Any:
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)


def _wide(logits: Tensor) -> Tensor:
    """Float32 at least, as autocast has it for a cross-entropy."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
