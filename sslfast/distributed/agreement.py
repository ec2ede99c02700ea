"""One exchange before the first collective of a step: do the ranks hold the same kind of batch?

A collective of two shapes or dtypes returns wrong numbers, aborts the process or waits for the
others until the time limit. So the ranks tell each other shape and dtype of every tensor argument
first, 2 + 6 T numbers for T tensors, and each of them raises the same error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sslfast._core.tree import tensors
from sslfast.distributed.world import world_size

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_TENSORS = 16  # of a call; what follows is compared by their number alone
MAX_DIMS = 4  # of a tensor; likewise
RECORD = 2 + MAX_DIMS  # dtype, dimensions, sizes
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_agreed = 0  # calls under way whose ranks have compared their arguments


def agreeing(function: Function) -> Function:
    """Compare the tensor arguments of all ranks before a call with ``gather_distributed=True``.

    For functions that have the argument, and for methods of modules that have the attribute. A
    call inside of another, which has asked already, does not ask again.
    """
    names = list(signature(function).parameters)

    @wraps(function)
    def asking(*arguments: Any, **options: Any) -> Any:
        global _agreed
        gathers = options.get("gather_distributed", False)
        if names[0] == "self":
            gathers = getattr(arguments[0], "gather_distributed", False)
        if not gathers or not _asks():
            return function(*arguments, **options)
        check_agreement({**dict(zip(names, arguments, strict=False)), **options})
        _agreed += 1
        try:
            return function(*arguments, **options)
        finally:
            _agreed -= 1

    return asking  # type: ignore[return-value]


def check_agreement(arguments: Mapping[str, Any], group: dist.ProcessGroup | None = None) -> None:
    """Raises ValueError, on every rank alike, where shapes or dtypes differ between ranks.

    On CUDA the comparison would wait for the device: it takes place under ``SSLFAST_CHECK=1`` only.

    Args:
        arguments: tensors, in lists too, by name, the same names on every rank.
        group: process group; default: the world group.
    """
    if not _asks(group):
        return
    named = [found for name, value in arguments.items() for found in tensors(value, name)]
    if any(each.device.type != "cpu" for _, each in named) and not _reads_cuda():
        return
    device = next((each.device for _, each in named), torch.device("cpu"))
    own = torch.tensor(_described([each for _, each in named]), device=device)
    gathered = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(gathered, own, group=group)
    ranks: list[list[int]] = [each.tolist() for each in gathered]
    if all(each == ranks[0] for each in ranks):
        return
    if len({each[0] for each in ranks}) > 1:
        raise ValueError(
            "the ranks must be given as many tensors each, "
            f"got {[each[0] for each in ranks]} in rank order"
        )
    for index, (name, _) in enumerate(named[:MAX_TENSORS]):
        kinds = [_words(each[1 + RECORD * index :]) for each in ranks]
        if len(set(kinds)) > 1:
            raise ValueError(
                f"{name} must have the same shape and dtype on every rank, got "
                f"[{', '.join(kinds)}] in rank order; drop the last incomplete batch "
                "(DataLoader(drop_last=True))"
            )


def _asks(group: dist.ProcessGroup | None = None) -> bool:
    return not torch.compiler.is_compiling() and not _agreed and world_size(group) > 1


def _reads_cuda() -> bool:
    return os.environ.get("SSLFAST_CHECK") == "1"


def _described(given: list[Tensor]) -> list[int]:
    """The number of tensors, and a record of fixed length of each."""
    numbers = [len(given)]
    for tensor in given[:MAX_TENSORS]:
        dtype = DTYPES.index(tensor.dtype) if tensor.dtype in DTYPES else len(DTYPES)
        sizes = [*tensor.shape[:MAX_DIMS], *[0] * (MAX_DIMS - tensor.ndim)]
        numbers += [dtype, tensor.ndim, *sizes]
    return numbers + [0] * (1 + MAX_TENSORS * RECORD - len(numbers))


def _words(record: list[int]) -> str:
    dtype, ndim, *sizes = record[:RECORD]
    kind = str(DTYPES[dtype]).removeprefix("torch.") if dtype < len(DTYPES) else "another dtype"
    return f"{tuple(sizes[: min(ndim, MAX_DIMS)])} {kind}"
