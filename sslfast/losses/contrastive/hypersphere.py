"""Alignment and uniformity together (Wang & Isola 2020, sections 4.1 and 4.2).

For N pairs of unit rows x_i, y_i,

    loss = 1/N sum_i |x_i - y_i|^alpha + lam (uniformity(x) + uniformity(y)) / 2

with the uniformity at t of each view.
"""

from __future__ import annotations

from torch import Tensor

from sslfast._core.checks import check_distributed, check_number, check_views
from sslfast._registry import Loss, register_loss
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._pairs import sample_views
from sslfast.losses.contrastive.alignment import _alignment_eager, mean_distance
from sslfast.losses.contrastive.uniformity import (
    _uniformity_eager,
    check_pairs,
    potential_of_unit_rows,
)
from sslfast.ops.rows.l2_normalize import l2_normalize


def hypersphere_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    t: float = 1.0,
    lam: float = 1.0,
    alpha: float = 2.0,
    gather_distributed: bool = False,
) -> Tensor:
    """Alignment of the pairs and uniformity of both views (Wang & Isola 2020, section 4).

    Args:
        embeddings0: (N, D) embeddings of the first view, N > 1, normalised here; float16,
            bfloat16, float32 or float64.
        embeddings1: (N, D) embeddings of the second view; row i is the positive of row i.
        t: inverse variance of the Gaussian of the uniformity; finite and above 0.
        lam: weight of the uniformity; finite.
        alpha: power of the distance in the alignment; finite and above 0.
        gather_distributed: uniformity over the rows of all ranks (the same N on every rank).
            The mean over ranks is the loss of the global batch, and averaging parameter
            gradients over ranks, as `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is not a floating tensor, or an option is not a number.
        ValueError: shapes or devices differ, a matrix is empty, there is one pair only, or an
            option is out of range.

    Differs from lightly: float32 for half-precision embeddings; one pair alone raises, where the
    mean over no pairs gives NaN. Otherwise see `alignment_loss` and `uniformity_loss`.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    check_pairs("embeddings0", embeddings0, gather_distributed)
    _check_options(t, lam, alpha)
    first, second = l2_normalize(embeddings0), l2_normalize(embeddings1)  # (N, D)
    alignment = mean_distance(first, second, alpha)
    uniformity = [potential_of_unit_rows(rows, t, gather_distributed) for rows in (first, second)]
    return alignment + lam * (uniformity[0] + uniformity[1]) / 2


class HypersphereLoss(Objective):
    """Alignment and uniformity, a drop-in for `lightly.loss.HypersphereLoss` 1.5.

    Args:
        t: inverse variance of the Gaussian of the uniformity; finite and above 0.
        lam: weight of the uniformity; finite.
        alpha: power of the distance in the alignment; finite and above 0.
        gather_distributed: uniformity over the rows of all ranks, which lightly does not have.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from lightly: see `sslfast.functional.hypersphere_loss`.
    """

    def __init__(
        self,
        t: float = 1.0,
        lam: float = 1.0,
        alpha: float = 2.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _check_options(t, lam, alpha)
        check_distributed(gather_distributed)
        self.t = t
        self.lam = lam
        self.alpha = alpha
        self.gather_distributed = gather_distributed

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the 0-dim loss of two views (N, D), N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.hypersphere_loss`.
        """
        check_views(z_a=z_a, z_b=z_b)
        check_pairs("z_a", z_a, self.gather_distributed)
        return hypersphere_loss(
            z_a,
            z_b,
            t=self.t,
            lam=self.lam,
            alpha=self.alpha,
            gather_distributed=self.gather_distributed,
        )


def _check_options(t: float, lam: float, alpha: float) -> None:
    check_number("t", t, above=0)
    check_number("lam", lam)
    check_number("alpha", alpha, above=0)


def _hypersphere_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    t: float = 1.0,
    lam: float = 1.0,
    alpha: float = 2.0,
    gather_distributed: bool = False,
) -> Tensor:
    """The sum of the eager parts. Oracle and baseline."""
    alignment = _alignment_eager(embeddings0, embeddings1, alpha=alpha)
    uniformity = [
        _uniformity_eager(rows, t=t, gather_distributed=gather_distributed)
        for rows in (embeddings0, embeddings1)
    ]
    return alignment + lam * (uniformity[0] + uniformity[1]) / 2


SPEC = register_loss(
    Loss(
        name="HypersphereLoss",
        family="contrastive",
        module=HypersphereLoss,
        functional=hypersphere_loss,
        eager=_hypersphere_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="Wang & Isola 2020, arXiv:2005.10242, section 4",
        samples=(
            sample_views("two_pairs", "tiny", 2, 3),
            sample_views("one_feature", "tiny", 5, 1),
            sample_views("ragged", "ragged", 67, 33, t=2.0, lam=0.5, alpha=1.5),
            sample_views("gathered", "ragged", 20, 11, gather_distributed=True),
            sample_views("batch", "typical", 512, 128),
            sample_views("wide", "extreme", 24, 2048, t=20.0),
            sample_views("same_view", "extreme", 33, 16, noise=0.0),
        ),
    )
)
