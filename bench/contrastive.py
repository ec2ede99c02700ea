"""Contrastive cases at the shapes people train with, on a CPU and on a GPU.

N is the number of images or pairs, so NT-Xent, DCL and SupCon have 2N rows; D features, K
negatives of a queue, C classes. The temperature is 0.1; CLIP has a learnable scale of 1 / 0.07,
the queue MoCo's 0.2.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from sslfast._registry import PRIMITIVES
from sslfast.bench import peers
from sslfast.bench.formulas import contrastive as formulas
from sslfast.bench.suite import Inputs, Shape, Workload

FAMILY = "contrastive"
TEMPERATURE, CLIP_TEMPERATURE, QUEUE_TEMPERATURE = 0.1, 0.07, 0.2
PROBE_ROWS = 64
VIEWS = ("embeddings0", "embeddings1")
TOWERS = ("image_features", "text_features", "logit_scale")

# Large shapes first: a run that is cut short has measured what matters.
NT_XENT_GPU = ({"N": 16384, "D": 128}, {"N": 4096, "D": 128}, {"N": 512, "D": 128})
QUEUE_GPU = ({"N": 4096, "K": 65536, "D": 128}, {"N": 512, "K": 65536, "D": 128})
SUPCON = ({"N": 2048, "C": 100, "D": 128}, {"N": 4096, "C": 1000, "D": 128})
SUPCON_GPU = ({"N": 4096, "C": 1000, "D": 128}, {"N": 2048, "C": 10, "D": 128})


def workloads() -> tuple[Workload, ...]:
    return (
        _nt_xent(),
        _clip(),
        _supcon(),
        _queue(),
        _dcl(),
        _nt_xent_beyond_eager(),
        _clip_beyond_eager(),
        _normalize(),
    )


def _nt_xent() -> Workload:
    return Workload.of_loss(
        "NTXentLoss",
        shapes=tuple({"N": n, "D": 128} for n in (256, 512, 1024, 2048, 4096)),
        gpu_shapes=NT_XENT_GPU,
        draw=_draw_pairs,
        options={"temperature": TEMPERATURE},
        leaves=VIEWS,
        peers={"lightly": peers.lightly("ntx_ent_loss", "NTXentLoss", temperature=TEMPERATURE)},
    )


def _clip() -> Workload:
    return Workload.of_loss(
        "CLIPLoss",
        shapes=({"N": 4096, "D": 512}, {"N": 1024, "D": 512}),
        gpu_shapes=({"N": 32768, "D": 512}, {"N": 4096, "D": 512}),
        draw=_draw_towers,
        leaves=TOWERS,
        peers={
            "open_clip formula": peers.Peer(lambda: formulas.open_clip_loss),
            "Inf-CL": peers.inf_cl(),
            "memeff": peers.memeff(CLIP_TEMPERATURE),
        },
    )


def _supcon() -> Workload:
    # With equal temperatures the factor between them is 1.
    options = {"temperature": TEMPERATURE, "base_temperature": TEMPERATURE}
    formula = partial(formulas.supcontrast_loss, temperature=TEMPERATURE)
    return Workload.of_loss(
        "SupConLoss",
        shapes=SUPCON,
        gpu_shapes=SUPCON_GPU,
        draw=_draw_classes,
        options=options,
        leaves=("features",),
        peers={"SupContrast formula": peers.Peer(lambda: formula)},
    )


def _queue() -> Workload:
    """MoCo's step: the keys come from another encoder, so that only the queries learn."""
    return Workload.of_loss(
        "InfoNCELoss",
        name="InfoNCELoss with a queue",
        shapes=({"N": 512, "K": 65536, "D": 128},),
        gpu_shapes=QUEUE_GPU,
        draw=_draw_queue,
        options={"temperature": QUEUE_TEMPERATURE},
        leaves=("queries",),
    )


def _dcl() -> Workload:
    return Workload.of_loss(
        "DCLLoss",
        shapes=({"N": 4096, "D": 128},),
        draw=_draw_pairs,
        options={"temperature": TEMPERATURE},
        leaves=VIEWS,
        peers={"lightly": peers.lightly("dcl_loss", "DCLLoss", temperature=TEMPERATURE)},
    )


