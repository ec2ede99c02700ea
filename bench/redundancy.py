"""Redundancy-reduction cases at the shapes people train with, on a CPU and on a GPU.

N is the number of images, D the width of the projector, V the views that each of MMCR's networks
sees. The D x D matrix that everybody else builds has 268 MB at D = 8192: every call of such a
contestant takes seconds on a CPU, so a run of the family leaves some of them out at the largest
shapes, and its oracle goes through N x N matrices.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._registry import PRIMITIVES
from sslfast.bench import peers
from sslfast.bench.contestants import COMPILE
from sslfast.bench.formulas import redundancy as formulas
from sslfast.bench.suite import Inputs, Shape, Workload
from sslfast.evaluation import rankme

FAMILY = "redundancy"
VIEWS = ("embeddings0", "embeddings1")
NOISE = 0.5
AUTHORS, SOLO_LEARN = "authors' formula", "solo-learn formula"
LAMBDA = 5e-3  # of Barlow Twins
ORDER_SEED = 7  # of the images, whose batches are whitened
WHITENED = 256  # images of a batch that W-MSE whitens
SECONDS, SECONDS_BESIDE = 12.0, 5.0  # of the clock for a pass: the two main losses, the others

# Those of which most is claimed first: a run that is cut short has measured what matters.
SHAPES = (
    {"N": 256, "D": 8192},
    {"N": 1024, "D": 8192},
    {"N": 1024, "D": 2048},
    {"N": 4096, "D": 2048},
)
GPU_SHAPES = ({"N": 2048, "D": 8192}, {"N": 1024, "D": 8192}, {"N": 4096, "D": 2048})


def workloads() -> tuple[Workload, ...]:
    return (
        _barlow_twins(),
        _vicreg(),
        _cross_frobenius(),
        _covariance(),
        _standardize(),
        _tico(),
        _mmcr(),
        _wmse(),
        _rankme(),
    )


def _barlow_twins() -> Workload:
    options = {"lambda_param": LAMBDA}
    authors = partial(formulas.authors_barlow_twins, **options)
    solo_learn = partial(formulas.solo_learn_barlow_twins, **options)
    return Workload.of_loss(
        "BarlowTwinsLoss",
        shapes=SHAPES,
        gpu_shapes=GPU_SHAPES,
        draw=_draw_views,
        options=options,
        leaves=VIEWS,
        peers={
            "lightly": peers.lightly("barlow_twins_loss", "BarlowTwinsLoss", **options),
            AUTHORS: peers.Peer(lambda: authors),
            SOLO_LEARN: peers.Peer(lambda: solo_learn),
        },
        oracle=partial(formulas.barlow_twins_by_grams, **options),
        too_slow=_too_slow,
        seconds=SECONDS,
    )


def _vicreg() -> Workload:
    return Workload.of_loss(
        "VICRegLoss",
        shapes=SHAPES,
        gpu_shapes=GPU_SHAPES,
        draw=_draw_views,
        leaves=VIEWS,
        peers={
            "lightly": peers.lightly("vicreg_loss", "VICRegLoss"),
            AUTHORS: peers.Peer(lambda: formulas.authors_vicreg),
            SOLO_LEARN: peers.Peer(lambda: formulas.solo_learn_vicreg),
        },
        oracle=formulas.vicreg_by_grams,
        too_slow=_too_slow,
        seconds=SECONDS,
    )


def _cross_frobenius() -> Workload:
    """Both routes beside the chosen one, on either side of N = D."""
    return Workload.of_primitive(
        "cross_frobenius",
        family=FAMILY,
        shapes=tuple({"N": 1024, "D": dim} for dim in (512, 1024, 2048)),
        gpu_shapes=tuple({"N": 2048, "D": dim} for dim in (1024, 2048, 8192)),
        draw=_draw_standardized,
        options={"split_diagonal": True},
        leaves=("a", "b"),
        peers={route: _route(route) for route in ("gram", "direct")},
        seconds=SECONDS_BESIDE,
    )


def _covariance() -> Workload:
    return Workload.of_primitive(
        "cross_frobenius",
        name="cross_frobenius of one matrix",
        family=FAMILY,
        shapes=({"N": 1024, "D": 1024},),
        gpu_shapes=({"N": 2048, "D": 2048},),
        draw=lambda shape, generator: {"a": _draw_standardized(shape, generator)["a"]},
        options={"split_diagonal": True},
        leaves=("a",),
        peers={route: _route(route) for route in ("gram", "direct")},
        seconds=SECONDS_BESIDE,
    )


def _standardize() -> Workload:
    """Against torch's batch norm, which is what it replaces, in the place of its reference."""
    return Workload.of_primitive(
        "standardize",
        family=FAMILY,
        shapes=({"N": 1024, "D": 8192},),
        gpu_shapes=({"N": 4096, "D": 8192},),
        draw=lambda shape, generator: {"embeddings": _draw_views(shape, generator)[VIEWS[0]]},
        options={"eps": formulas.BATCH_NORM_EPS},
        eager=formulas.batch_norm,
        leaves=("embeddings",),
        seconds=SECONDS_BESIDE,
    )


