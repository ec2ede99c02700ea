r"""Group masses of a differentiable sorting network, and their cross entropy in one forward pass.

With P the relaxed permutation of a list (see `relaxed_sort`) and consecutive ranks in groups,

    m_ig = sum_{j in group g} P_ij            the share of wire i that ends in group g

Column sums of P are indicator vectors carried from the last comparator back to the first, so a
group costs one vector instead of its columns. Sources: GroCo (Shvetsova et al. 2023, "Learning by
sorting", section 3: groups of negatives and positives), NeCo (Pariza et al. 2025: groups of one
rank, a teacher's permutation as the target); reverse accumulation over a network as in difftopk
(Petersen et al. 2022). The cross entropy of a list and its cotangent are

    L = -1/n sum_ig t_ig log m_ig             dm_ig = -t_ig / (n m_ig)

with t_ig = 1 where wire i lies in group g, or the masses of a teacher's list. Four sweeps give loss
and gradient: values forward, indicators back, cotangents forward, gradient back. Of two groups one
vector serves both where masses stay clear of 0 and 1 (Cauchy, reciprocal, optimal); otherwise every
group has its own, since 1 - m would keep no digit of a small mass. -log is continued by its tangent
below 1e-12, so that value and gradient stay finite.

Never materialised: P, the n x n product of any layer. With S comparators a list costs about 60 S
operations and 20 S more a vector; saved for the backward pass are n numbers a list, its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import grouped, wanted
from sslfast._core.checks import check_finite, check_lists, check_number
from sslfast._core.numerics import FLOATS, empty_like_sums
from sslfast._core.sorting.network import RULE_SCHEMA, Groups, SortingRule
from sslfast._registry import Implementation, Primitive, lazily, register_primitive
from sslfast.cpu.sorting import group_mass as cpu
from sslfast.ops.sorting import network_cases as cases
from sslfast.ops.sorting import network_cost as cost
from sslfast.ops.sorting.checks import check_groups, check_rule, check_teacher
from sslfast.ops.sorting.network_gradient import cross_entropy_gradient, gradient, indicator_of
from sslfast.ops.sorting.network_reference import group_masses, negative_log, sort_and_permutation


def reference(
    values: Tensor,
    group_sizes: Sequence[int],
    *,
    cross_entropy: bool = False,
    teacher: Tensor | None = None,
    teacher_steepness: float | None = None,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    steepness: float = 10.0,
    art_lambda: float = 0.25,
) -> Tensor:
    """The formula in plain torch, through P; half precision is widened to float32 first."""
    rule = SortingRule(network, relaxation, steepness, art_lambda)
    sizes = tuple(group_sizes)
    masses = group_masses(sort_and_permutation(values, rule)[1], sizes)  # (B, n, G)
    if not cross_entropy:
        return masses
    if teacher is None:
        targets = indicator_of(sizes, values).to(masses)  # (n, G), a wire's group is its rank's
    else:
        beta = steepness if teacher_steepness is None else teacher_steepness
        shares = sort_and_permutation(teacher.detach(), rule._replace(steepness=beta))[1]
        targets = group_masses(shares, sizes)  # (B, n, G)
    return (targets * negative_log(masses)).sum(2).mean(1)  # (B,)


def sorting_group_mass(
    values: Tensor,
    group_sizes: Sequence[int],
    *,
    cross_entropy: bool = False,
    teacher: Tensor | None = None,
    teacher_steepness: float | None = None,
    network: str = "odd_even",
    relaxation: str = "cauchy",
    steepness: float = 10.0,
    art_lambda: float = 0.25,
) -> Tensor:
    """Share of every list's values in groups of ranks, or the cross entropy of these shares.

    Args:
        values: (B, n) lists; float16, bfloat16, float32 or float64.
        group_sizes: G positive integers that sum to n: how many ranks, from the lowest, belong to
            each group. ``(n - k, k)`` gives the differentiable top k, ``(1,) * n`` all of P.
        cross_entropy: return the cross entropy instead of the masses. The wires are expected in
            the order of their target groups: the first ``group_sizes[0]`` of them belong into the
            first group, and so on.
        teacher: (B, n) lists whose own masses, through the same network, are the target instead;
            no gradient flows to it. Wires may then be in any order.
        teacher_steepness: of the teacher's network, above 0; that of the values by default.
        network: ``"odd_even"`` or ``"bitonic"``; this and the next three as in `relaxed_sort`.
        relaxation: ``"cauchy"``, ``"reciprocal"``, ``"optimal"``, ``"logistic"``,
            ``"logistic_phi"`` or ``"gaussian"``.
        steepness: factor of the differences, above 0.
        art_lambda: exponent of ``"logistic_phi"``, in [0, 1).

    Returns:
        (B, n, G) masses between 0 and 1 that sum to 1 over the groups, or (B,) cross entropies,
        the mean over the wires; in float32 (float64 where values or teacher are float64).

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: `values` is no (B, n) with n >= 1 or is not finite (on CUDA values are read
            under ``SSLFAST_CHECK=1`` only), group sizes do not sum to n, the teacher's shape or
            device differs, an option is unknown or out of range.

    Differs from others: GroCo's published loss, half the sum of two binary cross entropies, is
    this cross entropy of two groups; it clamps log at -100, where here -log is continued by its
    tangent below a mass of 1e-12; NeCo's has no floor. difftopk reaches the same masses with n x k
    matrices. A second derivative raises.
    """
    check_lists("values", values)
    rule = check_rule(network, relaxation, steepness, art_lambda)
    sizes = check_groups(values, group_sizes)
    check_teacher(values, teacher, cross_entropy)
    if teacher_steepness is not None:
        check_number("teacher_steepness", teacher_steepness, above=0)
    if teacher is not None:
        teacher = teacher.detach()
        if teacher.dtype != values.dtype:
            wider = torch.promote_types(teacher.dtype, values.dtype)
            values, teacher = values.to(wider), teacher.to(wider)
    beta = rule.steepness if teacher_steepness is None else float(teacher_steepness)
    groups = Groups(teacher, sizes, bool(cross_entropy), beta)
    learns = groups.cross_entropy and values.requires_grad and torch.is_grad_enabled()
    output: Tensor
    output, _ = _forward(values, *groups, *rule, learns, _backends.forced())
    return output


_GROUPS = "Tensor? teacher, int[] group_sizes, bool cross_entropy, float teacher_steepness"


@torch.library.custom_op(
    "sslfast::sorting_group_mass",
    mutates_args=(),
    schema=f"(Tensor values, {_GROUPS}, {RULE_SCHEMA}, bool learns, str backend)"
    " -> (Tensor output, Tensor dvalues)",
)
def _forward(values: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    groups, rule, (learns, backend) = grouped(given, Groups, SortingRule, 2)
    check_finite("values", values)
    if groups.teacher is not None:
        check_finite("teacher", groups.teacher)
    choice = _backends.choose(SPEC, backend, values, groups.teacher)
    output, dvalues = choice.forward(values, groups, rule, learns)
    return output, dvalues


@_forward.register_fake
def _(values: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    groups, _, (learns, _) = grouped(given, Groups, SortingRule, 2)
    batch, length = values.shape
    shape = (batch,) if groups.cross_entropy else (batch, length, len(groups.group_sizes))
    saved = (batch, length) if learns else (0,)
    return empty_like_sums(values, *shape), empty_like_sums(values, *saved)


@torch.library.custom_op(
    "sslfast::sorting_group_mass_backward",
    mutates_args=(),
    schema=f"(Tensor doutput, Tensor saved, {_GROUPS}, {RULE_SCHEMA}, str backend) -> Tensor",
)
def _backward(doutput: Tensor, saved: Tensor, *given: Any) -> Tensor:
    """`saved`: the values of masses; of cross entropies their gradient, which is there already."""
    groups, rule, (backend,) = grouped(given, Groups, SortingRule, 1)
    if groups.cross_entropy:
        return doutput[:, None] * saved
    choice = _backends.choose(SPEC, backend, saved)
    dvalues: Tensor = choice.backward(doutput, saved, groups, rule)
    return dvalues.to(saved.dtype)


@_backward.register_fake
def _(doutput: Tensor, saved: Tensor, *given: Any) -> Tensor:
    return saved.new_empty(saved.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, _, *ctx.options, _, ctx.backend = inputs
    cross_entropy, ctx.dtype = ctx.options[1], values.dtype
    ctx.save_for_backward(output[1] if cross_entropy else values)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, doutput: Tensor | None, ddvalues: None) -> tuple[Tensor | None, ...]:
    (saved,) = ctx.saved_tensors
    dvalues = None
    if doutput is not None:
        dvalues = _backward(doutput, saved, None, *ctx.options, ctx.backend).to(ctx.dtype)
    return wanted((dvalues,), ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _reference_forward(
    values: Tensor, groups: Groups, rule: SortingRule, learns: bool
) -> tuple[Tensor, Tensor]:
    output = reference(values, **groups._asdict(), **rule._asdict())
    if not learns:
        return output, empty_like_sums(values, 0)
    return output, cross_entropy_gradient(values, groups, rule)


def _reference_backward(
    dmasses: Tensor, values: Tensor, groups: Groups, rule: SortingRule
) -> Tensor:
    zeros = empty_like_sums(values, *values.shape).zero_()
    indicator = indicator_of(groups.group_sizes, values)
    return gradient(values, rule, zeros, dmasses, indicator)


SPEC = register_primitive(
    Primitive(
        name="sorting_group_mass",
        equation="m_ig = sum_{j in g} P_ij;  L = -1/n sum_ig t_ig log m_ig",
        never_builds="P",
        serves=("GroCo", "NeCo", "differentiable top k"),
        reference=reference,
        function=sorting_group_mass,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "cuda": lazily("sslfast.cuda.sorting.group_mass", FLOATS),
            "cpu": Implementation(cpu.forward, cpu.backward, cpu.DTYPES),
            "reference": Implementation(_reference_forward, _reference_backward, FLOATS),
        },
        samples=cases.MASS_SAMPLES,
        differentiable=("values",),
        flops=cost.mass_flops,
        bytes=cost.mass_bytes,
        peak_bytes=cost.mass_peak_bytes,
        properties=cases.MASS_PROPERTIES,
        memory=cases.MASS_MEMORY,
    )
)
