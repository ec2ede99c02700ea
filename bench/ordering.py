"""Ordering cases at the shapes people train with, on a CPU and on a GPU.

B is the number of lists and n their length, or B the number of images that a loss ranks against
each other and m how many share a label; N queries, M keys, D features. GroCo sorts lists of 11 or
13 similarities by an odd-even network of steepness 1, NeCo lists of 49 by a bitonic one of 100,
both with Cauchy's relaxation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast._core.sorting.network import layers_of
from sslfast.bench import peers
from sslfast.bench.contestants import COMPILE
from sslfast.bench.formulas import ordering as formulas
from sslfast.bench.suite import Inputs, Shape, Workload

FAMILY = "ordering"
DIFFSORT, SWEEPS, CHUNKS = "diffsort", "sweeps in torch", "matmul + topk in chunks"
GROCO, NECO, SORT = 1.0, 100.0, 10.0  # steepness: theirs, and that of diffsort
METRIC_LEARNING = "pytorch-metric-learning"
NEIGHBORS, NEGATIVES = 20, 10  # of kNN evaluation, and of an anchor of GroCo
TEMPERATURE = 0.01  # of Smooth-AP
MOST_COMPILED = 16  # layers of a network
LEVELS = tuple(0.4 + 0.035 * step for step in range(16))  # how much of an image is its class's
SECONDS, SECONDS_BESIDE = 12.0, 5.0  # of the clock for a pass: what is claimed, the others


def workloads() -> tuple[Workload, ...]:
    return (
        _groco_lists(),
        _neco_lists(),
        _long_lists(),
        *map(_relaxed_sort, ("odd_even", "bitonic")),
        _neighbors(),
        _groco(),
        _neco(),
        _smooth_ap(),
        _soft_rank(),
    )


def _groco_lists() -> Workload:
    """GroCo's sort and loss of given similarities: its hardest negatives and its positive."""
    return _two_groups(
        "odd_even",
        name="GroCo sort + loss",
        shapes=({"B": 1024, "n": 11}, {"B": 1024, "n": 13}),
        gpu_shapes=({"B": 1024, "n": 11}, {"B": 1024, "n": 13}, {"B": 16384, "n": 11}),
        seconds=SECONDS,
    )


def _long_lists() -> Workload:
    """The same of a longer list, on the network with fewer comparators."""
    return _two_groups(
        "bitonic",
        name="two groups of a long list",
        shapes=({"B": 64, "n": 128},),
        gpu_shapes=({"B": 1024, "n": 128},),
        seconds=SECONDS_BESIDE,
    )


def _two_groups(network: str, **given: Any) -> Workload:
    rule = {"network": network, "steepness": GROCO}
    loss = formulas.groupwise_cross_entropy
    sweeps = partial(formulas.swept_cross_entropy, **rule)
    return Workload.of_primitive(
        "sorting_group_mass",
        family=FAMILY,
        draw=_draw_lists,
        options={"cross_entropy": True, **rule},
        eager=partial(loss, sort=partial(formulas.dense_sort, **rule)),
        leaves=("values",),
        peers={
            SWEEPS: peers.Peer(lambda: sweeps),
            DIFFSORT: peers.diffsort(**rule, then=loss),
        },
        too_slow=partial(_compiles_long, network),
        **given,
    )


def _neco_lists() -> Workload:
    """NeCo's loss of patches' similarities to reference patches, a teacher's as the target."""
    rule = {"network": "bitonic", "steepness": NECO}
    loss = formulas.permutation_cross_entropy
    return Workload.of_primitive(
        "sorting_group_mass",
        name="NeCo sort + loss",
        family=FAMILY,
        shapes=({"B": 512, "n": 49}, {"B": 3136, "n": 49}),
        gpu_shapes=({"B": 3136, "n": 49},),
        draw=_draw_patches,
        options={"cross_entropy": True, **rule},
        eager=partial(loss, sort=partial(formulas.dense_sort, **rule)),
        leaves=("values",),
        peers={DIFFSORT: peers.diffsort(**rule, then=loss)},
        too_slow=partial(_compiles_long, "bitonic"),
        seconds=SECONDS,
    )


