"""Numbers that stand in Python and in C++: the library exports its own, and they must agree."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from sslfast import _library
from sslfast._core import packed
from sslfast._core.similarity import logsumexp_keep
from sslfast._core.sorting.network import RELAXATIONS
from sslfast.ops.correlation import frobenius_cost

# By name, the modules that have it.
KNOWN = {
    "LARGEST_BLOCK": logsumexp_keep,
    "CACHE_HEADER": logsumexp_keep,
    "LARGEST_STRIP_ROWS": packed,
    "STRIP_BYTES": packed,
    "PACKED_DEPTH": frobenius_cost,
    "PANEL": frobenius_cost,
}


@pytest.fixture
def native() -> Any:
    reason = _library.missing_reason()
    if reason is not None:
        pytest.skip(reason)
    return import_module("sslfast._native")


def test_constants_are_those_of_the_kernels(native: Any) -> None:
    assert native.constants() == {name: getattr(module, name) for name, module in KNOWN.items()}


def test_enums_are_those_of_the_kernels(native: Any) -> None:
    assert native.enums() == {
        "Keep": {each.name: each.value for each in logsumexp_keep.Keep},
        "RELAXATIONS": {name: number for number, name in enumerate(RELAXATIONS)},
    }
