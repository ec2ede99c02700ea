r"""Soft ranks and soft sorting in plain torch, without pooling anything, for `isotonic_rank`.

The solution of an isotonic regression has a closed form: with m(j, k) what a block of the
positions j to k would be worth alone,

    v_i = max_{j <= i} min_{k >= i} m(j, k)

for increasing v (Robertson, Wright and Dykstra 1988, theorem 1.4.4; it holds for every m that lies
between its values on the two parts of a block). Positions of equal v are one block. All m(j, k) of
a row are n^2 numbers, each the sum of its own terms: no difference of prefix sums to cancel. In
float64 throughout, since comparing them decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.sorting.isotonic import Projection, in_order

# What rounding may part within a block, in units of eps of the largest solution of a row. Blocks
# that lie closer have the same values to rounding, whether they are one or two.
ROUNDING = 256


def same_block(ascending: Tensor, rule: Projection) -> Tensor:
    """(B, n, n) whether two positions of each ascending row are in one block."""
    v = _solution(ascending.detach().double(), rule)  # (B, n)
    rounding = ROUNDING * torch.finfo(v.dtype).eps * v.abs().amax(-1, keepdim=True)  # (B, 1)
    number = (v.diff(dim=-1) > rounding).cumsum(-1)  # (B, n - 1) of the block, from the second on
    number = torch.nn.functional.pad(number, (1, 0))  # (B, n)
    return number.unsqueeze(-1) == number.unsqueeze(-2)  # (B, n, n)


def _solution(x: Tensor, rule: Projection) -> Tensor:
    length = x.shape[-1]
    upper = torch.ones(length, length, dtype=torch.bool, device=x.device).triu()  # j <= k
    x = x - x[..., :1]  # (B, n)
    number = torch.arange(1, length + 1, dtype=x.dtype, device=x.device)  # (n,) ranks
    worth = _worth(x, number, upper, rule)  # (B, j, k)
    least = worth.masked_fill(~upper, torch.inf).flip(-1).cummin(-1).values.flip(-1)
    # least[j, i] = min_{k >= i} m(j, k), where i >= j
    return least.masked_fill(~upper, -torch.inf).amax(-2)  # (B, i)


def _worth(x: Tensor, number: Tensor, upper: Tensor, rule: Projection) -> Tensor:
    """(B, j, k) m(j, k), increasing in the regression's sense; anything where j > k."""
    eps = rule.strength
    if not rule.entropic:
        count = upper.cumsum(-1).clamp_min(1)  # (n, n)
        total = (x.unsqueeze(-2) * upper).cumsum(-1)  # (B, n, n)
        ranks = (number * upper).cumsum(-1)  # (n, n)
        sign = 1 if rule.ranks else -1
        return sign * (total - ranks * (eps if rule.ranks else 1 / eps)) / count
    if rule.ranks:
        return _running_logsumexp(x / eps, upper) - _running_logsumexp(number.log(), upper)
    return _running_logsumexp(-x, upper) - _running_logsumexp(-number / eps, upper)


def _running_logsumexp(x: Tensor, upper: Tensor) -> Tensor:
    """(..., j, k) of positions j to k."""
    spread = x.unsqueeze(-2).expand(*x.shape[:-1], *upper.shape)  # (..., n, n)
    return spread.masked_fill(~upper, -torch.inf).logcumsumexp(-1)


def from_blocks(ascending: Tensor, block: Tensor, rule: Projection) -> Tensor:
    """(B, n) what each position of the ascending rows becomes; the gradient is autograd's.

    All sums over a block are of differences to position i, which keep their digits far from 0.
    """
    eps, x = rule.strength, ascending.double()  # (B, n)
    apart = x.unsqueeze(-1) - x.unsqueeze(-2)  # (B, i, m) x_i - x_m
    number = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)  # (n,)
    behind = number.unsqueeze(-1) - number  # (i, m) i - m
    if not rule.entropic:
        if rule.ranks:
            return number + _block_mean(apart / eps - behind, block)
        return x + _block_mean(behind / eps - apart, block)
    if rule.ranks:
        return _block_sum(number.expand_as(x), block) * (-_block_lse(-apart / eps, block)).exp()
    return x + _block_lse(behind / eps, block) - _block_lse(apart, block)


def _block_mean(pairs: Tensor, block: Tensor) -> Tensor:
    return pairs.masked_fill(~block, 0).sum(-1) / block.sum(-1)


def _block_lse(pairs: Tensor, block: Tensor) -> Tensor:
    return pairs.masked_fill(~block, -torch.inf).logsumexp(-1)


def _block_sum(x: Tensor, block: Tensor) -> Tensor:
    return (block * x.unsqueeze(-2)).sum(-1)


def project(values: Tensor, rule: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """(B, n) ranks or sorted values, and the (B, n) order and blocks that the gradient needs."""
    ascending, order = in_order(values)
    block = same_block(ascending, rule)  # (B, n, n)
    result = from_blocks(ascending, block, rule).to(ascending.dtype)  # (B, n)
    if rule.ranks:
        result = torch.zeros_like(result).scatter(-1, order, result)
    return result, order, block.int().argmax(-1).int()


def reference_backward(
    dresult: Tensor, values: Tensor, order: Tensor, blocks: Tensor, rule: Projection
) -> Tensor:
    """The transposed Jacobian, block by block (Blondel et al. 2020, proposition 4)."""
    dy, eps = dresult.double(), rule.strength
    if rule.ranks:
        dy = dy.gather(-1, order)  # (B, n) as all that follows, in ascending order
    block = blocks.unsqueeze(-1) == blocks.unsqueeze(-2)  # (B, n, n)
    if rule.entropic:
        x = values.double().gather(-1, order)
        apart = x.unsqueeze(-1) - x.unsqueeze(-2)  # (B, i, m)
        pairs = -apart / eps if rule.ranks else apart
        share = (-_block_lse(pairs, block)).exp()  # (B, n)
    else:
        share = block.sum(-1).double().reciprocal()  # (B, n)
    if rule.ranks:
        mean = _block_sum(share * dy, block)
        ranks = torch.arange(1, dy.shape[-1] + 1, dtype=dy.dtype, device=dy.device)
        slope = share * _block_sum(ranks.expand_as(dy), block) if rule.entropic else 1.0
        dx = slope * (dy - mean) / eps
    else:
        dx = share * _block_sum(dy, block)
    return torch.zeros_like(dx).scatter(-1, order, dx)
