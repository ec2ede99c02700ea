"""One compiled graph serves every batch size: of every primitive and every loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import density
import pytest
import torch
from distributed_cases import split_names
from test_forward_mode import Subject, every_subject, small
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from sslfast._core.tree import learning, map_tensors
from sslfast._registry import Loss

NUM_SIZES = 3  # each would have a graph of its own
WHOLE = {"WMSELoss"}  # sizes that its sub-batches divide
SEVERAL = {"VICRegLLoss"}  # a graph for each size, for minutes: how many matches is a constant


def batch(arguments: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """The arguments with so many rows, repeated from those that there are."""

    def resized(tensor: Tensor) -> Tensor:
        copies = tensor.repeat(-(-num_rows // len(tensor)), *[1] * (tensor.ndim - 1))
        copies = copies[:num_rows].clone()  # no view, whose base has a size of its own
        return copies if tensor.is_floating_point() else copies % num_rows

    rows = split_names(arguments)
    return {n: map_tensors(resized, v) if n in rows else v for n, v in arguments.items()}


@pytest.mark.thin(rule=density.one_graph)
@every_subject
def test_one_graph_for_every_batch_size(subject: Subject) -> None:
    if subject.name in SEVERAL:
        pytest.skip("a graph for each batch size")
    torch.compiler.reset()
    function: Callable[..., Any] = (
        subject.functional if isinstance(subject, Loss) else subject.function
    )
    graphs = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=graphs)
    arguments = small(subject).make(torch.Generator().manual_seed(0))
    if subject.name in WHOLE:
        arguments.pop("permutations")  # of so many images as there were
    names = subject.learning(arguments)
    num_rows = len(arguments[split_names(arguments)[0]])
    step = num_rows if subject.name in WHOLE else 2
    for size in range(num_rows, num_rows + NUM_SIZES * step, step):
        given = batch(arguments, size)
        compiled(**{n: learning(v) if n in names else v for n, v in given.items()})
    assert graphs.frame_count == 1
