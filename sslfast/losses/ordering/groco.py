r"""GroCo, group ordering constraints (Shvetsova et al. 2023, "Learning by sorting", section 3).

Every view of an image is an anchor a. Its list holds the cosines to its K nearest negatives, which
are the same view of other images, and to its positives, the other full views of its own image:

    x = (K negatives, ascending; positives, ascending)        n values, n = K + number of positives

A relaxed sorting network gives P, and with it the share of each value that ends among the negatives
(the K lowest ranks) and among the positives. With o_i the share of x_i in its own group,

    p_i = sum_{j > K} P_ij,    m_i = sum_{j <= K} P_ij,    t_i = [i > K]
    loss = mean over anchors of  1/(2n) sum_i BCE(p_i, t_i) + BCE(m_i, 1 - t_i)
         = mean over anchors of  -1/n sum_i log o_i

since p_i + m_i = 1. Neither the B x B similarities nor P are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_count, check_distributed, check_floating, check_views
from sslfast._core.numerics import accumulator, mean
from sslfast._core.sorting.network import SortingRule
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, rank, world_size
from sslfast.losses._module import Objective
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.similarity.topk import similarity_topk
from sslfast.ops.sorting.checks import check_rule
from sslfast.ops.sorting.group_mass import sorting_group_mass
from sslfast.ops.sorting.network_reference import sort_and_permutation


def groco_loss(
    embeddings: Tensor | Sequence[Tensor],
    *,
    num_full_views: int | None = None,
    topk_neg: int = 10,
    stop_grad: bool = True,
    steepness: float = 1.0,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    gather_distributed: bool = False,
) -> Tensor:
    """GroCo of any number of views (Shvetsova et al. 2023, section 3).

    Args:
        embeddings: V views (B, D) of the same B images in a sequence, or as (B, V, D); full crops
            before small ones, normalised here; float16, bfloat16, float32 or float64.
            Similarities are taken in float32 or wider, under autocast too.
        num_full_views: the first so many views (at least 2) are positives of the anchors of their
            image; the others, small crops, are anchors only. ``None``: all V.
        topk_neg: K, the nearest negatives of an anchor in its list; at most B - 1 (W B - 1 with W
            ranks). A smaller batch is refused, never filled up.
        stop_grad: no gradient reaches an anchor as another's positive or negative.
        steepness: of the network, above 0. At 1 the loss stays away from 0 even for perfect order.
        network, relaxation: see `sslfast.relaxed_sort`.
        gather_distributed: the other ranks' rows are negatives too (the same B on every rank). The
            mean of the ranks' losses is the loss of the global batch, and averaging parameter
            gradients over ranks, as `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss, the mean over all anchors of all views, in float32 (float64 for float64
        embeddings).

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: shapes or devices differ, there are fewer than two full views, `topk_neg` is
            more than the negatives there are, an embedding is not finite (on CUDA values are read
            under ``SSLFAST_CHECK=1`` only), or an option is unknown or out of range.

    Differs from others: the authors' code, whose value and gradient these are with the defaults,
    has odd-even and Cauchy fixed, calls `num_full_views` `n_pos_augs`, lets -inf into the network
    where there are fewer than K negatives, and clamps logarithms at -100 (never reached by a
    Cauchy network of steepness 1). Without `stop_grad` its gather returns the gradient of this
    rank's own loss alone, 1/W of the terms that cross ranks.
    """
    views = _views(embeddings)
    full = _count_full(len(views), num_full_views)
    rule = check_rule(network, relaxation, steepness, 0.25)
    _check_negatives(views[0], topk_neg, gather_distributed)
    with torch.autocast(views[0].device.type, enabled=False):
        rows = [l2_normalize(view.to(accumulator(view.dtype))) for view in views]  # (B, D) each
        lists = [
            torch.cat(
                (
                    _nearest_negatives(anchors, topk_neg, stop_grad, gather_distributed).flip(1),
                    _positives(rows, view, full, stop_grad),
                ),
                1,
            )
            for view, anchors in enumerate(rows)
        ]  # (B, n) each: n = K + full - 1 of a full view, K + full of a small crop
        kinds = [lists[:full], lists[full:]] if full < len(lists) else [lists]
        terms = [_own_group(torch.cat(kind), topk_neg, rule) for kind in kinds]  # (views B,) each
    return mean(torch.cat(terms))


class GroCoLoss(Objective):
    """GroCo, group ordering constraints (Shvetsova et al. 2023, "Learning by sorting").

    Args:
        num_full_views: the first so many views are full crops, positives of their image's anchors;
            ``None``: all views.
        topk_neg: nearest negatives in an anchor's list.
        stop_grad: no gradient reaches an anchor as another's positive or negative.
        steepness, network, relaxation: of the relaxed sorting network.
        gather_distributed: the other ranks' rows are negatives too, see
            `sslfast.functional.groco_loss`.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: an option is unknown or out of range, or `gather_distributed` with a torch that
            has no `torch.distributed`.

    Differs from others: see `sslfast.functional.groco_loss`. The authors' module takes a dictionary
    of projections and also returns means of similarities for the log.
    """

    def __init__(
        self,
        num_full_views: int | None = None,
        topk_neg: int = 10,
        stop_grad: bool = True,
        steepness: float = 1.0,
        network: str = "odd_even",
        relaxation: str = "cauchy",
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if num_full_views is not None:
            check_count("num_full_views", num_full_views, 2)
        check_count("topk_neg", topk_neg, 1)
        check_rule(network, relaxation, steepness, 0.25)
        check_distributed(gather_distributed)
        self.num_full_views = num_full_views
        self.topk_neg = topk_neg
        self.stop_grad = stop_grad
        self.steepness = steepness
        self.network = network
        self.relaxation = relaxation
        self.gather_distributed = gather_distributed

    def forward(self, embeddings: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the 0-dim loss of V views (B, D), or of (B, V, D); full crops first.

        Raises:
            TypeError, ValueError: as `sslfast.functional.groco_loss`.
        """
        return groco_loss(
            embeddings,
            num_full_views=self.num_full_views,
            topk_neg=self.topk_neg,
            stop_grad=self.stop_grad,
            steepness=self.steepness,
            network=self.network,
            relaxation=self.relaxation,
            gather_distributed=self.gather_distributed,
        )


def _nearest_negatives(
    anchors: Tensor, topk_neg: int, stop_grad: bool, gather_distributed: bool
) -> Tensor:
    """(B, K) cosines to the nearest rows of other images, descending."""
    keys = anchors.detach() if stop_grad else anchors  # (B, D)
    own = torch.arange(len(anchors), device=anchors.device)  # (B,)
    if gather_distributed and world_size() > 1:
        keys = all_gather_rows(keys)  # (W B, D)
        own = own + rank() * len(anchors)
    images = torch.arange(len(keys), device=keys.device)
    values, _ = similarity_topk(anchors, keys, topk_neg, query_ids=own, key_ids=images)
    return values


def _positives(rows: Sequence[Tensor], view: int, full: int, stop_grad: bool) -> Tensor:
    """(B, P) cosines of a view to the other full views of the same image, ascending."""
    others = [rows[other] for other in range(full) if other != view]
    others = [other.detach() for other in others] if stop_grad else others
    cosines = [(rows[view] * other).sum(-1) for other in others]  # (B,) each
    return torch.stack(cosines, 1).sort(1).values


def _own_group(lists: Tensor, topk_neg: int, rule: SortingRule) -> Tensor:
    """-1/n sum_i log o_i of every list (..., n)."""
    sizes = (topk_neg, lists.shape[1] - topk_neg)
    return sorting_group_mass(lists, sizes, cross_entropy=True, **rule._asdict())


def _views(embeddings: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """V views (B, D), checked."""
    if isinstance(embeddings, Tensor):
        check_floating("embeddings", embeddings)
        if embeddings.ndim != 3 or embeddings.numel() == 0:
            raise ValueError(
                "embeddings must have shape (B, V, D) with no dimension empty, or be a sequence "
                f"of views (B, D), got shape {tuple(embeddings.shape)}"
            )
        return list(embeddings.unbind(1))
    if not isinstance(embeddings, Sequence):
        raise TypeError(
            f"embeddings must be a tensor or a sequence of them, got {type(embeddings).__name__}"
        )
    if not embeddings:
        raise ValueError("embeddings must hold at least two views, got none")
    check_views(**{f"embeddings[{index}]": view for index, view in enumerate(embeddings)})
    return list(embeddings)


def _count_full(num_views: int, num_full_views: int | None) -> int:
    if num_full_views is None:
        if num_views < 2:
            raise ValueError(f"embeddings must hold at least two views, got {num_views}")
        return num_views
    check_count("num_full_views", num_full_views, 2)
    if num_full_views > num_views:
        raise ValueError(
            f"num_full_views must be at most the {num_views} views there are, got {num_full_views}"
        )
    return num_full_views


def _check_negatives(view: Tensor, topk_neg: int, gather_distributed: bool) -> None:
    check_count("topk_neg", topk_neg, 1)
    num_images = len(view) * (world_size() if gather_distributed else 1)
    if topk_neg >= num_images:
        raise ValueError(
            f"topk_neg must be at most the {num_images - 1} negatives that {num_images} images "
            f"have, got {topk_neg}"
        )


def _groco_eager(
    embeddings: Tensor | Sequence[Tensor],
    *,
    num_full_views: int | None = None,
    topk_neg: int = 10,
    stop_grad: bool = True,
    steepness: float = 1.0,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    gather_distributed: bool = False,
) -> Tensor:
    """As published: all similarities, the whole permutation, two cross entropies. Oracle."""
    views = embeddings.unbind(1) if isinstance(embeddings, Tensor) else embeddings
    full = num_full_views or len(views)
    rule = SortingRule(network, relaxation, steepness, 0.25)
    rows = [F.normalize(view, dim=-1) for view in views]  # (B, D) each
    terms = []
    for view, anchors in enumerate(rows):
        index = torch.arange(len(anchors), device=anchors.device)
        keys = anchors.detach() if stop_grad else anchors
        keys = all_gather_rows(keys) if gather_distributed else keys  # (W B, D)
        start = rank() * len(anchors) if gather_distributed else 0
        similarity = (anchors @ keys.T).index_put(
            (index, index + start), anchors.new_tensor(-torch.inf)
        )  # (B, W B)
        negatives = similarity.topk(topk_neg, dim=1).values.flip(1)  # (B, K), ascending
        others = [rows[other] for other in range(full) if other != view]
        others = [other.detach() for other in others] if stop_grad else others
        positives = torch.stack([(anchors * other).sum(-1) for other in others], 1)  # (B, P)
        lists = torch.cat((negatives, positives.sort(1).values), 1)  # (B, n)
        shares = sort_and_permutation(lists, rule)[1]  # (B, n, n)
        in_negatives = shares[..., :topk_neg].sum(2).clamp(0, 1)  # (B, n)
        in_positives = shares[..., topk_neg:].sum(2).clamp(0, 1)  # (B, n)
        is_positive = torch.zeros_like(in_positives)
        is_positive[:, topk_neg:] = 1
        losses = F.binary_cross_entropy(in_positives, is_positive, reduction="none")
        losses = losses + F.binary_cross_entropy(in_negatives, 1 - is_positive, reduction="none")
        terms.append(losses.mean() / 2)
    return torch.stack(terms).mean()


def _views_of(
    name: str,
    size: Size,
    *shape: int,
    noise: float = 1.0,
    scale: float = 1.0,
    **options: Any,
) -> Sample:
    """Noisy views (B, V, D) of random embeddings, and the options."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        num_images, _, dim = shape
        content = torch.randn(num_images, 1, dim, generator=generator, dtype=torch.float64)
        views = content + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
        return {"embeddings": scale * views, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="GroCoLoss",
        family="ordering",
        module=GroCoLoss,
        functional=groco_loss,
        eager=_groco_eager,
        primitives=("l2_normalize", "similarity_topk", "sorting_group_mass"),
        paper="Shvetsova et al. 2023, arXiv:2301.02009, section 3",
        samples=(
            _views_of("two_images", "tiny", 2, 2, 3, topk_neg=1),
            _views_of("three_images", "tiny", 3, 3, 5, topk_neg=2),
            _views_of("ragged", "ragged", 37, 2, 33),
            _views_of("multi_crop", "ragged", 19, 5, 21, num_full_views=2, topk_neg=7),
            _views_of("shared_gradient", "ragged", 23, 3, 17, topk_neg=4, stop_grad=False),
            _views_of(
                "bitonic",
                "ragged",
                21,
                2,
                16,
                network="bitonic",
                relaxation="optimal",
                steepness=3.0,
            ),
            _views_of("gathered", "ragged", 12, 2, 11, topk_neg=5, gather_distributed=True),
            _views_of(
                "gathered_shared",
                "ragged",
                12,
                4,
                9,
                num_full_views=2,
                topk_neg=4,
                stop_grad=False,
                gather_distributed=True,
            ),
            _views_of("imagenet", "typical", 256, 2, 128),
            _views_of("two_and_six_crops", "typical", 64, 8, 128, num_full_views=2),
            _views_of("steep", "extreme", 25, 2, 40, steepness=30.0),
            _views_of("large", "extreme", 25, 2, 40, scale=1e3),
            _views_of("close_views", "extreme", 25, 2, 40, noise=0.05),
        ),
        amplification=lambda arguments: arguments.get("steepness", 1.0),
    )
)
