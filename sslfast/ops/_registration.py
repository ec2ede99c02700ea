"""What the ops of every contract do with their flat arguments and their gradients.

A contract registers its ops itself, with `torch.library`: the schema, what is saved and what a
fake tensor looks like are its own. Here is what would be counted by hand in each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, zip_longest
from typing import Any

from torch import Tensor


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
