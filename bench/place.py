"""Where a case runs and in what precision.

In half precision the rows come in that dtype and every contestant runs under autocast, as in
mixed-precision training, where they come out of a linear layer; a temperature stays a float32
parameter. In float32 everyone runs under one `torch.set_float32_matmul_precision`: ``fp32`` is
"highest"; ``fp32-high`` and ``fp32-medium``, on the CPU, and ``tf32``, on a GPU, are the others.
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


@dataclass(frozen=True)
class Precision:
    """Dtype of the rows, and what products make of float32.

    ``rounding`` is the eps of the narrowest operand, where that is not a float32.
    """

    dtype: torch.dtype
    label: str  # in ledgers
    matmul: str = "highest"  # torch.set_float32_matmul_precision
    rounding: float | None = None


EPS_BF16, EPS_FP16 = (torch.finfo(dtype).eps for dtype in (torch.bfloat16, torch.float16))
PRECISIONS = {
    "fp32": Precision(torch.float32, "float32"),
    # The sum of two bfloat16 numbers, of 16 bits.
    "fp32-high": Precision(torch.float32, "float32 high", "high", 2.0**-15),
    "fp32-medium": Precision(torch.float32, "float32 medium", "medium", EPS_BF16),
    # TF32 keeps the 10 bits of fraction that float16 has, hence its eps.
    "tf32": Precision(torch.float32, "tf32", "high", EPS_FP16),
    "bf16": Precision(torch.bfloat16, "bfloat16", rounding=EPS_BF16),
    "fp16": Precision(torch.float16, "float16", rounding=EPS_FP16),
}
MEASURED_ON = {
    CPU: ("fp32", "fp32-high", "fp32-medium", "bf16", "fp16"),
    CUDA: ("fp32", "tf32", "bf16", "fp16"),
}


@dataclass(frozen=True)
class Place:
    """A device and a precision.

    Raises:
        ValueError: no such device or precision, or one that the device is not measured in.
    """

    device: str = CPU
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.device not in MEASURED_ON:
            raise ValueError(f"device must be {CPU} or {CUDA}, got {self.device!r}")
        measured = MEASURED_ON[self.device]
        if self.precision not in measured:
            expected = f"one of {', '.join(measured)} on {self.device}"
            raise ValueError(f"dtype must be {expected}, got {self.precision!r}")

    @property
    def is_gpu(self) -> bool:
        return self.device == CUDA

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision].dtype

    @property
    def label(self) -> str:
        """The precision as ledgers have it, ``float32`` or ``float32 high``."""
        return PRECISIONS[self.precision].label

    @property
    def rounding(self) -> float | None:
        """Eps of the narrowest operand, where that is not a float32."""
        return PRECISIONS[self.precision].rounding

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
        torch.set_float32_matmul_precision(PRECISIONS[self.precision].matmul)
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
