"""How records pass through flat calls: torch's ops, and the native ones below them.

A contract registers its ops itself, with `torch.library`: the schema, what is saved and what a
fake tensor looks like are its own. This splits the flat arguments of an op into records, orders
its gradients, and lays records flat again for a native op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor

from sslfast._core.numerics import WIDER, float_terms


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