def _nt_xent_beyond_eager() -> Workload:
    return Workload.of_loss(
        "NTXentLoss",
        name="NTXentLoss beyond eager",
        shapes=({"N": 32768, "D": 128},),
        gpu_shapes=({"N": 131072, "D": 128},),
        draw=_draw_pairs,
        options={"temperature": TEMPERATURE},
        eager=None,
        leaves=VIEWS,
        probe=_probe(),
        chunked=partial(formulas.chunked_ntxent, temperature=TEMPERATURE),
        eager_bytes=lambda shape: _one_matrix(2 * shape["N"]),
    )


def _clip_beyond_eager() -> Workload:
    """On a GPU only: its 3.5e13 operations take a CPU minutes."""
    return Workload.of_loss(
        "CLIPLoss",
        name="CLIPLoss beyond eager",
        shapes=(),
        gpu_shapes=({"N": 65536, "D": 1024},),
        draw=_draw_towers,
        eager=None,
        leaves=TOWERS,
        peers={"Inf-CL": peers.inf_cl(), "memeff": peers.memeff(CLIP_TEMPERATURE)},
        chunked=formulas.chunked_clip,
        # The logits, and what each of the two cross-entropies keeps of them.
        eager_bytes=lambda shape: 3 * _one_matrix(shape["N"]),
    )


def _normalize() -> Workload:
    """The first step of the family; on a GPU only, where it is a kernel of its own: traffic."""
    return Workload.of_primitive(
        "l2_normalize",
        family=FAMILY,
        shapes=(),
        gpu_shapes=({"N": 65536, "D": 512},),
        draw=lambda shape, generator: {
            "embeddings": torch.randn(shape["N"], shape["D"], generator=generator)
        },
        leaves=("embeddings",),
        peers={"F.normalize": peers.Peer(lambda: F.normalize)},
    )


def _probe() -> Workload:
    return Workload(
        name="similarity_logsumexp probed",
        family=FAMILY,
        subject=PRIMITIVES["similarity_logsumexp"].name,
        shapes=({"N": 32768, "D": 128},),
        draw=_draw_probe,
        fused=partial(formulas.probed_logsumexp, scale=1 / TEMPERATURE, eager=False),
        eager=partial(formulas.probed_logsumexp, scale=1 / TEMPERATURE, eager=True),
        leaves=("queries",),
    )


def _one_matrix(num_rows: int) -> int:
    """Bytes of the similarities of all rows, once, in float32."""
    return 4 * num_rows * num_rows


def _draw_pairs(shape: Shape, generator: torch.Generator) -> Inputs:
    """Projections of two views, (N, D) each: a pair is closer than two images are."""
    image = torch.randn(shape["N"], shape["D"], generator=generator)
    noise = torch.randn(2, shape["N"], shape["D"], generator=generator)
    return dict(zip(VIEWS, image + noise, strict=True))


def _draw_towers(shape: Shape, generator: torch.Generator) -> Inputs:
    """Normalised leaves of two towers, (N, D) each, and the learnable scale of CLIP's start."""
    pairs = _draw_pairs(shape, generator)
    rows = (F.normalize(view, dim=1) for view in pairs.values())
    return dict(zip(TOWERS, (*rows, torch.tensor(1 / CLIP_TEMPERATURE)), strict=True))


def _draw_classes(shape: Shape, generator: torch.Generator) -> Inputs:
    """Normalised rows (N, 2, D) of two views, closer within a class; N labels of C classes."""
    labels = torch.randint(shape["C"], (shape["N"],), generator=generator)
    centers = torch.randn(shape["C"], 1, shape["D"], generator=generator)
    noise = torch.randn(shape["N"], 2, shape["D"], generator=generator)
    return {"features": F.normalize(centers[labels] + 2 * noise, dim=2), "labels": labels}


def _draw_queue(shape: Shape, generator: torch.Generator) -> Inputs:
    """Queries and their keys (N, D) of two views, and the unit rows (K, D) of a queue."""
    queries, keys = _draw_pairs(shape, generator).values()
    negatives = torch.randn(shape["K"], shape["D"], generator=generator)
    return {"queries": queries, "keys": keys, "negatives": F.normalize(negatives, dim=1)}


def _draw_probe(shape: Shape, generator: torch.Generator) -> Inputs:
    """The 2N normalised rows of NT-Xent, their image ids, and the rows that are probed."""
    pairs = _draw_pairs(shape, generator)
    queries = F.normalize(torch.cat(list(pairs.values())), dim=1)  # (2N, D)
    rows = torch.randperm(len(queries), generator=generator)[:PROBE_ROWS]
    return {"queries": queries, "rows": rows, "ids": torch.arange(shape["N"]).repeat(2)}
