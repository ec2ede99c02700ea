"""Spread of the singular values of a batch, the decorrelating term of MSBReg (arXiv:2207.03552).

For the unit embeddings Z (N, D) of a batch, with k = min(N, D) singular values sigma_i,

    loss = 1/k sum_i (sigma_i^2 / m - 1)^2,    m = 1/k sum_i sigma_i^2 = |Z|_F^2 / k

the relative variance of the squared singular values: 0 where they are equal, k - 1 for one
direction alone, k / r - 1 at a participation ratio r. The paper's text says what the term is for
(decorrelated feature dimensions, embeddings spread evenly); its equation was not at hand, and this
form is a choice, made because it needs no decomposition. With G the Gram matrix of the smaller
side, Z Z^T or Z^T Z, and m the mean of its diagonal,

    loss = 1/k sum_i (G_ii / m - 1)^2 + 1/(k m^2) sum_{i != j} G_ij^2

a `cross_frobenius` with its diagonal apart, so that nothing cancels where the loss is small.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_choice, check_distributed
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import (
    all_gather_rows,
    cross_frobenius_of_ranks,
    scale_gradient,
    world_size,
)
from sslfast.losses._module import Objective
from sslfast.losses.redundancy._ranks import (
    GRAD_SCALES,
    GradScale,
    averaged_over_ranks,
)
from sslfast.losses.redundancy._views import check_many_views, random_views, unit_views
from sslfast.ops.correlation.frobenius import cross_frobenius


def singular_value_loss(
    embeddings: Tensor,
    *,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
) -> Tensor:
    """Relative variance of the squared singular values of a batch (after arXiv:2207.03552).

    Args:
        embeddings: (N, D) embeddings, or (N, V, D) which count as N V rows, normalised here;
            float16, bfloat16, float32 or float64.
        gather_distributed: the batch is that of all ranks (the same shape on every rank), and
            every rank returns its loss.
        grad_scale: what averaging parameter gradients over ranks, as `DistributedDataParallel`
            does, is to give: ``"exact"``, the gradient of the global loss, or ``"reference"``,
            1/W of it.

    Returns:
        0-dim loss between 0 and min(N V, D) - 1, in float32 (float64 for float64 embeddings); 0
        with gradient 0 where all embeddings are 0.

    Raises:
        TypeError: `embeddings` is not a floating tensor.
        ValueError: `embeddings` has another shape or is empty, or there is no such scale.

    Differs from others: a form of this project, see above. SVMax (arXiv:2103.02770) instead
    maximises the mean singular value, which the same embeddings attain: for unit rows it is
    largest where all singular values are equal.
    """
    check_many_views("embeddings", embeddings)
    check_choice("grad_scale", grad_scale, GRAD_SCALES)
    rows = unit_views(embeddings).flatten(0, 1)  # (N V, D)
    ranks = world_size() if gather_distributed else 1
    if ranks * len(rows) >= rows.shape[1]:  # the smaller side: features
        frobenius = cross_frobenius_of_ranks if ranks > 1 else cross_frobenius
        spread = _spread(*frobenius(rows, split_diagonal=True))
        return averaged_over_ranks(spread, gather_distributed, grad_scale)
    if ranks > 1:  # the gather adds up the gradients of W equal losses
        rows = all_gather_rows(rows if grad_scale == "exact" else scale_gradient(rows, 1 / ranks))
    return _spread(*cross_frobenius(rows.T, split_diagonal=True))


def _spread(off_diagonal: Tensor, diagonal: Tensor) -> Tensor:
    """Relative variance of the eigenvalues of a Gram matrix (k, k)."""
    level = diagonal.mean()
    scale = level.where(level > 0, 1)  # all embeddings are 0, then so are both numerators
    deviation = (diagonal - level) / scale  # (k,)
    return deviation.square().mean() + off_diagonal / (len(diagonal) * scale.square())


class SingularValueLoss(Objective):
    """Relative variance of the squared singular values of a batch (after arXiv:2207.03552).

    Args:
        gather_distributed, grad_scale: see `sslfast.functional.singular_value_loss`.

    Raises:
        ValueError: there is no such scale, or `gather_distributed` with a torch that has
            no `torch.distributed`.

    Differs from others: see `sslfast.functional.singular_value_loss`.
    """

    def __init__(
        self,
        gather_distributed: bool = False,
        grad_scale: GradScale = "exact",
    ) -> None:
        super().__init__()
        check_distributed(gather_distributed)
        check_choice("grad_scale", grad_scale, GRAD_SCALES)
        self.gather_distributed = gather_distributed
        self.grad_scale = grad_scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the 0-dim loss of embeddings (N, D) or (N, V, D).

        Raises:
            TypeError, ValueError: as `sslfast.functional.singular_value_loss`.
        """
        return singular_value_loss(
            embeddings,
            gather_distributed=self.gather_distributed,
            grad_scale=self.grad_scale,
        )


def _singular_value_eager(
    embeddings: Tensor,
    *,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
) -> Tensor:
    """From the singular values, which torch has for float32 and wider. Oracle and baseline."""
    rows = F.normalize(embeddings, dim=-1).reshape(-1, embeddings.shape[-1])
    rows = all_gather_rows(rows) if gather_distributed else rows
    wide = torch.promote_types(rows.dtype, torch.float32)
    squares: Tensor = torch.linalg.svdvals(rows.to(wide)).square()  # (k,)
    return (squares / squares.mean() - 1).square().mean()


def _batch(
    name: str, size: Size, *shape: int, noise: float = 0.5, scale: float = 1.0, **options: Any
) -> Sample:
    """Noisy views (N, V, D); flat rows (N, D) for a single one."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        views = scale * random_views(generator, *shape, noise=noise)
        return {"embeddings": views.squeeze(1), **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="SingularValueLoss",
        family="redundancy",
        module=SingularValueLoss,
        functional=singular_value_loss,
        eager=_singular_value_eager,
        primitives=("l2_normalize", "cross_frobenius"),
        paper="after arXiv:2207.03552, the singular-value loss",
        samples=(
            _batch("two_rows", "tiny", 2, 1, 3),
            _batch("two_features", "tiny", 5, 1, 2),
            _batch("ragged", "ragged", 19, 3, 67),
            _batch("more_rows", "ragged", 67, 1, 33),
            _batch("gathered", "ragged", 20, 1, 11, gather_distributed=True),
            _batch("gathered_views", "ragged", 8, 2, 43, gather_distributed=True),
            _batch("batch", "typical", 256, 1, 512),
            _batch("close_views", "extreme", 13, 4, 40, noise=1e-2),
            _batch("large", "extreme", 33, 1, 16, scale=1e3),
            _batch("wide", "extreme", 24, 1, 2048),
        ),
    )
)
