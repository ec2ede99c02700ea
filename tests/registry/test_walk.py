"""How far a reader walks: the package's files that one call of a loss passes through."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import sslfast
from sslfast.losses import NTXentLoss

# 10 and 45 before losses compared their batches across ranks and refused forward-mode derivatives.
MOST_FILES, MOST_SWITCHES = 12, 60


def walked(call: Any) -> list[str]:
    """The file of each call of a Python function of the package, in order."""
    package = str(Path(sslfast.__path__[0]))
    files: list[str] = []

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            files.append(frame.f_code.co_filename.removeprefix(package))

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        call()
    finally:
        sys.setprofile(before)
    return files


def test_ntxent_is_read_in_few_files() -> None:
    """Forward and backward on the CPU; the backward pass runs in this thread there."""
    loss, views = NTXentLoss(0.1), [torch.randn(64, 32, requires_grad=True) for _ in range(2)]
    loss(*views).backward()  # what is loaded once is not counted
    files = walked(lambda: loss(*views).backward())
    switches = sum(one != other for one, other in pairwise(files))
    assert any("similarity" in each for each in files)
    assert len(set(files)) <= MOST_FILES, sorted(set(files))
    assert switches <= MOST_SWITCHES, files
