"""Compiles every launch of the Triton kernels for chips that are not here.

The launchers run with meta tensors inside `recording`, so each kernel gets the constants and block
sizes that it would get on that chip. A driver without a device answers Triton's questions about
the chip, so that the arguments are specialised (16-byte alignment, sizes divisible by 16, sizes
equal to 1) by the very code that does it in a real launch.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sslfast import _backends
from sslfast._core.devices import INTERPRETED
from sslfast._registry import PRIMITIVES, Primitive
from sslfast.bench.resources import Row
from sslfast.testing import cast, evaluate, threads
from sslfast.triton._launch import TARGETS, Launch, recording

DTYPES = (
    ("fp32", torch.float32, "highest"),
    ("fp32 high", torch.float32, "high"),
    ("bf16", torch.bfloat16, "highest"),
    ("fp16", torch.float16, "highest"),
)
BRIEF = ("fp32", "bf16")  # of these
# in PTX the operands' type follows that of the result; tcgen05 names a kind of operands
MATRIX = (
    re.compile(r"\b(?P<name>mma\.sync)\S*?\.[mnk\d]+\.row\.col\.\w+\.(?P<type>\w+)"),
    re.compile(r"\b(?P<name>wgmma)\.mma_async\.sync\.aligned\.[mnk\d]+\.\w+\.(?P<type>\w+)"),
    re.compile(r"\b(?P<name>tcgen05)\.mma\S*?\.kind::(?P<type>\w+)"),
    re.compile(r"\b(?P<name>v_mfma)_\w+?_\d+x\d+x\d+_?(?P<type>[a-z]+\d+)"),
)


def missing() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'sslfast[triton]')"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 leaves nothing to compile"
    return None


def rows(
    primitives: Sequence[Primitive], archs: Sequence[str], jobs: int, brief: bool = False
) -> list[Row]:
    """See `sslfast.bench.resources`; brief: the first typical sample in `BRIEF`."""
    names = [each.name for each in primitives]
    if not names:
        return []
    if min(jobs, len(archs)) <= 1:
        return [row for arch in archs for row in _rows_of_arch(names, arch, brief)]
    # processes of their own: the active driver is a setting of the whole process
    with ProcessPoolExecutor(min(jobs, len(archs)), get_context("spawn")) as pool:
        found = pool.map(partial(_rows_of_arch, names, brief=brief), archs)
        return [row for rows in found for row in rows]


def _rows_of_arch(names: Sequence[str], arch: str, brief: bool) -> list[Row]:
    found: dict[str, Row] = {}
    with compiling_for(arch), threads(1):
        for name in names:
            for case, launch in launches(PRIMITIVES[name], arch, brief):
                kernel = compile_launch(launch)
                if kernel.hash not in found:
                    found[kernel.hash] = _row(name, arch, case, launch, kernel)
    return list(found.values())


@contextmanager
def compiling_for(arch: str) -> Iterator[None]:
    """Let Triton compile for a chip; a setting of the whole process."""
    from triton.runtime.driver import driver

    before = driver._active  # the property would look for a GPU
    driver.set_active(NoDevice(arch))
    try:
        yield
    finally:
        driver.set_active(before)


class NoDevice:
    """What Triton asks of a driver in order to compile; there is nothing to launch on."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = (
            GPUTarget("hip", arch, 64)
            if TARGETS[arch].is_amd
            else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
        )

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        return self.target  # kernels are kept by device: one per chip

    def get_current_stream(self, device: Any) -> int:
        return 0


def launches(primitive: Primitive, arch: str, brief: bool = False) -> Iterator[tuple[str, Launch]]:
    """Every launch for the typical samples in every dtype, forward and backward, with its case.

    With a gradient of every argument, of the first alone (a queue does not learn), and of none.
    """
    dtypes = primitive.implementations["triton"].dtypes
    typical = [sample for sample in primitive.samples if sample.size == "typical"]
    samples = typical[:1] if brief else typical
    for sample, (label, dtype, precision) in product(samples, DTYPES):
        if dtype not in dtypes or (brief and label not in BRIEF):
            continue
        arguments = cast(sample.make(torch.Generator().manual_seed(0)), dtype, "meta")
        every = [name for name in primitive.differentiable if name in arguments]
        learning = {"": every, f" d{every[0]}": every[:1], " no gradient": []}
        for suffix, names in learning.items():
            with (
                _matmul_precision(precision),
                recording(TARGETS[arch]) as recorded,
                _TritonOnMeta(primitive),
            ):
                evaluate(primitive.function, arguments, names)
            for launch in recorded:
                yield f"{sample.name} {label}{suffix}", launch


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _TritonOnMeta(TorchDispatchMode):
    """The ops of a primitive run their Triton launchers where torch would run their fakes."""

    def __init__(self, primitive: Primitive) -> None:
        super().__init__()
        ops = (primitive.forward_op, primitive.backward_op)
        self.bodies = {op._opoverload: op._init_fn for op in ops}
        self.choice = _backends.Choice("triton", primitive.implementations["triton"], {})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in self.bodies:
            return func(*args, **(kwargs or {}))
        with (
            mock.patch.object(_backends, "choose", return_value=self.choice),
            mock.patch.object(torch, "autocast", return_value=nullcontext()),  # not of meta tensors
        ):
            return self.bodies[func](*args)


def compile_launch(launch: Launch) -> Any:
    """The kernel as this launch would compile it for the active driver's chip."""
    return launch.kernel.run(
        *launch.arguments,
        grid=launch.grid,
        warmup=True,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **launch.constants,
    )


def _row(primitive: str, arch: str, case: str, launch: Launch, kernel: Any) -> Row:
    import triton

    amd = TARGETS[arch].is_amd
    registers, spills = _amd_usage(kernel) if amd else _nvidia_usage(kernel)
    return Row(
        backend="triton",
        primitive=primitive,
        kernel=kernel.name,
        arch=arch,
        case=case,
        constants=" ".join(f"{name}={value}" for name, value in launch.constants.items()),
        warps=launch.num_warps,
        stages=launch.num_stages,
        registers=registers,
        spills=spills,
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        matrix=matrix_instructions(kernel.asm["amdgcn" if amd else "ptx"]),
        compiler=f"triton {triton.__version__}",
    )


def matrix_instructions(assembly: str) -> str:
    """Each matrix instruction with the type of its operands: ``"wgmma bf16"``."""
    found = {f"{m['name']} {m['type']}" for pattern in MATRIX for m in pattern.finditer(assembly)}
    return ", ".join(sorted(found))


def _nvidia_usage(kernel: Any) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of a thread."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        with open(path, "wb") as file:
            file.write(kernel.asm["cubin"])
        report = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    usage = re.search(rf"Function {kernel.name}:\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", report)
    assert usage is not None, report
    registers, stack, local = (int(number) for number in usage.groups())
    return registers, stack + local


def _amd_usage(kernel: Any) -> tuple[int, int]:
    """Vector registers of a lane with the accumulation registers, and how many of them spilled.

    Scalar registers spill into lanes of vector registers, which is no memory traffic.
    """
    counts = dict(re.findall(r"\.(\w+_count):\s+(\d+)", kernel.asm["amdgcn"]))
    return int(counts["vgpr_count"]), int(counts["vgpr_spill_count"])
