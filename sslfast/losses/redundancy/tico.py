"""TiCo: transformation invariance and covariance contrast (Zhu et al. 2022, section 3).

For N pairs of unit rows a_i, b_i and a moving average C of the covariance of the first view,

    B = 1/N sum_i a_i a_i^T,    C = beta C_old + (1 - beta) B    (both without gradient)
    loss = 1 - 1/N sum_i <a_i, b_i> + rho/N sum_i a_i^T C a_i

C is the method's state, the one D x D matrix here. Where it moves on, B is formed straight into it
(2 N D^2 operations) and the row products C a_i (2 N D^2) give the value and, saved, the gradient:
4 N D^2 instead of 6, and no second D x D matrix. Where it stays, B is not formed: its part of the
loss is (1 - beta) |a^T a|_F^2 / N^2, a `cross_frobenius` with half its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_distributed, check_number, check_views
from sslfast._core.numerics import accumulator, mean, row_dot
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import (
    all_gather_rows,
    cross_frobenius_of_ranks,
    mean_over_ranks,
    scale_gradient,
    world_size,
)
from sslfast.losses._module import Objective
from sslfast.losses.redundancy._moving_covariance import (
    check_covariance,
    moved_average,
    quadratic_mean,
)
from sslfast.ops.correlation.frobenius import cross_frobenius
from sslfast.ops.rows.l2_normalize import l2_normalize


def tico_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    covariance: Tensor | None = None,
    beta: float = 0.9,
    rho: float = 8.0,
    gather_distributed: bool = False,
) -> Tensor:
    """TiCo of two views, with the past covariance as an argument (Zhu et al. 2022, section 3).

    Args:
        embeddings0: (N, D) embeddings of the first view, normalised here; float16, bfloat16,
            float32 or float64; two dtypes promote to the wider.
        embeddings1: (N, D) embeddings of the second view, of the momentum encoder in the paper.
        covariance: (D, D) symmetric moving average before this batch; ``None``: zero, as in the
            first step. Not changed here: `TiCoLoss` keeps it.
        beta: share of the past in the average; at least 0, at most 1.
        rho: weight of the covariance contrast; finite and at least 0.
        gather_distributed: B of all ranks' rows (the same N on every rank), and the loss of the
            global batch on every rank; averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is not a floating tensor, or an option is not a number.
        ValueError: shapes or devices differ, a matrix is empty, or an option is out of range.

    Differs from others: lightly needs N > 1, for which the formula has no need. Averages and
    products are float32 or wider for half-precision embeddings too.
    """
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    _check_options(beta, rho)
    check_covariance("covariance", covariance, embeddings0)
    rows, others = _unit_rows(embeddings0, embeddings1)
    ranks = world_size() if gather_distributed else 1
    half = scale_gradient(rows, ranks / 2)  # B has no gradient, and DDP averages over ranks
    frobenius = cross_frobenius_of_ranks if ranks > 1 else cross_frobenius
    contrast = (1 - beta) * frobenius(half) / (ranks * len(rows)) ** 2
    own = 1 - mean(row_dot(rows, others))
    if covariance is not None:
        own = own + rho * beta * quadratic_mean(rows, covariance)
    return (mean_over_ranks(own) if ranks > 1 else own) + rho * contrast


class TiCoLoss(Objective):
    """TiCo, a drop-in for `lightly.loss.TiCoLoss` 1.5 (Zhu et al. 2022, section 3).

    Args:
        beta: share of the past in the moving average of the covariance, from 0 to 1.
        rho: weight of the covariance contrast; finite and at least 0.
        gather_distributed: covariance and loss of the global batch, see
            `sslfast.functional.tico_loss`.

    Attributes:
        C: (D, D) moving average in float32 (float64 for float64 embeddings), ``None`` before the
            first batch. A buffer: it moves with `.to`, and is part of the state once it exists.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from lightly: there C is a plain attribute, which neither moves with the module nor
    survives a checkpoint; a state without C is accepted as long as this module has none either.
    C is written in place. A batch of one row is accepted, wrong shapes raise ValueError instead
    of AssertionError. The gradient is that of lightly, also with `gather_distributed`, where each
    rank there computes the loss of all rows and here of its own.
    """

    C: Tensor | None

    def __init__(
        self, beta: float = 0.9, rho: float = 8.0, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        _check_options(beta, rho)
        check_distributed(gather_distributed)
        self.beta = beta
        self.rho = rho
        self.gather_distributed = gather_distributed
        self.register_buffer("C", None)

    def forward(self, z_a: Tensor, z_b: Tensor, update_covariance_matrix: bool = True) -> Tensor:
        """Return the 0-dim loss of two views.

        Args:
            z_a: (N, D) embeddings of the first view.
            z_b: (N, D) embeddings of the second view.
            update_covariance_matrix: keep the average with this batch in it for the next call.

        Raises:
            TypeError, ValueError: as `sslfast.functional.tico_loss`; or D is not that of `C`.
        """
        check_views(z_a=z_a, z_b=z_b)
        check_covariance("C, the covariance of past batches,", self.C, z_a)
        if not update_covariance_matrix:
            return tico_loss(
                z_a,
                z_b,
                covariance=self.C,
                beta=self.beta,
                rho=self.rho,
                gather_distributed=self.gather_distributed,
            )
        rows, others = _unit_rows(z_a, z_b)
        self.C = moved_average(self.C, rows.detach(), self.beta, self.gather_distributed)
        loss = 1 - mean(row_dot(rows, others)) + self.rho * quadratic_mean(rows, self.C)
        return mean_over_ranks(loss) if self.gather_distributed else loss

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """C has no shape before the first batch: it takes that of the state."""
        saved = state_dict.get(f"{prefix}C")
        if saved is not None and self.C is None:
            self.C = torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _unit_rows(embeddings0: Tensor, embeddings1: Tensor) -> tuple[Tensor, Tensor]:
    wide = accumulator(torch.promote_types(embeddings0.dtype, embeddings1.dtype))
    return l2_normalize(embeddings0.to(wide)), l2_normalize(embeddings1.to(wide))


def _check_options(beta: float, rho: float) -> None:
    check_number("beta", beta, least=0)
    if beta > 1:
        raise ValueError(f"beta must be finite and at most 1, got {beta}")
    check_number("rho", rho, least=0)


def _tico_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    covariance: Tensor | None = None,
    beta: float = 0.9,
    rho: float = 8.0,
    gather_distributed: bool = False,
) -> Tensor:
    """As it is usually written: C is formed and multiplied. Oracle and baseline."""
    rows, others = F.normalize(embeddings0), F.normalize(embeddings1)
    if gather_distributed:
        rows, others = all_gather_rows(rows), all_gather_rows(others)
    batch = (rows.T @ rows).detach() / len(rows)  # (D, D)
    average = (1 - beta) * batch if covariance is None else beta * covariance + (1 - beta) * batch
    contrast = (rows @ average * rows).sum(1).mean()
    return 1 - (rows * others).sum(1).mean() + rho * contrast


def _views(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    *,
    noise: float = 0.5,
    magnitude: float = 1.0,
    past: int = 0,
    **options: Any,
) -> Sample:
    """Two noisy views; the covariance of `past` further unit rows where asked for."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=generator, dtype=torch.float64)

        content = normal(num_rows)
        sample: dict[str, Any] = {
            f"embeddings{view}": magnitude * (content + noise * normal(num_rows))
            for view in range(2)
        }
        if past:
            rows = F.normalize(normal(past))
            sample["covariance"] = rows.T @ rows / past
        return {**sample, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="TiCoLoss",
        family="redundancy",
        module=TiCoLoss,
        functional=tico_loss,
        eager=_tico_eager,
        primitives=("l2_normalize", "cross_frobenius"),
        paper="Zhu et al. 2022, arXiv:2206.10698, section 3",
        samples=(
            _views("one_row", "tiny", 1, 8),
            _views("two_rows", "tiny", 2, 3, past=4),
            _views("ragged", "ragged", 67, 33, rho=3.0),
            _views("ragged_past", "ragged", 19, 130, past=40, beta=0.5),
            _views("gathered", "ragged", 20, 11, gather_distributed=True),
            _views("gathered_past", "ragged", 20, 13, past=30, gather_distributed=True),
            _views("batch", "typical", 256, 256, past=512),
            _views("wide", "extreme", 24, 2048),
            _views("unnormalised", "extreme", 64, 48, magnitude=100.0, past=48),
            # Not equal ones, where the second view's gradient is 0 and all of it rounding.
            _views("close_views", "extreme", 33, 16, noise=1e-2, rho=100.0, past=16),
        ),
    )
)
