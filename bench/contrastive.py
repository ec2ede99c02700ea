"""Contrastive cases at the shapes people train with: NT-Xent, CLIP, and NT-Xent beyond eager.

N is the number of pairs, so NT-Xent has 2N rows; D features; temperature 0.1 for NT-Xent, a
learnable scale of 1 / 0.07 for CLIP.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast._registry import LOSSES, PRIMITIVES
from sslfast.bench import peers
from sslfast.bench.suite import Inputs, Shape, Workload

FAMILY = "contrastive"
TEMPERATURE = 0.1
PROBE_ROWS = 64
VIEWS = ("embeddings0", "embeddings1")


def workloads() -> tuple[Workload, ...]:
    return (_nt_xent(), _clip(), _nt_xent_beyond_eager())


def clip(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss from one pass over the similarities of (N, D) queries and keys."""
    # First, so that their gradients are formed last, when the kernel's memory is free again.
    positives = (queries * keys).sum(dim=1) * scale  # (N,)
    rows, columns = sslfast.similarity_logsumexp(queries, keys, scale=scale, columns=True)
    return (rows.mean() + columns.mean()) / 2 - positives.mean()


def eager_clip(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """The same from one N x N product, both cross-entropies reading it."""
    logits = scale * queries @ keys.T  # (N, N)
    labels = torch.arange(len(queries), device=queries.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


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


def _nt_xent() -> Workload:
    loss = LOSSES["NTXentLoss"]
    return Workload(
        name="NTXentLoss",
        family=FAMILY,
        subject=loss.name,
        shapes=tuple({"N": n, "D": 128} for n in (256, 512, 1024, 2048, 4096)),
        draw=_draw_pairs,
        fused=partial(loss.functional, temperature=TEMPERATURE),
        eager=partial(loss.eager, temperature=TEMPERATURE),
        leaves=VIEWS,
        peers={"lightly": lambda: peers.lightly_ntxent()(temperature=TEMPERATURE)},
    )


def _clip() -> Workload:
    return Workload(
        name="CLIP rows and columns",
        family=FAMILY,
        subject=PRIMITIVES["similarity_logsumexp"].name,
        shapes=({"N": 4096, "D": 512}, {"N": 1024, "D": 512}),
        draw=_draw_towers,
        fused=clip,
        eager=eager_clip,
        leaves=("queries", "keys", "scale"),
        peers={"open_clip formula": lambda: peers.open_clip_loss},
    )


def _nt_xent_beyond_eager() -> Workload:
    loss = LOSSES["NTXentLoss"]
    return Workload(
        name="NTXentLoss beyond eager",
        family=FAMILY,
        subject=loss.name,
        shapes=({"N": 32768, "D": 128},),
        draw=_draw_pairs,
        fused=partial(loss.functional, temperature=TEMPERATURE),
        eager=None,
        leaves=VIEWS,
        probe=_probe(),
        eager_bytes=_one_similarity_matrix,
    )


def _probe() -> Workload:
    return Workload(
        name="similarity_logsumexp probed",
        family=FAMILY,
        subject=PRIMITIVES["similarity_logsumexp"].name,
        shapes=({"N": 32768, "D": 128},),
        draw=_draw_probe,
        fused=partial(probed_logsumexp, scale=1 / TEMPERATURE, eager=False),
        eager=partial(probed_logsumexp, scale=1 / TEMPERATURE, eager=True),
        leaves=("queries",),
    )


def _one_similarity_matrix(shape: Shape) -> int:
    """The least that eager needs: the 2N x 2N similarities once in float32."""
    rows: int = 2 * shape["N"]
    return 4 * rows * rows


def _draw_pairs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Projections of two views, (N, D) each: a pair is closer than two images are."""
    image = torch.randn(shape["N"], shape["D"], generator=generator)
    noise = torch.randn(2, shape["N"], shape["D"], generator=generator)
    return dict(zip(VIEWS, image + noise, strict=True))


def _draw_towers(shape: Shape, generator: torch.Generator) -> Inputs:
    """Normalised leaves of two towers, (N, D) each, and the learnable scale of CLIP's start."""
    pairs = _draw_pairs(shape, generator)
    queries, keys = (F.normalize(view, dim=1) for view in pairs.values())
    return {"queries": queries, "keys": keys, "scale": torch.tensor(1 / 0.07)}


def _draw_probe(shape: Shape, generator: torch.Generator) -> Inputs:
    """The 2N normalised rows of NT-Xent, their image ids, and the rows that are probed."""
    pairs = _draw_pairs(shape, generator)
    queries = F.normalize(torch.cat(list(pairs.values())), dim=1)  # (2N, D)
    rows = torch.randperm(len(queries), generator=generator)[:PROBE_ROWS]
    return {"queries": queries, "rows": rows, "ids": torch.arange(shape["N"]).repeat(2)}
