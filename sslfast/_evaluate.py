"""Outputs and gradients of a call by name, whatever holds its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslfast._core.tree import map_tensors, tensors

COTANGENT_SEED = 7


def evaluate(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    differentiable: Sequence[str] | None = None,
    mutates: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Outputs and gradients of a call by name: ``"output 0"``, ``"gradient of views[1]"``.

    The outputs are weighted by fixed numbers between 0.5 and 1.5, the same for every call; integers
    have no weight and no gradient.

    Args:
        function: takes `arguments` as keywords.
        arguments: tensors, in lists, tuples and dicts too, and options.
        differentiable: names of the arguments whose floating-point tensors get gradients, all by
            default; ``()`` for a function that has no gradient.
        mutates: names of the arguments that the function writes in place; it is given copies, and
            what they hold afterwards is a result: ``"targets[0] afterwards"``.

    Raises:
        AssertionError: the call returned no tensor and wrote none, nothing that should learn is
            among the arguments, or one of them has no gradient.
    """
    copies = {name: map_tensors(torch.clone, arguments[name]) for name in mutates}
    given, leaves = learnable({**arguments, **copies}, differentiable)
    returned = as_tuple(function(**given))
    results = {f"output {index}": output.detach() for index, output in enumerate(returned)}
    for name, copy in copies.items():
        results.update((f"{path} afterwards", each) for path, each in tensors(copy, name))
    assert results, "nothing to compare: no tensor was returned, and none written in place"
    if leaves:
        cotangents = [_cotangent(output) for output in continuous(returned)]
        found = gradients(returned, leaves, cotangents)
        results.update((f"gradient of {name}", each) for name, each in found.items())
    return results


def learnable(
    arguments: Mapping[str, Any], differentiable: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments with fresh leaves where they learn, and these leaves by name.

    Raises:
        AssertionError: arguments should learn, and hold no floating-point tensor.
    """
    leaves: dict[str, Tensor] = {}

    def fresh(name: str, value: Any) -> Any:
        names = iter([path for path, _ in tensors(value, name)])

        def leaf(tensor: Tensor) -> Tensor:
            path = next(names)
            if not tensor.is_floating_point():
                return tensor
            leaves[path] = tensor.detach().clone().requires_grad_()
            return leaves[path]

        return map_tensors(leaf, value)

    wanted = arguments.keys() if differentiable is None else differentiable
    given = {name: fresh(name, v) if name in wanted else v for name, v in arguments.items()}
    if differentiable is None or len(differentiable):
        assert leaves, (
            f"nothing learns: no floating-point tensor among {sorted(wanted)}; "
            "differentiable=() says that there is no gradient"
        )
    return given, leaves


def gradients(
    returned: Any, leaves: Mapping[str, Tensor], cotangents: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The gradient of every leaf by its name; none where there is no leaf.

    Args:
        returned: what the call returned.
        leaves: as `learnable` made them.
        cotangents: one for every floating-point output.

    Raises:
        AssertionError: an output, or a leaf, is not part of the graph.
    """
    if not leaves:
        return {}
    outputs = continuous(returned)
    detached = [index for index, output in enumerate(outputs) if not output.requires_grad]
    assert outputs, "nothing learned: no output is floating-point"
    assert not detached, f"nothing learned: floating-point output {detached[0]} has no gradient"
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
    for name, gradient in zip(leaves, found, strict=True):
        assert gradient is not None, f"{name} did not learn: no output depends on it"
    return dict(zip(leaves, found, strict=True))


def as_tuple(returned: Any) -> tuple[Tensor, ...]:
    """The tensors that a call returned."""
    return tuple(tensor for _, tensor in tensors(returned))


def continuous(returned: Any) -> tuple[Tensor, ...]:
    """Those of a call's tensors that may have a gradient: not indices, nor counts."""
    return tuple(output for output in as_tuple(returned) if output.is_floating_point())


def cast(
    arguments: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The arguments on a device, their floating-point tensors rounded to a dtype."""

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return {name: map_tensors(rounded, value) for name, value in arguments.items()}


def _cotangent(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(COTANGENT_SEED)
    weights = 0.5 + torch.rand(output.shape, generator=generator, dtype=torch.float64)
    return weights.to(output)
