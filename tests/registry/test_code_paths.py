"""The numbers once more, as another processor would compute them.

torch's products, sums and exponentials follow the processor; a verdict must not. A process of its
own takes their oldest code paths, which no machine takes by default: there MKL adds up in short
chains, where for AVX-512 it adds a whole row.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import density
import pytest
import test_losses
import test_numbers
import torch

HERE = Path(__file__).parent
OTHER_PATH = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def selected() -> list[str]:
    """What is torch's own arithmetic on both sides: the reference backend, where sums round."""
    numbers = [f"test_numbers.py::{case}-bfloat16" for case in test_numbers.CASES]
    small = [case for case in test_losses.CASES if case.sample.size != "typical"]
    losses = [f"test_losses.py::{case}-float32" for case in small]
    return [
        each.replace("::", "::test_values_and_gradients[reference-") + "]"
        for each in (*numbers, *losses)
    ]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")
def test_numbers_hold_on_another_code_path() -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*plain, *selected()],
        env={**inherited, **OTHER_PATH, density.SWITCH: "full"},  # `selected` says what
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