def _relaxed_sort(network: str) -> Workload:
    """Sorted values and the whole permutation, which is the output here."""
    rule = {"network": network, "steepness": SORT}
    return Workload.of_primitive(
        "relaxed_sort",
        name=f"relaxed_sort {network}",
        family=FAMILY,
        shapes=({"B": 256, "n": 32}, {"B": 128, "n": 64}),
        gpu_shapes=({"B": 4096, "n": 32}, {"B": 1024, "n": 64}),
        draw=_draw_values,
        options={"permutation": True, **rule},
        eager=partial(formulas.dense_sort, **rule),
        leaves=("values",),
        peers={DIFFSORT: peers.diffsort(**rule)},
        too_slow=partial(_compiles_long, network),
        seconds=SECONDS_BESIDE,
    )


def _neighbors() -> Workload:
    """kNN evaluation: no gradient, and both passes are the same. Indices are not compared."""
    return Workload.of_primitive(
        "similarity_topk",
        name=f"kNN top-{NEIGHBORS}",
        family=FAMILY,
        shapes=({"N": 4096, "M": 65536, "D": 256},),
        # ImageNet's training images, as a ViT-S has them.
        gpu_shapes=({"N": 4096, "M": 65536, "D": 256}, {"N": 4096, "M": 1281167, "D": 384}),
        draw=_draw_neighbors,
        fused=_nearest,
        eager=formulas.top_similarities,
        leaves=(),
        peers={CHUNKS: peers.Peer(lambda: formulas.top_similarities_in_chunks)},
        oracle=formulas.top_similarities_in_chunks,
        seconds=SECONDS,
    )


def _groco() -> Workload:
    """A step's loss of two views, similarities included."""
    rule = {"network": "odd_even", "steepness": GROCO}
    loss = formulas.authors_groco
    return Workload.of_loss(
        "GroCoLoss",
        shapes=({"B": 1024, "V": 2, "D": 2048},),
        draw=_draw_views,
        eager=partial(loss, sort=partial(formulas.dense_sort, **rule)),
        leaves=("embeddings",),
        peers={DIFFSORT: peers.diffsort(**rule, then=loss)},
        seconds=SECONDS,
    )


def _neco() -> Workload:
    """One pair of crops: the patches that both show, of a ViT-S."""
    rule = {"network": "bitonic", "steepness": NECO}
    loss = formulas.authors_neco
    return Workload.of_loss(
        "NeCoLoss",
        shapes=({"B": 16, "n": 49, "D": 384},),
        gpu_shapes=({"B": 64, "n": 49, "D": 384},),
        draw=_draw_crops,
        eager=partial(loss, sort=partial(formulas.dense_sort, **rule)),
        leaves=("student",),
        peers={DIFFSORT: peers.diffsort(**rule, then=loss)},
        too_slow=partial(_compiles_long, "bitonic"),
        seconds=SECONDS,
    )


def _smooth_ap() -> Workload:
    """The batch of its paper: as many images of a class as the recall is measured with."""
    return Workload.of_loss(
        "SmoothAPLoss",
        shapes=({"B": 384, "m": 4, "D": 512},),
        gpu_shapes=({"B": 384, "m": 4, "D": 512}, {"B": 1024, "m": 4, "D": 512}),
        draw=_draw_classes,
        options={"temperature": TEMPERATURE},
        leaves=("embeddings",),
        peers={METRIC_LEARNING: peers.metric_learning_smooth_ap(TEMPERATURE)},
        seconds=SECONDS,
    )


def _soft_rank() -> Workload:
    """Ranks by isotonic regression; the reference compares all n^2 blocks of a list."""
    options = {"regularization": "l2", "regularization_strength": 0.05}
    return Workload.of_primitive(
        "isotonic_rank",
        name="soft rank",
        family=FAMILY,
        shapes=({"B": 1024, "n": 100}, {"B": 64, "n": 512}),
        gpu_shapes=({"B": 4096, "n": 100}, {"B": 1024, "n": 512}),
        draw=_draw_values,
        options=options,
        leaves=("values",),
        peers={"torchsort": peers.torchsort("soft_rank", **options)},
        seconds=SECONDS_BESIDE,
    )


