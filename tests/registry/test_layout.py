"""Results depend on values alone: not on memory layout, repetition or threads.

Nor on stale memory: `test_numbers` runs in poisoned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import density
import pytest
import torch
from conftest import CASES, CPU_BACKENDS, Case, require_backend, widest
from torch import Tensor

import sslfast
from sslfast._core.tree import learning, map_tensors, tensors
from sslfast._registry import Primitive
from sslfast.testing import as_tuple, cast, continuous, evaluate, gradients, threads

FAST_CASES = tuple(case for case in CASES if case.sample.size in ("tiny", "ragged"))
LARGE_CASES = tuple(case for case in CASES if case.sample.size in ("ragged", "typical"))


def run(case: Case, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    primitive = case.primitive
    return evaluate(primitive.function, arguments, primitive.differentiable, primitive.mutates)


def assert_bitwise(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def transposed(tensor: Tensor, _index: int) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def strided(tensor: Tensor, _index: int) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.ndim else tensor


def offset(tensor: Tensor, _index: int) -> Tensor:
    """Unaligned: starts one element into its storage."""
    storage = tensor.new_empty(tensor.numel() + 1)
    return storage[1:].view(tensor.shape).copy_(tensor)


Layout = Callable[[Tensor, int], Tensor]
LAYOUTS: tuple[Layout, ...] = (transposed, strided, offset)


def mixed(tensor: Tensor, index: int) -> Tensor:
    """Every layout in one call: the next one for every argument."""
    return LAYOUTS[index % len(LAYOUTS)](tensor, index)


@pytest.mark.thin(rule=density.layouts)
@pytest.mark.parametrize("layout", [*LAYOUTS, mixed])
@pytest.mark.parametrize("case", FAST_CASES, ids=str)
def test_layout_does_not_matter(
    case: Case, layout: Layout, cpu_backend: str, generator: torch.Generator
) -> None:
    primitive = case.primitive
    plain = cast(case.sample.make(generator), widest(cpu_backend, primitive.name))
    indices = count()
    arranged = {n: map_tensors(lambda t: layout(t, next(indices)), v) for n, v in plain.items()}
    torch.testing.assert_close(
        _leaving_layout(primitive, arranged), _leaving_layout(primitive, plain)
    )


def _leaving_layout(primitive: Primitive, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs, what was written in place, and gradients; `evaluate` clones into other strides."""
    given = dict(arguments)
    for name in primitive.mutates:
        given[name] = map_tensors(_own_memory, arguments[name])
    leaves: dict[str, Tensor] = {}
    for name in primitive.learning(arguments):
        given[name] = learning(map_tensors(Tensor.detach, arguments[name]))
        leaves.update(tensors(given[name], name))
    outputs = as_tuple(primitive.function(**given))
    ones = [torch.ones((), dtype=o.dtype).expand(o.shape) for o in continuous(outputs)]
    found = gradients(outputs, leaves, ones)
    written = {
        path: each for name in primitive.mutates for path, each in tensors(given[name], name)
    }
    return {**{str(index): each.detach() for index, each in enumerate(outputs)}, **written, **found}


def _own_memory(tensor: Tensor) -> Tensor:
    """A copy with the strides of the tensor."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def test_expanded_rows_and_cotangent(cpu_backend: str, generator: torch.Generator) -> None:
    """Stride 0 in operands and in the incoming gradient."""
    kernels = cpu_backend.partition(":")[0]
    for case in (each for each in CASES if kernels in each.primitive.implementations):
        arguments = cast(case.sample.make(generator), widest(cpu_backend, case.primitive.name))
        name = next(iter(arguments))
        rows = arguments[name]
        if case.sample.size != "ragged" or not isinstance(rows, Tensor) or rows.ndim < 2:
            continue
        if case.primitive.mutates:  # nothing can be written where several rows are one
            continue
        learns = name in case.primitive.differentiable
        row = rows[:1].clone().requires_grad_(learns)
        copies = row.detach().repeat_interleave(len(rows), 0).requires_grad_(learns)
        expanded = case.primitive.function(**{**arguments, name: row.expand_as(copies)})
        repeated = case.primitive.function(**{**arguments, name: copies})
        for left, right in zip(*(as_tuple(each) for each in (expanded, repeated)), strict=True):
            torch.testing.assert_close(left, right)
        if not learns:
            continue
        (drow,) = torch.autograd.grad([each.sum() for each in continuous(expanded)], row)
        (dcopies,) = torch.autograd.grad([each.sum() for each in continuous(repeated)], copies)
        torch.testing.assert_close(drow, dcopies.sum(0, keepdim=True))


@pytest.mark.thin(rule=density.best)
@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
def test_two_runs_agree_bitwise(case: Case, cpu_backend: str, generator: torch.Generator) -> None:
    arguments = cast(case.sample.make(generator), torch.float32)
    assert_bitwise(run(case, arguments), run(case, arguments))


@pytest.mark.thin(rule=density.best)
@pytest.mark.uninterpreted
@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
@pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name != "reference"])
def test_one_and_two_threads_agree_bitwise(
    case: Case, backend: str, generator: torch.Generator
) -> None:
    """Not the reference: torch promises no order of summation across thread counts."""
    require_backend(backend)
    arguments = cast(case.sample.make(generator), torch.float32)
    with sslfast.backend(backend):
        one = run(case, arguments)
        with threads(2):
            two = run(case, arguments)
    assert_bitwise(two, one)
