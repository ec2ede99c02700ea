"""Results depend on values alone: not on memory layout, repetition or threads.

Nor on stale memory: `test_ops_numbers` runs in poisoned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import density
import pytest
import torch
from conftest import CASES, CPU_BACKENDS, Case, require_backend, widest
from torch import Tensor

import sslfast
from sslfast.testing import as_tuple, cast, continuous, evaluate, threads

FAST_CASES = tuple(case for case in CASES if case.sample.size in ("tiny", "ragged"))
LARGE_CASES = tuple(case for case in CASES if case.sample.size in ("ragged", "typical"))


def run(case: Case, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return evaluate(case.primitive.function, arguments, case.primitive.differentiable)


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
    plain = cast(case.sample.make(generator), widest(cpu_backend, case.primitive.name))
    tensors = [name for name, value in plain.items() if isinstance(value, Tensor)]
    arranged = {**plain, **{n: layout(plain[n], index) for index, n in enumerate(tensors)}}
    floating = case.primitive.learning(plain)
    leaves = [arranged[n].requires_grad_() for n in floating]
    outputs = as_tuple(case.primitive.function(**arranged))
    gradients = torch.autograd.grad([output.sum() for output in continuous(outputs)], leaves)
    ones = [value.detach().clone().requires_grad_() for value in (plain[n] for n in floating)]
    again = {**plain, **dict(zip(floating, ones, strict=True))}
    expected = as_tuple(case.primitive.function(**again))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(
        gradients, torch.autograd.grad([output.sum() for output in continuous(expected)], ones)
    )


def test_expanded_rows_and_cotangent(cpu_backend: str, generator: torch.Generator) -> None:
    """Stride 0 in operands and in the incoming gradient."""
    kernels = cpu_backend.partition(":")[0]
    for case in (each for each in CASES if kernels in each.primitive.implementations):
        arguments = cast(case.sample.make(generator), widest(cpu_backend, case.primitive.name))
        name = next(iter(arguments))
        if case.sample.size != "ragged" or arguments[name].ndim < 2:
            continue
        row = arguments[name][:1].clone().requires_grad_()
        copies = row.detach().repeat_interleave(len(arguments[name]), 0).requires_grad_()
        expanded = case.primitive.function(**{**arguments, name: row.expand_as(copies)})
        repeated = case.primitive.function(**{**arguments, name: copies})
        for left, right in zip(*(as_tuple(each) for each in (expanded, repeated)), strict=True):
            torch.testing.assert_close(left, right)
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
