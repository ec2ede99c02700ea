"""Whitening MSE (Ermolov et al. 2021, section 3).

The embeddings of S views of N images are whitened in sub-batches of images drawn at random, each
view of a sub-batch by its own covariance; with z the whitened rows scaled to unit length,

    loss = 1/N sum_n mean_{i < j} |z_ni - z_nj|^2 = 2 - 2/N sum_n mean_{i < j} <z_ni, z_nj>

averaged over draws. All sub-batches of a draw are whitened together; all pairs of views come from
one sum, sum_{i < j} <z_i, z_j> = (|sum_i z_i|^2 - sum_i |z_i|^2) / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.checks import check_count, check_rows
from sslfast._core.numerics import accumulator
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.losses.redundancy._sub_batches import (
    check_split,
    mean_over_pairs,
    norm_mse_loss,
    orders,
    whitened_batches,
)
from sslfast.losses.redundancy.whitening import Whitening2d

PairLoss = Callable[[Tensor, Tensor], Tensor]


def wmse_loss(
    embeddings: Tensor,
    *,
    num_samples: int = 2,
    w_size: int = 256,
    w_iter: int = 1,
    eps: float = 0.0,
    permutations: Tensor | None = None,
) -> Tensor:
    """W-MSE of S views stacked on each other (Ermolov et al. 2021, section 3).

    Args:
        embeddings: (S N, D): the N rows of the first view, then those of the second, and so on;
            float16, bfloat16, float32 or float64.
        num_samples: views S of each image, at least 2.
        w_size: images of a sub-batch; above D, for stability at least 2 D; N is a multiple of it.
        w_iter: draws of sub-batches to average over, at least 1.
        eps: shrinks each covariance towards the identity; at least 0, below 1.
        permutations: (w_iter, N) orders of the images, from which sub-batches are cut; ``None``:
            drawn from torch's global generator, as lightly does.

    Returns:
        0-dim loss between 0 and 4, in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: `embeddings` is not a floating tensor, `permutations` holds no integers, or an
            option is not a number.
        ValueError: a shape or option does not fit, or a sub-batch has no positive definite
            covariance (constant or repeated features, too few rows) while eps is 0; on CUDA that
            one is told under ``SSLFAST_CHECK=1`` only, and the loss is NaN.

    Differs from others: htdt/self-supervised and lightly whiten one sub-batch after the other and
    form the inverse factor; the value is the same. htdt's default `w_size` is 128. solo-learn
    detaches the second view in its one-sided path. Half-precision embeddings, which none of them
    factorises, are whitened in float32.
    """
    check_rows("embeddings", embeddings, "(S N, D)")
    num_images = check_split(embeddings, num_samples, w_size, w_iter, eps)
    losses = [
        mean_over_pairs(whitened_batches(embeddings, order, num_samples, w_size, eps).rows)
        for order in orders(permutations, w_iter, num_images, embeddings.device)
    ]
    return torch.stack(losses).mean()


class WMSELoss(nn.Module):
    """W-MSE, a drop-in for `lightly.loss.WMSELoss` 1.5 (Ermolov et al. 2021, section 3).

    Args:
        embedding_dim: D.
        momentum: share of a sub-batch in the running statistics of `whitening`.
        eps: shrinks each covariance towards the identity; at least 0, below 1.
        track_running_stats: keep running statistics, and whiten by them in evaluation mode.
        w_iter: draws of sub-batches to average over.
        w_size: images of a sub-batch, at least 2 D.
        loss_fn: of two views' whitened rows (N, D), for every pair of views. With the default all
            pairs are computed at once.
        num_samples: views S of each image, at least 2.

    Raises:
        TypeError: an option is not a number.
        ValueError: `w_size` is below 2 D, or an option is out of range.

    Differs from lightly: rows that do not split evenly raise ValueError instead of RuntimeError.
    The images are drawn as there: under one seed both whiten the same sub-batches.
    """

    def __init__(
        self,
        embedding_dim: int = 128,
        momentum: float = 0.01,
        eps: float = 0.0,
        track_running_stats: bool = True,
        w_iter: int = 1,
        w_size: int = 256,
        loss_fn: PairLoss = norm_mse_loss,
        num_samples: int = 2,
    ) -> None:
        super().__init__()
        self.whitening = Whitening2d(
            num_features=embedding_dim,
            momentum=momentum,
            track_running_stats=track_running_stats,
            eps=eps,
        )
        check_count("w_iter", w_iter, 1)
        check_count("num_samples", num_samples, 2)
        check_count("w_size", w_size, 2)
        if w_size < 2 * embedding_dim:
            raise ValueError(
                "w_size must be at least twice embedding_dim, for a well-conditioned covariance: "
                f"got {w_size} for {embedding_dim}"
            )
        self.w_iter = w_iter
        self.w_size = w_size
        self.loss_f = loss_fn
        self.num_samples = num_samples
        self.num_pairs = num_samples * (num_samples - 1) // 2

    def forward(self, input: Tensor) -> Tensor:
        """Return the 0-dim loss of S views (S N, D) stacked on each other.

        Raises:
            TypeError, ValueError: as `sslfast.functional.wmse_loss`; or D is not `embedding_dim`.
        """
        check_rows("input", input, "(S N, D)")
        layer = self.whitening
        if input.shape[1] != layer.num_features:
            raise ValueError(
                f"input must have {layer.num_features} features, got shape {tuple(input.shape)}"
            )
        num_images = check_split(
            input, self.num_samples, self.w_size, self.w_iter, layer.eps, name="input"
        )
        if layer.uses_running_stats:
            rows = layer.whiten_by_running_stats(input)
            return self._pairs(rows.view(self.num_samples, num_images, -1))
        losses = []
        for order in orders(None, self.w_iter, num_images, input.device):
            batches = whitened_batches(input, order, self.num_samples, self.w_size, layer.eps)
            # Sub-batch after sub-batch, and in each view after view, as they are whitened there.
            means, covariances = (
                statistic.transpose(0, 1).flatten(0, 1) for statistic in batches[1:]
            )
            layer.track(means, covariances)
            rows = batches.rows.flatten(1, 2)  # (S, N, D)
            losses.append(self._pairs(rows if self._any_order else rows[:, order.argsort()]))
        return torch.stack(losses).mean()

    @property
    def _any_order(self) -> bool:
        return self.loss_f is norm_mse_loss

    def _pairs(self, views: Tensor) -> Tensor:
        """Mean over pairs of views (S, N, D)."""
        if self._any_order:
            return mean_over_pairs(views)
        losses = [self.loss_f(first, second) for first, second in combinations(views, 2)]
        return torch.stack(losses).sum() / self.num_pairs


def _wmse_eager(
    embeddings: Tensor,
    *,
    num_samples: int = 2,
    w_size: int = 256,
    w_iter: int = 1,
    eps: float = 0.0,
    permutations: Tensor | None = None,
) -> Tensor:
    """One sub-batch after the other, by the inverse factor. Oracle and baseline."""
    wide = embeddings.to(accumulator(embeddings.dtype))
    views = wide.view(num_samples, -1, embeddings.shape[1])  # (S, N, D)
    identity = torch.eye(views.shape[-1]).to(views)
    losses = []
    for order in orders(permutations, w_iter, views.shape[1], views.device):
        for images in order.view(-1, w_size):
            unit = []
            for view in views[:, images]:
                centred = view - view.mean(0)  # (w_size, D)
                covariance = centred.T @ centred / (w_size - 1)  # (D, D)
                factor = torch.linalg.cholesky((1 - eps) * covariance + eps * identity)
                inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
                unit.append(F.normalize(centred @ inverse.T))
            losses += [2 - 2 * (x * y).sum(1).mean() for x, y in combinations(unit, 2)]
    return torch.stack(losses).mean()


def _stacked(
    name: str,
    size: Size,
    num_images: int,
    dim: int,
    *,
    num_samples: int = 2,
    w_iter: int = 1,
    stretch: float = 1.0,
    offset: float = 0.0,
    **options: Any,
) -> Sample:
    """Noisy views of random embeddings; the last feature `stretch` times as wide as the first."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        shape = (num_samples, num_images, dim)
        content = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        widths = torch.logspace(0, 1, dim, stretch, dtype=torch.float64)  # (D,)
        orders = [torch.randperm(num_images, generator=generator) for _ in range(w_iter)]
        return {
            "embeddings": ((content + 0.5 * noise) * widths + offset).flatten(0, 1),
            "num_samples": num_samples,
            "w_iter": w_iter,
            "permutations": torch.stack(orders),
            **options,
        }

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="WMSELoss",
        family="redundancy",
        module=WMSELoss,
        functional=wmse_loss,
        eager=_wmse_eager,
        primitives=("l2_normalize",),
        paper="Ermolov et al. 2021, arXiv:2007.06346, section 3",
        samples=(
            _stacked("one_batch", "tiny", 6, 2, w_size=6),
            _stacked("shrunk_rank", "tiny", 4, 7, w_size=4, eps=0.5),
            _stacked("ragged", "ragged", 69, 7, w_size=23),
            _stacked("ragged_views", "ragged", 38, 5, w_size=19, num_samples=3, w_iter=2),
            _stacked("batch", "typical", 512, 64, w_size=128),
            _stacked("stretched", "extreme", 64, 8, w_size=32, stretch=1e3),
            _stacked("far_off", "extreme", 60, 6, w_size=20, offset=10.0),
            _stacked("shrunk", "extreme", 40, 16, w_size=20, eps=0.99),
        ),
    )
)
