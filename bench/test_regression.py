"""Regression suite: ``pytest bench/test_regression.py --benchmark-autosave``.

Every registered loss on its tiny and typical samples, forward and backward, on each backend that
runs here, in this process. Compare two commits with ``pytest-benchmark compare``; for ratios to
other libraries use ``sslfast bench``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sslfast._core.tree import learning
from sslfast._registry import LOSSES, Loss, Sample
from sslfast.bench.contestants import Contestant, forward_backward, runnable_backends
from sslfast.bench.suite import SEED
from sslfast.testing import cast


def _samples() -> Iterator[Any]:
    for loss in LOSSES.values():
        for sample in loss.samples:
            if sample.size in ("tiny", "typical"):
                yield pytest.param(loss, sample, id=f"{loss.name}-{sample.size}-{sample.name}")


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize(("loss", "sample"), _samples())
def test_forward_backward(benchmark: Any, loss: Loss, sample: Sample, backend: str) -> None:
    inputs = cast(sample.make(torch.Generator().manual_seed(SEED)), torch.float32)
    leaves = loss.learning(inputs)
    for leaf in leaves:
        learning(inputs[leaf])
    contestant = Contestant("sslfast", loss.functional, backend)
    benchmark.group = f"{loss.name} {sample.name}"
    (value,), gradients = benchmark(forward_backward, contestant, inputs, leaves)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
