"""Samples that the list-wise losses share: random scores and graded relevance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast._registry import Sample, Size

PADDED = -1.0


def graded_lists(
    name: str,
    size: Size,
    num_lists: int,
    length: int,
    *,
    num_grades: int = 5,
    padded: bool = False,
    integer: bool = False,
    magnitude: float = 1.0,
    offset: float = 0.0,
    **options: Any,
) -> Sample:
    """Normal scores beside grades 0 .. num_grades - 1; with `padded`, lists of any length."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        shape = (num_lists, length)
        scores = torch.randn(shape, generator=generator, dtype=torch.float64)
        grades = torch.randint(num_grades, shape, generator=generator)
        if padded:
            ends = torch.randint(1, length + 1, (num_lists, 1), generator=generator)
            grades[torch.arange(length) >= ends] = int(PADDED)
        relevance: Tensor = grades if integer else grades.double()
        return {"scores": magnitude * scores + offset, "relevance": relevance, **options}

    return Sample(name, size, make)
