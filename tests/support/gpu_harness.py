"""Checks of one primitive or loss on a device; tests/gpu/test_gpu.py runs them on a GPU.

Each takes the device, so that tests/gpu/test_gpu_harness.py can show on a CPU that it passes what
is right and fails what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sslfast
from sslfast import _backends
from sslfast._registry import LOSSES, PRIMITIVES, Loss, Primitive, Sample, Tolerance
from sslfast.testing import CaseReport, as_tuple, cast, check_case, continuous, evaluate

Device = torch.device | str
Results = dict[str, Tensor]

FAMILY = os.environ.get("SSLFAST_FAMILY", "")
# dtype, and what torch.set_float32_matmul_precision allows.
PRECISIONS = {
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "fp64": (torch.float64, "highest"),
}
ABSOLUTE_EPS = 32  # limit of the relative L2 error, in eps of the tested dtype
WELL_CONDITIONED = ("ragged", "typical")


@dataclass(frozen=True)
class BackendCase:
    """A primitive at one sample, forced on a backend, in a precision."""

    primitive: Primitive
    sample: Sample
    backend: str
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.primitive.name}-{self.sample.name}-{self.backend}-{self.precision}"

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    def arguments(self, device: Device) -> dict[str, Any]:
        drawn = self.sample.make(torch.Generator().manual_seed(2026))
        return cast(drawn, self.dtype, device)


def losses() -> list[Loss]:
    """Of the family that SSLFAST_FAMILY names, or all."""
    return [loss for loss in LOSSES.values() if FAMILY in ("", loss.family)]


def primitives() -> list[Primitive]:
    """Those that the losses are built on, or all."""
    used = {name for loss in losses() for name in loss.primitives}
    return [spec for name, spec in PRIMITIVES.items() if not FAMILY or name in used]


def backends_of(primitive: Primitive, device_type: str) -> list[str]:
    """Backends of a primitive on a kind of device by name, each variant for itself."""
    return [
        f"{name}:{variant}" if variant else name
        for name in _backends.ORDER[device_type]
        if name in primitive.implementations and name in _backends.BACKENDS
        for variant in _backends.BACKENDS[name].variants
        if variant or len(_backends.BACKENDS[name].variants) == 1
    ]


def backend_cases(
    device_type: str, *sizes: str, precisions: tuple[str, ...] = ("fp32",)
) -> list[BackendCase]:
    """Primitives x backends x precisions that the backend takes x samples of these sizes (all)."""
    return [
        BackendCase(primitive, sample, backend, precision)
        for primitive in primitives()
        for backend in backends_of(primitive, device_type)
        for precision in precisions
        if PRECISIONS[precision][0] in primitive.implementations[backend.partition(":")[0]].dtypes
        for sample in primitive.samples
        if not sizes or sample.size in sizes
    ]


@contextmanager
def settings(backend: str, precision: str = "fp32") -> Iterator[None]:
    """The backend forced (none: chosen), and float32 products in the precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[precision][1])
    try:
        if backend:
            with sslfast.backend(backend):
                yield
        else:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are NaN (the largest integer for integers) until they are written."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check_numbers(case: BackendCase, device: Device) -> CaseReport:
    """The error rule, the baseline being the reference on the device in the same precision."""
    primitive, sample = case.primitive, case.sample
    judged = sample.size in WELL_CONDITIONED and case.precision not in ("fp64", "tf32")
    base = case.backend.partition(":")[0]
    with settings(case.backend, case.precision):
        return check_case(
            primitive.function,
            primitive.reference,
            sample.make(torch.Generator().manual_seed(2026)),
            dtype=case.dtype,
            device=device,
            differentiable=primitive.differentiable,
            tolerance=primitive.tolerances.get((base, case.dtype), Tolerance()),
            # TF32 keeps the 10 bits of fraction that float16 has.
            rounding=torch.float16 if case.precision == "tf32" else None,
            absolute=ABSOLUTE_EPS * torch.finfo(case.dtype).eps if judged else None,
        ).require()


def check_loss(loss: Loss, sample: Sample, precision: str, device: Device) -> CaseReport:
    """The error rule against the loss's eager form on the device, backends as chosen."""
    dtype = PRECISIONS[precision][0]
    arguments = sample.make(torch.Generator().manual_seed(2026))

    def eager(**arguments: Any) -> Tensor:
        value: Tensor = loss.eager(**arguments)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    with settings("", precision):
        return check_case(
            loss.functional,
            eager,
            arguments,
            dtype=dtype,
            device=device,
            differentiable=loss.learning(arguments),
            tolerance=loss.tolerance(arguments),
            rounding=torch.float16 if precision == "tf32" else dtype,
        ).require()


