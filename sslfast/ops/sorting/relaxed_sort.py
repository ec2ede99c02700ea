r"""Differentiable sorting network: lists (B, n), sorted softly and in ascending order.

A comparator (p, q) of an ordinary network puts min(a, b) on wire p and max(a, b) on wire q. The
relaxed one mixes both by how far they are apart, a = x_p, b = x_q, d = b - a:

    x_p <- alpha a + (1 - alpha) b     x_q <- (1 - alpha) a + alpha b     alpha = f(steepness d)

Sources: Petersen et al. 2021 ("Differentiable sorting networks", sections 3 and 4: logistic and
ART) and 2022 ("Monotonic differentiable sorting networks", section 4: reciprocal, Cauchy,
optimal). A comparator is a symmetric doubly stochastic 2 x 2 block S_s, so sorted = x P with
P = S_1 S_2 ... S_S, P_ij the share of wire i at rank j.

The gradient needs no matrix. With S_s its own transpose, column j of P is the unit vector e_j
carried from the last comparator back to the first; its cotangent dP_j is carried forward again:

    alpha-bar_s = sum_j (dv_p - dv_q) (v_p - v_q)        over the columns v of P and dv of dP
    g = (alpha-bar_s - d (dx_p - dx_q)) f'(d)            dx carried back, dx_p - g and dx_q + g

Never materialised: P where it is not asked for, the n x n product of any layer. With S comparators
a list costs about 60 S operations, and about 20 S n more for P and its gradient; S values a list
are kept for the time of one call. Saved for the backward pass: the values alone.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import wanted
from sslfast._core.checks import check_finite, check_lists
from sslfast._core.numerics import FLOATS, empty_like_sums
from sslfast._core.sorting.network import RULE_SCHEMA, SortingRule
from sslfast._registry import Implementation, Primitive, lazily, register_primitive
from sslfast.cpu.sorting import relaxed_sort as cpu
from sslfast.ops.sorting import network_cases as cases
from sslfast.ops.sorting import network_cost as cost
from sslfast.ops.sorting.checks import check_rule
from sslfast.ops.sorting.network_gradient import gradient
from sslfast.ops.sorting.network_reference import sort_and_permutation


def reference(
    values: Tensor,
    *,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    steepness: float = 10.0,
    art_lambda: float = 0.25,
    permutation: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula in plain torch, P multiplied layer by layer; half precision is widened first."""
    rule = SortingRule(network, relaxation, steepness, art_lambda)
    ordered, shares = sort_and_permutation(values, rule)  # (B, n), (B, n, n)
    return (ordered, shares) if permutation else ordered


