r"""Scale of a column and gradient of `standardize` in plain torch, for the reference.

With r the scale, c = x - mean, z = r c and n = N - ddof:

    own statistics    dx = r (dy - mean dy - z q sum(z dy) / n) + 2 dvariance c / n + dmean / N
    given statistics  dx = r dy,  dmean = -r sum dy,  dvariance = -sum(z dy) q r^2 / 2

r' = dr/dvariance = -q r^3 / 2 where q is 1 with eps on the variance and (s + eps) / s with eps on
the deviation s. Sums of z dy in place of c dy keep r^3, which overflows early, out of the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.numerics import accumulator
from sslfast._core.rows.standardize import Columns, Gradients, Scaling


def near_mean(wide: Tensor) -> Tensor:
    """(D,) the means to rounding; of a constant column, its value to the last bit."""
    first = wide[0]  # (D,)
    return first + (wide - first).mean(0)  # (D,)


def scale(variance: Tensor, rule: Scaling) -> Tensor:
    """(D,) what x - mean is multiplied with; 0, with gradient 0, where it would be infinite."""
    if not rule.unit_variance:
        return torch.ones_like(variance)  # (D,)
    if rule.eps_on == "variance":
        variance = variance + rule.eps  # (D,)
    divisor = _root(variance)  # (D,)
    if rule.eps_on == "deviation":
        divisor = divisor + rule.eps  # (D,)
    zero = divisor == 0  # (D,)
    return divisor.masked_fill(zero, 1).reciprocal().masked_fill(zero, 0)  # (D,)


def _root(square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0."""
    zero = square == 0
    return square.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _steepness(variance: Tensor, rule: Scaling) -> Tensor:
    """(D,) q; 0 where the gradient of the scale is 0."""
    if not rule.unit_variance:
        return torch.zeros_like(variance)
    if rule.eps_on == "variance":
        return torch.ones_like(variance)  # the scale itself is 0 where it is not differentiable
    zero = variance == 0
    deviation = variance.masked_fill(zero, 1).sqrt()
    return ((deviation + rule.eps) / deviation).masked_fill(zero, 0)


def reference_backward(
    dstandardized: Tensor,
    dmean: Tensor,
    dvariance: Tensor,
    embeddings: Tensor,
    columns: Columns,
    rule: Scaling,
    need_statistics: bool,
) -> Gradients:
    dtype = accumulator(embeddings.dtype)
    dy, num_rows = dstandardized.to(dtype), embeddings.shape[0]  # (N, D)
    r = scale(columns.variance, rule)  # (D,)
    if columns.given and not need_statistics:
        return Gradients(r * dy, r.new_empty(0), r.new_empty(0))
    centred = embeddings.to(dtype) - columns.mean  # (N, D)
    if not columns.given:
        centred = centred - columns.rest
    dy_sum, along = dy.sum(0), (r * centred * dy).sum(0)  # (D,)
    q = _steepness(columns.variance, rule)  # (D,)
    if columns.given:
        return Gradients(r * dy, -r * dy_sum, -along * q * r * r / 2)
    n = num_rows - rule.ddof
    radial = r * centred * (q * along / n)  # (N, D)
    dx = r * (dy - dy_sum / num_rows - radial)  # (N, D)
    dx = dx + (centred * (2 * dvariance / n) + dmean / num_rows)
    return Gradients(dx, r.new_empty(0), r.new_empty(0))