def check_repeats(case: BackendCase, device: Device) -> None:
    """Three calls agree bitwise, one of them on fresh memory that is NaN until written."""
    arguments = case.arguments(device)
    with settings(case.backend, case.precision):
        first, again = run(case, arguments), run(case, arguments)
        with poisoned_memory():
            poisoned = run(case, arguments)
    assert_bitwise(again, first)
    assert_bitwise(poisoned, first)


def check_layout(case: BackendCase, layout: Callable[[Tensor], Tensor], device: Device) -> None:
    """Operands of other strides, and an incoming gradient of other strides, change nothing."""
    plain = case.arguments(device)
    arranged = {n: layout(v) if isinstance(v, Tensor) else v for n, v in plain.items()}
    with settings(case.backend, case.precision):
        expected = with_cotangents(case, plain, lambda cotangent: cotangent)
        actual = with_cotangents(case, arranged, layout)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, at=name: f"{at}: {text}")


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def strided(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.ndim else tensor


def offset(tensor: Tensor) -> Tensor:
    """Unaligned: starts one element into its storage."""
    storage = tensor.new_empty(tensor.numel() + 1)
    return storage[1:].view(tensor.shape).copy_(tensor)


LAYOUTS = (transposed, strided, offset)


def run(case: BackendCase, arguments: Mapping[str, Any]) -> Results:
    return evaluate(case.primitive.function, arguments, case.primitive.differentiable)


def with_cotangents(
    case: BackendCase, arguments: Mapping[str, Any], arrange: Callable[[Tensor], Tensor]
) -> Results:
    """Values and gradients of leaves that keep their strides, as `evaluate`'s clones may not."""
    names = case.primitive.learning(arguments)
    leaves = {name: arguments[name].detach().requires_grad_() for name in names}
    outputs = as_tuple(case.primitive.function(**{**arguments, **leaves}))
    learning = continuous(outputs)
    weights = [torch.linspace(0.5, 1.5, max(o.numel(), 1))[: o.numel()] for o in learning]
    cotangents = [
        arrange(weight.view(o.shape).to(o)) for weight, o in zip(weights, learning, strict=True)
    ]
    gradients = torch.autograd.grad(learning, list(leaves.values()), cotangents)
    results = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    return {**results, **dict(zip(names, gradients, strict=True))}


class Step:
    """Forward and backward on tensors that stay where they are: a graph, or a stream, runs it."""

    def __init__(
        self, function: Callable[..., Any], arguments: Mapping[str, Any], leaves: list[str]
    ) -> None:
        self.function, self.leaves = function, leaves
        self.static = {
            name: value.detach().clone().requires_grad_(name in leaves)
            if isinstance(value, Tensor)
            else value
            for name, value in arguments.items()
        }
        learning = continuous(function(**self.static))
        self.cotangents = [torch.full_like(output, 0.75) for output in learning]

    def __call__(self) -> Results:
        outputs = as_tuple(self.function(**self.static))
        wanted = [self.static[name] for name in self.leaves]
        gradients = torch.autograd.grad(continuous(outputs), wanted, self.cotangents)
        results = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
        return {**results, **dict(zip(self.leaves, gradients, strict=True))}

    @torch.no_grad()
    def fill(self, arguments: Mapping[str, Any], cotangent: float) -> None:
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                self.static[name].copy_(value)
        for each in self.cotangents:
            each.fill_(cotangent)

    @torch.no_grad()
    def spoil(self) -> None:
        """What a kernel reads that does not wait for `fill`."""
        for value in (*self.static.values(), *self.cotangents):
            if isinstance(value, Tensor) and value.is_floating_point():
                value.fill_(torch.nan)


def check_promise(
    measure: Callable[[int], int], promised: Callable[[int], int], num_rows: int, noise: int
) -> None:
    """The peak is within the promise, and grows from N to 2N rows by no more than it does."""
    small, large = measure(num_rows), measure(2 * num_rows)
    print(f"peak {small} bytes, then {large}; promised {promised(num_rows)}")
    assert small <= promised(num_rows) + noise, f"{small} bytes at {num_rows} rows"
    assert large <= promised(2 * num_rows) + noise, f"{large} bytes at {2 * num_rows} rows"
    growth = promised(2 * num_rows) - promised(num_rows)
    assert large - small <= growth + noise, f"grows by {large - small} bytes, not {growth}"


def assert_bitwise(actual: Results, expected: Results) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def first_of(size: str, samples: tuple[Sample, ...]) -> Sample:
    return next(sample for sample in samples if sample.size == size)
