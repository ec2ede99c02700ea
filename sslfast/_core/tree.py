"""The tensors of an argument or a result: alone, or inside lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name: ``views``, ``views[1]``, ``maps['small'][0]``."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from tensors(each, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from tensors(each, f"{name}[{index}]")


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure with `function` of every tensor in it; everything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        mapped = [map_tensors(function, each) for each in value]
        if hasattr(value, "_fields"):
            return type(value)(*mapped)
        return type(value)(mapped)
    return value


def floating(value: Any) -> list[Tensor]:
    """Its floating-point tensors: those that may learn."""
    return [tensor for _, tensor in tensors(value) if tensor.is_floating_point()]


def learning(value: Any) -> Any:
    """The value itself, whose floating-point tensors require a gradient from now on."""
    for tensor in floating(value):
        tensor.requires_grad_()
    return value