@overload
def relaxed_sort(
    values: Tensor,
    *,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    steepness: float = 10.0,
    art_lambda: float = 0.25,
    permutation: Literal[False] = False,
) -> Tensor: ...
@overload
def relaxed_sort(
    values: Tensor,
    *,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    steepness: float = 10.0,
    art_lambda: float = 0.25,
    permutation: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def relaxed_sort(
    values: Tensor,
    *,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    steepness: float = 10.0,
    art_lambda: float = 0.25,
    permutation: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sort every list softly, in ascending order.

    Args:
        values: (B, n) lists; float16, bfloat16, float32 or float64.
        network: ``"odd_even"`` (n layers) or ``"bitonic"`` (about log2(n)^2 / 2 layers), for any n.
        relaxation: f: ``"cauchy"``, ``"reciprocal"``, ``"optimal"`` (monotonic), ``"logistic"``,
            ``"logistic_phi"`` (ART) or ``"gaussian"``.
        steepness: factor of the differences, above 0; the limit of a large one is the hard sort.
        art_lambda: exponent of ``"logistic_phi"``, in [0, 1); the others do not read it.
        permutation: also return P.

    Returns:
        (B, n) sorted values in float32 (float64 for float64 values); with `permutation` also
        (B, n, n) P, doubly stochastic, ``P[b, i, j]`` the share of input i at rank j.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: `values` is no (B, n) with n >= 1 or is not finite (on CUDA values are read
            under ``SSLFAST_CHECK=1`` only), an option is unknown or out of range.

    Differs from diffsort, whose networks, relaxations, defaults and P these are: P is not built
    where it is not asked for; half precision is computed in float32; 1 - alpha is computed
    directly, so that small shares keep their digits. Its bitonic network does not sort lists of 22,
    38, 42 to 46, 54 and more lengths that are no power of two; here it does, by other wires for
    those lengths and some more above 22. A second derivative raises.
    """
    check_lists("values", values)
    rule = check_rule(network, relaxation, steepness, art_lambda)
    ordered, shares = _forward(values, *rule, bool(permutation), _backends.forced())
    return (ordered, shares) if permutation else ordered


@torch.library.custom_op(
    "sslfast::relaxed_sort",
    mutates_args=(),
    schema=f"(Tensor values, {RULE_SCHEMA}, bool permutation, str backend)"
    " -> (Tensor ordered, Tensor shares)",
)
def _forward(values: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *rule, permutation, backend = options
    check_finite("values", values)
    choice = _backends.choose(SPEC, backend, values)
    ordered, shares = choice.forward(values, SortingRule(*rule), permutation)
    return ordered, shares


@_forward.register_fake
def _(values: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, length = values.shape
    shape = (batch, length, length) if options[-2] else (0,)
    return empty_like_sums(values, batch, length), empty_like_sums(values, *shape)


@torch.library.custom_op(
    "sslfast::relaxed_sort_backward",
    mutates_args=(),
    schema=f"(Tensor dordered, Tensor? dshares, Tensor values, {RULE_SCHEMA}, str backend)"
    " -> Tensor",
)
def _backward(dordered: Tensor, dshares: Tensor | None, values: Tensor, *options: Any) -> Tensor:
    *rule, backend = options
    choice = _backends.choose(SPEC, backend, values)
    dvalues: Tensor = choice.backward(dordered, dshares, values, SortingRule(*rule))
    return dvalues.to(values.dtype)


@_backward.register_fake
def _(dordered: Tensor, dshares: Tensor | None, values: Tensor, *options: Any) -> Tensor:
    return values.new_empty(values.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, *ctx.rule, ctx.permutation, ctx.backend = inputs
    ctx.save_for_backward(values)
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, dordered: Tensor | None, dshares: Tensor | None
) -> tuple[Tensor | None, ...]:
    (values,) = ctx.saved_tensors
    if dordered is None:
        dordered = empty_like_sums(values, *values.shape).zero_()
    dshares = dshares if ctx.permutation else None
    dvalues = _backward(dordered, dshares, values, *ctx.rule, ctx.backend)
    return wanted((dvalues,), ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _reference_forward(
    values: Tensor, rule: SortingRule, permutation: bool
) -> tuple[Tensor, Tensor]:
    ordered, shares = sort_and_permutation(values, rule)
    return ordered, shares if permutation else shares.new_empty(0)


def _reference_backward(
    dordered: Tensor, dshares: Tensor | None, values: Tensor, rule: SortingRule
) -> Tensor:
    ranks = torch.eye(values.shape[1], device=values.device)
    return gradient(values, rule, dordered, dshares, ranks)


SPEC = register_primitive(
    Primitive(
        name="relaxed_sort",
        equation="sorted = x P,  P = S_1 S_2 ... S_S,  S_s = [[a, 1 - a], [1 - a, a]]",
        never_builds="n x n per layer",
        serves=("DiffSortNet", "differentiable ranks"),
        reference=reference,
        function=relaxed_sort,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "cuda": lazily("sslfast.cuda.sorting.relaxed_sort", FLOATS),
            "cpu": Implementation(cpu.forward, cpu.backward, cpu.DTYPES),
            "reference": Implementation(_reference_forward, _reference_backward, FLOATS),
        },
        samples=cases.SORT_SAMPLES,
        differentiable=("values",),
        flops=cost.sort_flops,
        bytes=cost.sort_bytes,
        peak_bytes=cost.sort_peak_bytes,
        properties=cases.SORT_PROPERTIES,
        memory=cases.SORT_MEMORY,
    )
)
