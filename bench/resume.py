"""pytest plugin: a run that was cut short goes on where it stopped.

``pytest -p sslfast.bench.resume`` with ``SSLFAST_RESUME=FILE`` writes the tests that passed to
that file, one a line, and leaves out those that it already names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "SSLFAST_RESUME"


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get(VARIABLE):
        config.pluginmanager.register(_Resume(Path(os.environ[VARIABLE]), config), "resume-passed")


class _Resume:
    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._path = path
        # Under pytest-xdist every process sees its own tests, and the first one those of all.
        self._writes = not hasattr(config, "workerinput")
        self._passed: set[str] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        before = passed(self._path)
        again = [item for item in items if item.nodeid not in before]
        if len(again) < len(items):
            config.hook.pytest_deselected(items=[i for i in items if i.nodeid in before])
            items[:] = again

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        if report.when == "teardown" and report.passed and report.nodeid in self._passed:
            self._write([report.nodeid])

    def _write(self, nodes: Sequence[str]) -> None:
        if self._writes:
            with self._path.open("a") as file:
                file.writelines(f"{node}\n" for node in nodes)


def passed(path: Path) -> set[str]:
    """The tests that a file names; none where there is no file."""
    return set(path.read_text().splitlines()) if path.exists() else set()
