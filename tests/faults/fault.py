"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A mistake that somebody could make, and the tests that should notice.

    Args:
        kind: of mistake, in words.
        file: path from the root of the project.
        where: text of the file around the mistake, with ``{}`` for the part that is replaced.
        old: the part as it is; `where` with it must be in the file exactly once.
        new: the part as it should not be.
        tests: arguments of pytest, from the folder `tests`: the files that concern the part.
        interpreted: the tests run in Triton's interpreter.
    """

    kind: str
    file: str
    where: str
    old: str
    new: str
    tests: str
    interpreted: bool = False

    @property
    def text(self) -> str:
        return self.where.replace("{}", self.old, 1)

    @property
    def is_compiled(self) -> bool:
        """C++ of the CPU: all such faults are compiled at once, one is switched on at a time."""
        return self.file.startswith(("csrc/cpu/", "csrc/include/"))
