"""A plugin of pytest: every test runs once for each compiled fault that none has noticed so far.

SSLFAST_FAULTS holds the numbers of the faults; what was found by which test goes to the file
SSLFAST_FOUND, a line each.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch

from sslfast import _library


class Switched:
    def __init__(self, numbers: list[int], found: Path) -> None:
        library = Path(_library.__file__).parent / _library.LIBRARY_NAME
        self._planted = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "sslfast_planted")
        self._unnoticed = numbers
        self._found = found

    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool:
        for number in tuple(self._unnoticed):
            if self._fails(pyfuncitem, number) and not self._fails(pyfuncitem, 0):
                self._unnoticed.remove(number)
                with self._found.open("a") as file:
                    file.write(f"{number} {pyfuncitem.nodeid}\n")
        if not self._unnoticed:
            pyfuncitem.session.shouldstop = "every fault was noticed"
        return True

    def _fails(self, item: pytest.Function, number: int) -> bool:
        self._planted.value = number
        try:
            _call(item)
        except pytest.skip.Exception:
            return False
        except (Exception, pytest.fail.Exception):
            return True
        finally:
            self._planted.value = 0
        return False


def _call(item: pytest.Function) -> None:
    given = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    for value in given.values():
        if isinstance(value, torch.Generator):
            value.manual_seed(2026)  # as the fixture gives it
    item.obj(**given)


def pytest_configure(config: pytest.Config) -> None:
    numbers = [int(each) for each in os.environ["SSLFAST_FAULTS"].split()]
    config.pluginmanager.register(Switched(numbers, Path(os.environ["SSLFAST_FOUND"])))
