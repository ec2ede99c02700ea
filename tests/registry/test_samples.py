"""A sample has something to judge, so that no verdict hangs on the machine.

Where a value or a gradient is what cancellation left, eager and kernel are both far from the truth,
by as much as the processor's order of summation happens to make it, and twice the one error says
nothing of the other. Samples at the limit of what is promised ("extreme") may be like that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch

from sslfast._registry import LOSSES, PRIMITIVES, Loss, Primitive, Sample, Tolerance
from sslfast.testing import NEGLIGIBLE, cast, evaluate, measure

MOST_FLOORS = 64  # of eager's error in float32: of seven digits four are known, at least
JUDGED = [
    pytest.param(spec, sample, id=f"{spec.name}-{sample.name}")
    for spec in (*PRIMITIVES.values(), *LOSSES.values())
    for sample in spec.samples
    if sample.size in ("tiny", "ragged")
]


def formula(spec: Primitive | Loss) -> Callable[..., Any]:
    return spec.eager if isinstance(spec, Loss) else spec.reference


@pytest.mark.parametrize(("spec", "sample"), JUDGED)
def test_eager_knows_the_digits_of_a_sample(
    spec: Primitive | Loss, sample: Sample, generator: torch.Generator
) -> None:
    arguments = sample.make(generator)
    rounded = cast(arguments, torch.float32)
    names = spec.learning(arguments)
    truths = evaluate(formula(spec), cast(rounded, torch.float64), names)
    found = evaluate(formula(spec), rounded, names)
    tolerance = spec.tolerance(arguments) if isinstance(spec, Loss) else Tolerance()
    most = MOST_FLOORS * tolerance.floor * torch.finfo(torch.float32).eps
    for name, truth in truths.items():
        if truth.is_floating_point() and truth.norm() > NEGLIGIBLE:  # 0 by an invariance is exact
            assert max(astuple(measure(found[name], truth))) <= most, name