def _nearest(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    return sslfast.similarity_topk(queries, keys, k)[0]


def _compiles_long(network: str, shape: Shape) -> tuple[str, ...]:
    """A network of many layers is compiled for minutes."""
    return (COMPILE,) if len(layers_of(network, shape["n"])) > MOST_COMPILED else ()


def _draw_lists(shape: Shape, generator: torch.Generator) -> Inputs:
    """Lists (B, n) as GroCo orders them: the hardest negatives ascending, then the positive."""
    num_lists, n = shape["B"], shape["n"]
    noise = torch.randn(num_lists, n, generator=generator)
    negatives = (0.3 + 0.1 * noise[:, 1:]).sort(1).values  # (B, n - 1)
    positive = 0.6 + 0.2 * noise[:, :1]  # (B, 1)
    values = torch.cat([negatives, positive], 1).clamp(-1, 1)
    return {"values": values, "group_sizes": (n - 1, 1)}


def _draw_values(shape: Shape, generator: torch.Generator) -> Inputs:
    return {"values": torch.randn(shape["B"], shape["n"], generator=generator)}


def _draw_patches(shape: Shape, generator: torch.Generator) -> Inputs:
    """Cosines (B, n) of a patch to n reference patches, the student's close to the teacher's."""
    teacher, noise = torch.randn(2, shape["B"], shape["n"], generator=generator)
    values = (0.2 * teacher + 0.02 * noise).clamp(-1, 1)
    return {
        "values": values,
        "group_sizes": (1,) * shape["n"],
        "teacher": (0.2 * teacher).clamp(-1, 1),
    }


def _draw_views(shape: Shape, generator: torch.Generator) -> Inputs:
    """Unit projections (B, V, D) of V views, and how many negatives an anchor has.

    Images of a class share a direction, each as far as its level says; all other directions are
    orthogonal where D allows it. The cosines of an anchor are then 0.01 apart or more, in any
    precision: its negatives, and with them its gradient, do not hang on a rounding.
    """
    num_images, dim = shape["B"], shape["D"]
    num_classes = -(-num_images // len(LEVELS))
    count = num_classes + num_images
    directions = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    if count <= dim:
        directions = torch.linalg.qr(directions).Q
    shared, own = F.normalize(directions.T, dim=1).split([num_classes, num_images])
    image = torch.arange(num_images)
    views = []
    for view in range(shape["V"]):
        level = torch.tensor(LEVELS).roll(5 * view)[image // num_classes, None]  # (B, 1)
        views.append(level * shared[image % num_classes] + (1 - level**2).sqrt() * own)
    embeddings = torch.stack(views, 1).float()
    return {"embeddings": embeddings, "topk_neg": min(NEGATIVES, num_images - 1)}


def _draw_crops(shape: Shape, generator: torch.Generator) -> Inputs:
    """Features (B, n, D) of n patches by student and teacher, and of as many references."""
    sizes = shape["B"], shape["n"], shape["D"]
    patches, noise, references = torch.randn(3, *sizes, generator=generator)
    return {"student": patches + 0.2 * noise, "teacher": patches, "references": references}


def _draw_classes(shape: Shape, generator: torch.Generator) -> Inputs:
    """Rows (B, D) in blocks of m images of a class, and their labels."""
    labels = torch.arange(shape["B"]) // shape["m"]  # (B,)
    centers = torch.randn(shape["B"], shape["D"], generator=generator)
    noise = torch.randn(shape["B"], shape["D"], generator=generator)
    return {"embeddings": centers[labels] + 2 * noise, "labels": labels}


def _draw_neighbors(shape: Shape, generator: torch.Generator) -> Inputs:
    """Unit rows of images to classify (N, D) and of the training images (M, D)."""
    queries, keys = (torch.randn(shape[s], shape["D"], generator=generator) for s in "NM")
    return {
        "queries": F.normalize(queries, dim=1),
        "keys": F.normalize(keys, dim=1),
        "k": min(NEIGHBORS, shape["M"]),
    }
