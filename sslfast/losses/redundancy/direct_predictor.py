"""A linear predictor set from the features instead of trained: DirectPred and DirectCopy.

For features f of the online network, with the moving average of their correlation

    F = m F_old + (1 - m) 1/N sum_i f_i f_i^T = U diag(lambda) U^T

    DirectPred    W = U diag(p) U^T,    p_k = max((lambda_k / lambda_1)^e + eps, floor)
    DirectCopy    W = F / ||F|| + eps I

(Tian et al. 2021, arXiv:2102.06810, equations 18 and 19; Wang et al. 2021, arXiv:2110.04947). With
the spectral norm both are one rule, for F^e and for F. The batch's correlation is one product f^T f
of 2 N D^2 operations, not N outer products of D x D; W has no gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.checks import (
    check_choice,
    check_count,
    check_distributed,
    check_number,
    check_rows,
)
from sslfast._core.numerics import accumulator
from sslfast.distributed import world_size

Rule = Literal["directpred", "directcopy"]
RULES = ("directpred", "directcopy")
Norm = Literal["spectral", "frobenius"]
NORMS = ("spectral", "frobenius", None)


class DirectPredictor(nn.Module):
    """Predictor W f for BYOL or SimSiam, set from the correlation of f (Tian et al. 2021).

    In training mode a call first takes its features into the moving average, then, at every
    `update_every`-th call, sets W from it, then applies W. In evaluation mode it only applies W.
    Features of several views are best given in one call: each call is one step of the average.

    Args:
        dim: D.
        rule: ``"directpred"`` or ``"directcopy"``.
        momentum: share m of the past in the average, at least 0, below 1; the first batch sets it.
        exponent: e of DirectPred; finite and above 0.
        eps: added to every eigenvalue of W; finite. It may be negative for DirectPred.
        floor: least eigenvalue of W for DirectPred; finite.
        update_every: calls from one setting of W to the next, at least 1.
        center: take the features' mean out of the correlation.
        norm: of DirectCopy, ``"spectral"`` (then the largest eigenvalue of W is 1 + eps, as for
            DirectPred), ``"frobenius"``, which needs no eigenvalues, or ``None``, no division.
        gather_distributed: correlation and mean over all ranks' rows (the same N on every rank),
            so that all ranks hold the same W.

    Attributes:
        weight: (D, D) buffer W, the identity before the first training call.
        correlation: (D, D) buffer F; mean: (D,) buffer, the moving average of the mean.
        num_batches_tracked: 0-dim int64 buffer.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of range or unknown, or `gather_distributed` with a torch
            that has no `torch.distributed`.

    Differs from others: facebookresearch/luckmatters (ssl/real-dataset) sets W after the
    optimizer's step rather than before its use. Its documented run has m = 0.3, eps = 0.01 and
    update_every = 1, the defaults here; its configuration file has m = 0.8 and eps = 0; exponent
    1/2 and floor 1e-4 are the same in both; it does not divide by the norm in DirectCopy. Its
    features are those before the normalisation of the loss, as here. It forms N outer products
    and needs `torch.eig`, which torch no longer has.
    """

    weight: Tensor
    correlation: Tensor
    mean: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        dim: int,
        *,
        rule: Rule = "directpred",
        momentum: float = 0.3,
        exponent: float = 0.5,
        eps: float = 0.01,
        floor: float = 1e-4,
        update_every: int = 1,
        center: bool = False,
        norm: Norm | None = "spectral",
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_count("dim", dim, 1)
        check_number("momentum", momentum, least=0, below=1)
        check_number("exponent", exponent, above=0)
        check_number("eps", eps)
        check_number("floor", floor)
        check_count("update_every", update_every, 1)
        check_distributed(gather_distributed)
        check_choice("rule", rule, RULES)
        check_choice("norm", norm, NORMS)
        self.dim = dim
        self.rule = rule
        self.momentum = momentum
        self.exponent = exponent
        self.eps = eps
        self.floor = floor
        self.update_every = update_every
        self.center = center
        self.norm = norm
        self.gather_distributed = gather_distributed
        self._calls = 0  # since construction: reading the buffer would wait for the device
        self.register_buffer("weight", torch.eye(dim))
        self.register_buffer("correlation", torch.zeros(dim, dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor) -> Tensor:
        """Return W f for each row of features (N, D), in their dtype.

        Raises:
            TypeError: `features` is not a floating tensor.
            ValueError: it is no matrix of D features, or has no row.
        """
        check_rows("features", features, "(N, D)")
        if features.shape[1] != self.dim:
            raise ValueError(
                f"features must have {self.dim} features, got shape {tuple(features.shape)}"
            )
        if self.training:
            self._track(features.detach())
            if self._calls % self.update_every == 0:
                self.set_weight()
            self._calls += 1
        # A new W is a new tensor: the graphs of earlier calls keep theirs.
        return F.linear(features, self.weight.to(features.dtype))

    @torch.no_grad()
    def _track(self, features: Tensor) -> None:
        """One step of the moving averages with rows (N, D)."""
        wide = features.to(accumulator(features.dtype))
        with torch.autocast(wide.device.type, enabled=False):
            correlation = wide.T @ wide / len(wide)  # (D, D)
        mean = wide.mean(0)  # (D,)
        if self.gather_distributed and world_size() > 1:
            for statistic in (correlation, mean):
                dist.all_reduce(statistic)
                statistic /= world_size()
        # The first batch counts in full; by a tensor, because its value stays on the device.
        weight = torch.where(self.num_batches_tracked == 0, 1.0, 1 - self.momentum)
        for name, batch in (("correlation", correlation), ("mean", mean)):
            past = getattr(self, name).to(batch.dtype)
            setattr(self, name, past.lerp(batch, weight.to(batch.dtype)))
        self.num_batches_tracked += 1

    @torch.no_grad()
    def set_weight(self) -> None:
        """Set W from the moving average as it is; called by `forward`."""
        matrix = self.correlation.double()  # (D, D)
        if self.center:
            mean = self.mean.double()
            matrix = matrix - torch.outer(mean, mean)
        rule = self._directpred if self.rule == "directpred" else self._directcopy
        self.weight = rule(matrix).to(self.weight.dtype)

    def _directpred(self, matrix: Tensor) -> Tensor:
        squares, vectors = torch.linalg.eigh(matrix)  # (D,) ascending, (D, D)
        squares = squares.clamp_min(0)  # rounding
        largest = squares[-1]
        share = squares / largest.where(largest > 0, 1)
        eigenvalues = (share**self.exponent + self.eps).clamp_min(self.floor)
        weight: Tensor = (vectors * eigenvalues) @ vectors.T
        return weight

    def _directcopy(self, matrix: Tensor) -> Tensor:
        identity = torch.eye(self.dim, dtype=matrix.dtype, device=matrix.device)
        if self.norm is None:
            return matrix + self.eps * identity
        norm: Tensor
        if self.norm == "spectral":
            norm = torch.linalg.eigvalsh(matrix)[-1]
        else:
            norm = torch.linalg.matrix_norm(matrix)
        return matrix / norm.where(norm > 0, 1) + self.eps * identity

    def extra_repr(self) -> str:
        names = ("dim", "rule", "momentum", "exponent", "eps", "floor", "update_every", "center")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*names, "norm"))
