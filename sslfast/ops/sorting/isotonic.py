r"""Soft ranks and soft sorting of lists by isotonic regression.

With x in ascending order and rho = (1, 2, ..., n), both are projections onto the permutahedron
(Blondel et al. 2020, "Fast differentiable sorting and ranking", sections 4 and 5)

    ranks  = P(x / strength, rho)     sorted = P(rho / strength, x)

under the Euclidean norm (l2) or, of ranks and exponentials, the Kullback-Leibler divergence (kl).
A projection is what an isotonic regression leaves (proposition 3): positions fall into blocks B,
and with means, log-sum-exps and sums over the block of position i,

    l2  ranks_i = (x_i - mean_B x) / strength + mean_B rho
        sorted_i = mean_B x + (i - mean_B rho) / strength
    kl  ranks_i = exp(x_i / strength) sum_B rho / sum_B exp(x / strength)
        sorted_i = i / strength + lse_B(-rho / strength) - lse_B(-x)

so that the gradient g of the result needs the blocks alone, and for kl the values (proposition 4):

    l2  dx_i = (g_i - mean_B g) / strength             dx_i = mean_B g
    kl  dx_i = ranks_i (g_i - sum_B p g) / strength    dx_i = q_i sum_B g

with p and q the softmax over the block of x / strength and of -x. Never materialised: an n x n
matrix. After the library's sort, pooling adjacent violators costs O(n) for a list, and so does the
gradient; saved are the order and the block of each position. On the CPU half precision is widened
to a float32 copy first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.checks import check_finite, check_lists
from sslfast._core.numerics import FLOATS, empty_like_sums
from sslfast._core.sorting.isotonic import Projection
from sslfast._registry import Implementation, Primitive, register_primitive
from sslfast.cpu.sorting import isotonic as cpu
from sslfast.ops.sorting import isotonic_cases as cases
from sslfast.ops.sorting import isotonic_cost as cost
from sslfast.ops.sorting.checks import check_projection
from sslfast.ops.sorting.isotonic_reference import project, reference_backward


def reference(
    values: Tensor,
    *,
    regularization: str = "l2",
    regularization_strength: float = 1.0,
    output: str = "rank",
) -> Tensor:
    """The formulas in plain torch, blocks by the closed form of the regression, in float64."""
    result, *_ = project(values, Projection(output, regularization, regularization_strength))
    return result  # (B, n)


def isotonic_rank(
    values: Tensor,
    *,
    regularization: str = "l2",
    regularization_strength: float = 1.0,
    output: str = "rank",
) -> Tensor:
    """Rank the values of every list softly, or sort them softly, in ascending order.

    Args:
        values: (B, n) lists; float16, bfloat16, float32 or float64.
        regularization: ``"l2"`` (piecewise linear) or ``"kl"`` (smooth within a block).
        regularization_strength: finite and above 0; in units of the values for ranks, in units
            of their inverse for sorting. The limit of a small one is the hard rank or sort, that
            of a large one the mean.
        output: ``"rank"``: ranks from 1, of the least value, to n, in the order of `values`;
            ``"sort"``: the values from the least to the greatest.

    Returns:
        (B, n) in float32 (float64 for float64 values). Ranks sum to n (n + 1) / 2, equal values
        have equal ranks; sorted values ascend, and with l2 keep their sum. Where two blocks meet
        exactly, the gradient is that of their union.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: `values` is no (B, n) with n >= 1 or is not finite (on CUDA values are read
            under ``SSLFAST_CHECK=1`` only), or an option is unknown or out of range.

    Differs from others: these are torchsort's `soft_rank` and `soft_sort`, its directions and
    defaults, except that half precision gives float32 results (bfloat16 cannot count beyond 256),
    blocks are accumulated in float64, the gradient goes by the blocks that were pooled, where
    torchsort and fast-soft-sort take neighbours within 1e-9 for one block, and it is finite where
    torchsort's for kl is NaN (float32 values above 88 strengths, whose exponentials overflow).
    fast-soft-sort's NumPy `soft_sort` adds 1 / strength to its weights where the paper divides by
    it. A second derivative raises.
    """
    check_lists("values", values)
    rule = check_projection(output, regularization, regularization_strength)
    result: Tensor
    result, *_ = _forward(values, *rule, _backends.forced())
    return result


_RULE = "str output, str regularization, float strength, str backend"


@torch.library.custom_op(
    "sslfast::isotonic_rank",
    mutates_args=(),
    schema=f"(Tensor values, {_RULE}) -> (Tensor result, Tensor order, Tensor blocks)",
)
def _forward(values: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *rule, backend = options
    check_finite("values", values)
    choice = _backends.choose(SPEC, backend, values)
    result, order, blocks = choice.forward(values, Projection(*rule))
    return result, order, blocks


@_forward.register_fake
def _(values: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    order = values.new_empty(values.shape, dtype=torch.int64)
    return empty_like_sums(values, *values.shape), order, torch.empty_like(order, dtype=torch.int32)


@torch.library.custom_op(
    "sslfast::isotonic_rank_backward",
    mutates_args=(),
    schema=f"(Tensor dresult, Tensor values, Tensor order, Tensor blocks, {_RULE}) -> Tensor",
)
def _backward(
    dresult: Tensor, values: Tensor, order: Tensor, blocks: Tensor, *options: Any
) -> Tensor:
    *rule, backend = options
    choice = _backends.choose(SPEC, backend, values)
    dvalues: Tensor = choice.backward(dresult, values, order, blocks, Projection(*rule))
    return dvalues.to(values.dtype)


@_backward.register_fake
def _(dresult: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return values.new_empty(values.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, *ctx.options = inputs
    ctx.save_for_backward(values, *output[1:])
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, dresult: Tensor | None, dorder: None, dblocks: None
) -> tuple[Tensor | None, ...]:
    if dresult is None:
        return None, None, None, None, None
    return _backward(dresult, *ctx.saved_tensors, *ctx.options), None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


SPEC = register_primitive(
    Primitive(
        name="isotonic_rank",
        equation="ranks = P(x / strength, rho),  sorted = P(rho / strength, x)",
        never_builds="n x n",
        serves=("soft ranks", "soft sorting"),
        reference=reference,
        function=isotonic_rank,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "cpu": Implementation(cpu.forward, cpu.backward, cpu.DTYPES),
            "reference": Implementation(project, reference_backward, FLOATS),
        },
        samples=cases.SAMPLES,
        differentiable=("values",),
        flops=cost.flops,
        bytes=cost.bytes_moved,
        peak_bytes=cost.peak_bytes,
        properties=cases.PROPERTIES,
        memory=cases.MEMORY,
    )
)