def _tico() -> Workload:
    """One step with the covariance of earlier ones, which stays as it is."""
    return Workload.of_loss(
        "TiCoLoss",
        shapes=({"N": 1024, "D": 256},),
        gpu_shapes=({"N": 4096, "D": 256},),
        draw=_draw_tico,
        leaves=VIEWS,
        peers={"lightly": peers.lightly_tico()},
        counted=False,
        seconds=SECONDS_BESIDE,
    )


def _mmcr() -> Workload:
    """On a CPU only: it has no kernel of its own, and many small decompositions."""
    return Workload.of_loss(
        "MMCRLoss",
        shapes=({"N": 256, "V": 2, "D": 512},),
        gpu_shapes=(),
        draw=_draw_networks,
        leaves=("online", "momentum"),
        peers={"lightly": peers.lightly("mmcr_loss", "MMCRLoss")},
        seconds=SECONDS_BESIDE,
    )


def _wmse() -> Workload:
    """On a CPU only: it has no kernel of its own, and small factorisations."""
    return Workload.of_loss(
        "WMSELoss",
        shapes=({"N": 512, "D": 128},),
        gpu_shapes=(),
        draw=_draw_stacked,
        leaves=("embeddings",),
        peers={"lightly": peers.lightly_wmse(ORDER_SEED)},
        counted=False,
        seconds=SECONDS_BESIDE,
    )


def _rankme() -> Workload:
    """An evaluation: there is no gradient, and both passes are the same."""
    return Workload(
        name="rankme",
        family=FAMILY,
        subject="rankme",
        shapes=({"N": 4096, "D": 512},),
        gpu_shapes=(),
        draw=lambda shape, generator: {"embeddings": _draw_views(shape, generator)[VIEWS[0]]},
        fused=_effective_rank,
        eager=formulas.rankme_by_svd,
        leaves=(),
        seconds=SECONDS_BESIDE,
    )


def _effective_rank(embeddings: Tensor) -> Tensor:
    return torch.tensor(rankme(embeddings))


def _route(name: str) -> peers.Peer:
    """The primitive with its route forced, on the backend that is chosen for it."""
    function = partial(PRIMITIVES["cross_frobenius"].function, split_diagonal=True, route=name)
    return peers.Peer(lambda: function)


def _too_slow(shape: Shape) -> tuple[str, ...]:
    """Boolean masks of D x D take 5 to 15 s a call at D = 8192, the rest 3 to 10 s at N = 1024."""
    if shape["D"] < 8192:
        return ()
    return (SOLO_LEARN,) if shape["N"] < 1024 else (SOLO_LEARN, COMPILE)


def _draw_views(shape: Shape, generator: torch.Generator) -> Inputs:
    """Projections of two views, (N, D) each, with a mean per column.

    Deviations alternate between 0.56 and 1.68, either side of VICReg's hinge and none at it.
    """
    images, *noises = torch.randn(3, shape["N"], shape["D"], generator=generator)
    mean = torch.randn(shape["D"], generator=generator)  # (D,)
    scale = 0.5 + (torch.arange(shape["D"]) % 2)  # (D,)
    views = (mean + scale * (images + NOISE * noise) for noise in noises)
    return dict(zip(VIEWS, views, strict=True))


def _draw_standardized(shape: Shape, generator: torch.Generator) -> Inputs:
    """The views as Barlow Twins multiplies them, (N, D) each."""
    views = _draw_views(shape, generator).values()
    return dict(zip("ab", map(formulas.batch_norm, views), strict=True))


def _draw_tico(shape: Shape, generator: torch.Generator) -> Inputs:
    """Two views (N, D) and the mean of earlier covariances (D, D) of unit rows."""
    earlier = torch.randn(4 * shape["N"], shape["D"], generator=generator)
    rows = F.normalize(earlier, dim=1)
    return {**_draw_views(shape, generator), "covariance": rows.T @ rows / len(rows)}


def _draw_networks(shape: Shape, generator: torch.Generator) -> Inputs:
    """Unit rows (N, V, D) of both networks; those of an image are close."""
    images = torch.randn(shape["N"], 1, shape["D"], generator=generator)
    noises = torch.randn(2, shape["N"], shape["V"], shape["D"], generator=generator)
    networks = F.normalize(images + NOISE * noises, dim=3)
    return dict(zip(("online", "momentum"), networks, strict=True))


def _draw_stacked(shape: Shape, generator: torch.Generator) -> Inputs:
    """Two views stacked, (2 N, D), whitened in one batch where N does not split into usual ones.

    A covariance of as few rows as features or fewer is shrunk, since it cannot be inverted.
    """
    num_images = shape["N"]
    order = torch.Generator().manual_seed(ORDER_SEED)
    return {
        "embeddings": torch.cat(list(_draw_views(shape, generator).values())),
        "w_size": num_images if num_images % WHITENED else WHITENED,
        "eps": 0.0 if min(num_images, WHITENED) > shape["D"] else 0.1,
        "permutations": torch.randperm(num_images, generator=order)[None],
    }
