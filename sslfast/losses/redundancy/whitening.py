"""The whitening layer of W-MSE with its running statistics (Ermolov et al. 2021, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslfast._core.checks import check_count, check_number, check_rows
from sslfast.losses.redundancy._whitening import whiten, whiten_by


class Whitening2d(nn.Module):
    """Whitening with running statistics, a drop-in for `lightly.loss.wmse_loss.Whitening2d` 1.5.

    Args:
        num_features: D.
        momentum: share of a batch in the running statistics; from 0 to 1.
        track_running_stats: keep them, and whiten by them in evaluation mode.
        eps: shrinks each covariance towards the identity; at least 0, below 1.

    Attributes:
        running_mean: (1, D, 1, 1) buffer.
        running_variance: (D, D) buffer, the running covariance.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of range.

    Differs from lightly: a covariance that is not positive definite beyond rounding raises
    ValueError, where torch's LinAlgError comes below zero only, and on CUDA under
    ``SSLFAST_CHECK=1`` only (the rows are NaN there); the rows are float32 for half-precision
    inputs. lightly 1.5 refuses to build the layer with a torch that has `solve_triangular` as a
    function.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.01,
        track_running_stats: bool = True,
        eps: float = 0,
    ) -> None:
        super().__init__()
        check_count("num_features", num_features, 1)
        check_number("momentum", momentum, least=0)
        if momentum > 1:
            raise ValueError(f"momentum must be finite and at most 1, got {momentum}")
        check_number("eps", eps, least=0, below=1)
        self.num_features = num_features
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.eps = eps
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))
            self.register_buffer("running_variance", torch.eye(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten rows (N, D), N > 1 in training mode.

        Raises:
            TypeError, ValueError: `x` is no floating matrix of D features, or its covariance is
                not positive definite.
        """
        check_rows("x", x, "(N, D)")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"x must have {self.num_features} features, got shape {tuple(x.shape)}"
            )
        if self.uses_running_stats:
            return self.whiten_by_running_stats(x)
        if len(x) < 2:
            raise ValueError(f"x must have at least two rows, got shape {tuple(x.shape)}")
        whitened = whiten(x, self.eps)
        self.track(whitened.mean.unsqueeze(0), whitened.covariance.unsqueeze(0))
        return whitened.rows

    @property
    def uses_running_stats(self) -> bool:
        return self.track_running_stats and not self.training

    def whiten_by_running_stats(self, x: Tensor) -> Tensor:
        """Whiten rows (N, D) by the running statistics."""
        return whiten_by(x, self.running_mean.flatten(), self.running_variance, self.eps)

    @torch.no_grad()
    def track(self, means: Tensor, covariances: Tensor) -> None:
        """Move the running statistics on by batch after batch: (T, D) and (T, D, D)."""
        if not (self.training and self.track_running_stats):
            return
        steps = torch.arange(len(means) - 1, -1, -1).to(means)  # (T,)
        weights = self.momentum * (1 - self.momentum) ** steps  # (T,)
        kept = (1 - self.momentum) ** len(means)
        for running, batches in ((self.running_mean, means), (self.running_variance, covariances)):
            update = (batches * weights.view(-1, *[1] * (batches.ndim - 1))).sum(0)
            running.mul_(kept).add_(update.view_as(running))
