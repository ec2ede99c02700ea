"""Where a case runs and in what precision: the CPU in float32, or a GPU in one of four.

In half precision the rows come in that dtype and every contestant runs under autocast, as in
mixed-precision training, where they come out of a linear layer; a temperature stays a float32
parameter. ``tf32`` is float32 with `torch.set_float32_matmul_precision("high")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslfast._core.tree import map_tensors

CPU, CUDA = "cpu", "cuda"
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# TF32 keeps the 10 bits of fraction that float16 has, hence its eps.
ROUNDING = {"tf32": torch.float16, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Place:
    """A device and a precision.

    Raises:
        ValueError: no such device or precision, or one that the device is not measured in.
    """

    device: str = CPU
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.device not in (CPU, CUDA):
            raise ValueError(f"device must be {CPU} or {CUDA}, got {self.device!r}")
        if self.precision not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.precision!r}")
        if self.device == CPU and self.precision != "fp32":
            raise ValueError(f"dtype must be fp32 on the CPU, got {self.precision!r}")

    @property
    def is_gpu(self) -> bool:
        return self.device == CUDA

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def label(self) -> str:
        """The precision as ledgers have it: ``float32``, ``tf32``, ``bfloat16``, ``float16``."""
        return "tf32" if self.precision == "tf32" else str(self.dtype).removeprefix("torch.")

    @property
    def rounding(self) -> torch.dtype | None:
        """Dtype with the eps of the narrowest operand, where that is not the rows' own."""
        return ROUNDING.get(self.precision)

    def require(self) -> None:
        """Raises ValueError where this device is not there, before anything runs on it."""
        if self.is_gpu and not torch.cuda.is_available():
            raise ValueError(absent_gpu())
        if self.is_gpu and self.precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ValueError(f"{torch.cuda.get_device_name()} has no bf16 (--dtype fp16)")

    def put(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Float32 CPU arguments on the device; rows rounded, single numbers left in float32."""
        return {name: map_tensors(self._put, value) for name, value in inputs.items()}

    def _put(self, tensor: Tensor) -> Tensor:
        rounded = tensor.is_floating_point() and tensor.dim() > 0
        return tensor.to(self.device, self.dtype if rounded else tensor.dtype)

    @contextmanager
    def matmul_precision(self) -> Iterator[None]:
        """float32 products as this precision has them, inside the ``with`` block."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def autocast(self) -> AbstractContextManager[Any]:
        """What half-precision contestants run under; nothing in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Hand cached memory back, so that the next contestant finds all of it."""
        if self.is_gpu:
            torch.cuda.empty_cache()


def absent_gpu() -> str:
    """Why torch sees no GPU, in one line."""
    if torch.version.cuda is None:
        return f"device cuda is not there: torch {torch.__version__} was built without CUDA"
    return (
        f"device cuda is not there: torch {torch.__version__} (CUDA {torch.version.cuda}) sees "
        "no GPU; nvidia-smi says what the driver sees"
    )


def default_device() -> str:
    return CUDA if torch.cuda.is_available() else CPU


def default_precision(device: str) -> str:
    return "bf16" if device == CUDA else "fp32"
