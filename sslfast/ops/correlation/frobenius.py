r"""Squared Frobenius norm of a cross-product, by the smaller of its two sides.

    C = A^T B,    ||C||_F^2 = sum_ij C_ij^2 = <A A^T, B B^T>

The redundancy term of Barlow Twins (Zbontar et al. 2021, equation 1) and of VICReg (Bardes et al.
2022, equation 3; B = A). Gradient, on either side of the identity:

    dA = 2 B C^T = 2 (B B^T) A,    dB = 2 A C = 2 (A A^T) B        (B = A: dA = 4 A C)

The diagonal can be split off: sum_{i != j} C_ij^2 and C_ii are two outputs, since losses treat
them apart. On the direct route the diagonal is left out of the sum; on the Gram route, which is
for N below D, taking it away cannot cancel: rank N gives ||C||_F^2 >= tr(C)^2 / N, so that what
remains is no small part of it.

Never materialised: D x D where N < D, N x N where N > D: what the backward pass keeps is the
smaller product, never larger than the operands. With Grams at half cost (tiles above the diagonal
alone), forward and backward take 3 N^2 (D + E) operations on the Gram route against 6 N D E; with
one matrix 3 N^2 D against 3 N D^2.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import wanted
from sslfast._core.correlation.frobenius import Arguments, Gradients, Route, Sums
from sslfast._core.numerics import FLOATS, accumulator, tile_operands
from sslfast._registry import Implementation, Primitive, lazily, register_primitive
from sslfast.cpu.correlation import frobenius as cpu
from sslfast.ops.correlation import frobenius_cases as cases
from sslfast.ops.correlation import frobenius_cost as cost
from sslfast.ops.correlation.checks import check_frobenius
from sslfast.ops.correlation.frobenius_keep import cache_elements, choose_route, learns
from sslfast.ops.correlation.frobenius_reference import reference_backward, reference_forward


def reference(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: bool = False,
    route: Route = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula in plain torch, whatever the route; half precision is widened to float32."""
    wide = accumulator(a.dtype)
    product = a.to(wide).T @ (a if b is None else b).to(wide)  # (D, E)
    if not split_diagonal:
        return product.square().sum()  # ()
    diagonal = product.diagonal()  # (D,)
    return (product - diagonal.diag_embed()).square().sum(), diagonal.clone()  # (), (D,)


@overload
def cross_frobenius(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: Literal[False] = False,
    route: Route = "auto",
) -> Tensor: ...
@overload
def cross_frobenius(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: Literal[True],
    route: Route = "auto",
) -> tuple[Tensor, Tensor]: ...


