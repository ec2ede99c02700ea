"""How records pass through flat calls: torch's ops, and the native ones below them.

A contract registers its ops itself, with `torch.library`: the schema, what is saved and what a
fake tensor looks like are its own. This splits the flat arguments of an op into records, orders
its gradients, and lays records flat again for a native op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad

from sslfast._core.numerics import WIDER, float_terms
from sslfast._core.tree import tensors


def register_gradient(forward: Any, formula: Any, setup_context: Any, backward: Any) -> None:
    """Give an op its gradient, which has none of its own.

    Args:
        forward, backward: the ops of a primitive.
        formula: of the gradients of `forward`, a call of `backward`.
        setup_context: what `formula` keeps of the forward pass.
    """
    forward.register_autograd(formula, setup_context=setup_context)

    def raises(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(
            f"{backward._name} has no gradient: {forward._name} has no second derivative; take the "
            "loss's eager form for it, or leave out create_graph=True"
        )

    backward.register_autograd(raises, setup_context=lambda ctx, inputs, output: None)


def call_op(op: Any, *arguments: Any) -> Any:
    """Call an op, in reverse mode inside `torch.func` transforms too.

    torch asks a custom op for reverse mode alone: where no input requires a gradient it runs the
    kernel on the bare values, and a derivative in forward mode would be too small, or 0, without
    a word.

    Raises:
        NotImplementedError: an argument carries a tangent.
    """
    if torch.compiler.is_compiling():
        return op(*arguments)
    _refuse_tangents(op._name, arguments)
    if torch._C._are_functorch_transforms_active():
        return _transformable(op).apply(*arguments)
    return op(*arguments)


def call_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, which is refused inside `torch.func` transforms.

    Raises:
        NotImplementedError: an argument carries a tangent, or is part of a transform.
    """
    if torch.compiler.is_compiling():
        return function.apply(*arguments)  # type: ignore[no-untyped-call]
    name = function.__name__.strip("_")
    _refuse_tangents(name, arguments)
    transformed = torch._C._are_functorch_transforms_active()
    if transformed and any(map(functorch.is_functorch_wrapped_tensor, _flat(arguments))):
        raise NotImplementedError(
            f"{name} has no rule for torch.func transforms (grad, vjp, "
            "vmap): take torch.autograd.grad, one batch at a time"
        )
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


@cache
def _transformable(op: Any) -> Any:
    """An op with the form of autograd function that `torch.func` can transform."""

    class Transformable(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return op(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            op._setup_context_fn(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return op._backward_fn(ctx, *gradients)

    return Transformable


def _flat(arguments: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors(arguments)]


def _refuse_tangents(name: str, arguments: Any) -> None:
    """Raises NotImplementedError where a tensor, in lists too, carries a tangent."""
    if forward_ad._current_level < 0:
        return
    if any(tensor.is_floating_point() and _carries_tangent(tensor) for tensor in _flat(arguments)):
        raise NotImplementedError(
            f"{name} has no derivative in forward mode (torch.func.jvp, jacfwd, hessian, "
            "torch.autograd.forward_ad), and a tangent would be dropped: take reverse mode "
            "(torch.autograd.grad), or detach the tensor"
        )


def _carries_tangent(tensor: Tensor) -> bool:
    if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        return True
    # A tangent of an outer jvp, which the inner one does not see.
    outer = {
        each.level()
        for each in (functorch.get_interpreter_stack() or [])[:-1]
        if each.key() == functorch.TransformType.Jvp
    }
    while outer and functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.maybe_get_level(tensor) in outer:
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def wanted(gradients: Iterable[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """What an autograd formula returns: one value for every argument of the forward op.

    Args:
        gradients: of the first arguments, in their order; those that nobody asked for are dropped.
        needs: the context's ``needs_input_grad``, one for every argument.
    """
    return tuple(gradient if need else None for gradient, need in zip_longest(gradients, needs))


def grouped(given: Iterable[Any], *groups: int | type[tuple[Any, ...]]) -> list[Any]:
    """Flat arguments of an op in groups: `NamedTuple` types, or tuples of so many values."""
    rest = iter(given)
    return [
        tuple(islice(rest, group)) if isinstance(group, int) else _filled(group, rest)
        for group in groups
    ]


def _filled(kind: Any, rest: Any) -> Any:
    return kind(*islice(rest, len(kind._fields)))


def native(op: str, *, multiplies: bool = False) -> Callable[..., Any]:
    """A CPU launcher that calls ``sslfast_native::<op>``.

    Records among its arguments are laid flat, and tensors are made what the kernels take:
    contiguous, half precision widened. Kernels that multiply take half precision as it is, and
    how float32 operands multiply.
    """

    def launch(*arguments: Any, isa: int) -> Any:
        flat: list[Any] = []
        _lay_flat(arguments, flat, widen=not multiplies)
        if multiplies:
            flat.append(float_terms())
        return getattr(torch.ops.sslfast_native, op)(*flat, isa)

    return launch


def _lay_flat(values: Iterable[Any], flat: list[Any], widen: bool) -> None:
    for each in values:
        if isinstance(each, tuple):
            _lay_flat(each, flat, widen)
        elif isinstance(each, Tensor):
            wide = each.to(WIDER.get(each.dtype, each.dtype)) if widen else each
            flat.append(wide.contiguous())
        else:
            flat.append(each)