def cross_frobenius(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: bool = False,
    route: Route = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Sum of squares of a^T b, by way of N x N or of D x E, whichever is cheaper.

    Args:
        a: (N, D) matrix; float16, bfloat16, float32 or float64.
        b: (N, E) matrix; two dtypes promote to the wider. ``None``: the symmetric form, b is a,
            at half the cost.
        split_diagonal: keep the diagonal of a^T b apart (D = E).
        route: ``"gram"`` (through a a^T and b b^T), ``"direct"`` (through a^T b), or ``"auto"``:
            the one of fewer operations. Value and gradient are the same, but for rounding: with
            `split_diagonal` and N far above D, a forced ``"gram"`` takes the diagonal from a sum
            that is little else.

    Returns:
        0-dim ||a^T b||_F^2; or, with `split_diagonal`, the 0-dim sum over i != j and the (D,)
        diagonal, both differentiable. float32 (float64 for float64 inputs); 0 without rows.

    Raises:
        TypeError: `a` or `b` is not a floating tensor.
        ValueError: shapes or devices do not match, or there is no such route.

    Differs from squaring a matrix product: half-precision operands accumulate in float32 and the
    result stays float32, so that float16 does not overflow; under autocast operands are rounded to
    the autocast dtype, as a matrix product would. A second derivative raises.
    """
    check_frobenius(a, b, split_diagonal, route)
    a, b = tile_operands(a, b)
    chosen = choose_route(a, b) if route == "auto" else route
    arguments = Arguments(a, b, split_diagonal, chosen)
    room = cache_elements(a, b, chosen, learns(a, b))
    total, diagonal, _ = _forward(*arguments, room, _backends.forced())
    return (total, diagonal) if split_diagonal else total


_ARGUMENTS = (
    "Tensor a, Tensor? b, bool split_diagonal, str route, Tensor? a_columns, Tensor? b_columns"
)


@torch.library.custom_op(
    "sslfast::cross_frobenius",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, int cache_elements, str backend)"
    " -> (Tensor total, Tensor diagonal, Tensor cache)",
)
def _forward(*given: Any) -> Sums:
    *fields, cache_elements, backend = given
    arguments = Arguments(*fields)
    choice = _backends.choose(SPEC, backend, arguments.a, arguments.b)
    sums: Sums = choice.forward(arguments, cache_elements)
    return sums


@_forward.register_fake
def _(*given: Any) -> Sums:
    *fields, cache_elements, _backend = given
    arguments = Arguments(*fields)
    wide = accumulator(arguments.a.dtype)
    diagonal = arguments.a.shape[1] if arguments.split_diagonal else 0
    sizes = ((), (diagonal,), (cache_elements,))
    return Sums(*(arguments.a.new_empty(size, dtype=wide) for size in sizes))


@torch.library.custom_op(
    "sslfast::cross_frobenius_backward",
    mutates_args=(),
    schema=f"(Tensor dtotal, Tensor ddiagonal, {_ARGUMENTS},"
    " Tensor diagonal, Tensor cache, bool need_a, bool need_b, str backend)"
    " -> (Tensor da, Tensor db)",
)
def _backward(*given: Any) -> Gradients:
    dtotal, ddiagonal, *fields, diagonal, cache, need_a, need_b, backend = given
    arguments = Arguments(*fields)
    choice = _backends.choose(SPEC, backend, arguments.a, arguments.b)
    da, db = choice.backward(dtotal, ddiagonal, arguments, diagonal, cache, (need_a, need_b))
    dtype = arguments.a.dtype
    return Gradients(da.to(dtype), db.to(dtype))


@_backward.register_fake
def _(*given: Any) -> Gradients:
    _, _, a, b, *_, need_a, need_b, _ = given
    return Gradients(
        a.new_empty(a.shape if need_a else 0),
        a.new_empty(b.shape if b is not None and need_b else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, b, ctx.split_diagonal, ctx.route, columns, _, _, ctx.backend = inputs
    assert columns is None, "rows that are treated as they are read have an autograd of their own"
    ctx.save_for_backward(a, b, *output[1:])
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, dtotal: Tensor | None, ddiagonal: Tensor | None, dcache: None
) -> tuple[Tensor | None, ...]:
    a, b, diagonal, cache = ctx.saved_tensors
    dtotal = diagonal.new_zeros(()) if dtotal is None else dtotal
    ddiagonal = torch.zeros_like(diagonal) if ddiagonal is None else ddiagonal
    needs = ctx.needs_input_grad[:2]
    form = ctx.split_diagonal, ctx.route, None, None
    gradients = _backward(dtotal, ddiagonal, a, b, *form, diagonal, cache, *needs, ctx.backend)
    return wanted(gradients, ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


SPEC = register_primitive(
    Primitive(
        name="cross_frobenius",
        equation="||A^T B||_F^2 = <A A^T, B B^T>",
        never_builds="D x D where N < D",
        serves=("Barlow Twins", "Mixed Barlow Twins", "VICReg(L)", "VIbCReg", "SIE", "MSBReg"),
        reference=reference,
        function=cross_frobenius,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "cpu": Implementation(cpu.forward, cpu.backward, cpu.DTYPES),
            "triton": lazily("sslfast.triton.correlation.frobenius", FLOATS[:3]),
            "reference": Implementation(reference_forward, reference_backward, FLOATS),
        },
        samples=cases.SAMPLES,
        differentiable=("a", "b"),
        flops=cost.flops,
        bytes=cost.bytes_moved,
        peak_bytes=cost.peak_bytes,
        properties=cases.PROPERTIES,
        products=True,
        memory=cases.MEMORY,
    )
)
