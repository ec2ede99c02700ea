"""``sslfast resources``: what each GPU kernel takes of each chip, compiled without having one.

A backend contributes through a module ``sslfast.bench.resources_<backend>`` named in `SOURCES`,
with two functions:

    missing() -> str | None
        why nothing can be compiled here, ``None`` where it can;
    rows(primitives, archs, jobs, brief) -> list[Row]
        a `Row` for every kernel that a backend starts for the "typical" samples of these
        primitives (`sslfast._registry.Primitive`), on every arch that it knows of these names
        (keys of `sslfast.triton._launch.TARGETS`), with at most `jobs` processes at once. If
        `brief`, the rows of what comes first alone, each as it stands among the others.

The modules enumerate the registry. `Row.key` must be unique; rows may come in any order. A row's
``compiler`` names whatever decides its numbers, and its version: with another one the table is
not compared, but spills and limits still are.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sslfast._registry import PRIMITIVES, Primitive
from sslfast.triton._launch import TARGETS

if TYPE_CHECKING:
    from rich.table import Table

SOURCES = ("cuda", "triton")
TENSOR_MEMORY = 512  # columns of tensor memory of a multiprocessor, where it has any
HOW_TO_WRITE = "`sslfast resources --write` renews the table"

EPILOG = """\
Registers are those of a thread; spills are the bytes of a thread that did not fit into them, and
must be 0; shared memory is that of a block and must fit the chip. The matrix column names the
matrix instructions and the type of their operands; a kernel that multiplies without them has none.
"""


@dataclass(frozen=True)
class Row:
    """One compiled kernel.

    Args:
        backend: as in `sslfast._backends.ORDER`.
        primitive: whose launcher starts it.
        kernel: its name.
        arch: what it was compiled for, a key of `TARGETS`.
        case: the first of the sample, dtype and float32 precision that start it.
        constants: its compile-time constants.
        warps: of a block.
        stages: of its software pipeline, 0 where the word means nothing.
        registers: of a thread (vector registers on AMD).
        spills: bytes of local memory and stack of a thread (spilled registers on AMD).
        shared: bytes of shared memory of a block.
        tensor_memory: columns of it, on chips that have it.
        matrix: matrix instructions with the type of their operands.
        compiler: with its version.
    """

    backend: str
    primitive: str
    kernel: str
    arch: str
    case: str
    constants: str
    warps: int
    stages: int
    registers: int
    spills: int
    shared: int
    tensor_memory: int
    matrix: str
    compiler: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.backend, self.primitive, self.kernel, self.arch, self.case, self.constants

    @property
    def limit(self) -> int:
        """Bytes of shared memory that a block may have on this chip."""
        return TARGETS[self.arch].shared

    @property
    def failures(self) -> list[str]:
        """What no kernel may do, whatever the table says."""
        where = f"{self.kernel} on {self.arch}, {self.case} ({self.constants})"
        found = []
        if self.spills:
            found.append(f"{where}: {self.spills} spilled")
        if self.shared > self.limit:
            found.append(f"{where}: {self.shared} bytes of shared memory, above {self.limit}")
        if self.tensor_memory > TENSOR_MEMORY:
            found.append(f"{where}: {self.tensor_memory} columns of tensor memory")
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "primitives", nargs="*", metavar="primitive", help="primitives to compile (default: all)"
    )
    parser.add_argument(
        "--arch",
        action="append",
        choices=tuple(TARGETS),
        help="chip to compile for; may be repeated (default: all)",
    )
    parser.add_argument(
        "--backend",
        action="append",
        choices=SOURCES,
        help="likewise, of the kernels (default: all)",
    )
    parser.add_argument("--write", action="store_true", help="keep the rows in the table")
    parser.add_argument(
        "--check", action="store_true", help="compare with the table; 1 where they differ"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench", "results"),
        metavar="DIR",
        help="folder of resources.csv (default: bench/results)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="J",
        help="processes that compile at once (default: the processors of this machine)",
    )


def run(args: argparse.Namespace) -> int:
    """Compile, print and keep or compare; 0, or 1 where a kernel breaks a limit or the table."""
    from sslfast.bench.report import console

    part = Part(tuple(args.primitives), tuple(args.arch or ()), tuple(args.backend or ()))
    to = console()
    with to.status("compiling"):
        fresh = compiled(part, args.jobs)
    for shown in tables(fresh):
        to.print(shown)
    failures = [failure for row in fresh for failure in row.failures]
    path = args.output / "resources.csv"
    kept = read(path)
    if args.check:
        differing, skipped = compare(fresh, [row for row in kept if part.covers(row)])
        failures += differing
        for reason in skipped:
            to.print(f"not compared: {reason}", style="yellow")
    if args.write:
        write(path, ordered([*(row for row in kept if not part.covers(row)), *fresh]))
        to.print(f"kept in {path}")
    for failure in failures:
        to.print(failure, style="red")
    return int(bool(failures))


@dataclass(frozen=True)
class Part:
    """The rows of these primitives, archs and backends; of all where none is named.

    `brief`: of each only what comes first, as a source understands it.
    """

    primitives: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    brief: bool = False

    def __str__(self) -> str:
        return "-".join((*self.backends, *self.primitives, *self.archs))

    def covers(self, row: Row) -> bool:
        return (
            row.primitive in (self.primitives or (row.primitive,))
            and row.arch in (self.archs or (row.arch,))
            and row.backend in (self.backends or (row.backend,))
        )


def compiled(part: Part, jobs: int) -> list[Row]:
    """The rows of a part of the table, in its order.

    Raises:
        ValueError: no source has one of the primitives, or a source cannot compile here.
    """
    rows: list[Row] = []
    for backend, primitives in _wanted(part).items():
        source = import_module(f"sslfast.bench.resources_{backend}")
        reason = source.missing()
        if reason is not None:
            raise ValueError(f"{backend} cannot compile: {reason}")
        rows += source.rows(primitives, part.archs or tuple(TARGETS), jobs, part.brief)
    twice = [key for key, count in Counter(row.key for row in rows).items() if count > 1]
    assert not twice, f"more than one row is {twice[0]}"
    return ordered(rows)


def _wanted(part: Part) -> dict[str, list[Primitive]]:
    """The primitives that each source has to compile."""
    known = {
        backend: [each for each in PRIMITIVES.values() if backend in each.implementations]
        for backend in part.backends or SOURCES
    }
    names = {each.name for primitives in known.values() for each in primitives}
    unknown = sorted(set(part.primitives) - names)
    if unknown:
        raise ValueError(f"primitive must be one of {sorted(names)}, got {unknown}")
    chosen = {
        backend: [p for p in primitives if p.name in (part.primitives or names)]
        for backend, primitives in known.items()
    }
    return {backend: primitives for backend, primitives in chosen.items() if primitives}


def ordered(rows: Iterable[Row]) -> list[Row]:
    archs = {arch: index for index, arch in enumerate(TARGETS)}
    return sorted(
        rows,
        key=lambda row: (row.backend, row.primitive, archs[row.arch], row.kernel, row.key),
    )


def compare(fresh: Sequence[Row], kept: Sequence[Row]) -> tuple[list[str], list[str]]:
    """How freshly compiled rows differ from the table, and what could not be compared and why.

    Registers, shared memory and matrix instructions must be those of the table, and each kernel
    must be in it; a backend that another compiler has compiled is not compared.
    """
    differing, skipped = [], []
    for backend in sorted({row.backend for row in (*fresh, *kept)}):
        new = {row.key: row for row in fresh if row.backend == backend}
        old = {row.key: row for row in kept if row.backend == backend}
        now, then = ({row.compiler for row in rows.values()} for rows in (new, old))
        if now and then and now != then:
            skipped.append(f"{backend} rows are of {sorted(then)}, here is {sorted(now)}")
            continue
        for key in sorted({*new, *old}):
            found = _difference(new.get(key), old.get(key))
            if found:
                differing.append(f"{' '.join(key)}: {found}; {HOW_TO_WRITE}")
    return differing, skipped


def _difference(new: Row | None, old: Row | None) -> str:
    if new is None or old is None:
        return "not in the table" if old is None else "in the table, and no longer compiled"
    return ", ".join(
        f"{each.name} {getattr(new, each.name)} instead of {getattr(old, each.name)}"
        for each in fields(Row)
        if getattr(new, each.name) != getattr(old, each.name)
    )


def read(path: Path) -> list[Row]:
    """The table; no rows where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(
                **{
                    each.name: int(cells[each.name]) if each.type == "int" else cells[each.name]
                    for each in fields(Row)
                }
            )
            for cells in csv.DictReader(file)
        ]


def write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([each.name for each in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each primitive and chip, two lines a kernel."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for (primitive, arch), group in groupby(rows, lambda row: (row.primitive, row.arch)):
        limit = f"{TARGETS[arch].shared} bytes of shared memory"
        shown = Table(title=f"{primitive} on {arch} ({limit})", box=SIMPLE_HEAD)
        shown.title_justify = "left"
        shown.add_column("kernel", no_wrap=True)
        shown.add_column("case and constants")
        for name in ("warps", "stages", "regs", "spills", "shared", "%"):
            shown.add_column(name, justify="right", no_wrap=True)
        shown.add_column("matrix")
        for row in group:
            shown.add_row(*_cells(row), style="red" if row.failures else None)
        yield shown


def _cells(row: Row) -> Iterator[str]:
    yield row.kernel.removeprefix(f"{row.primitive}_").removesuffix("_kernel")
    yield f"{row.case}\n[dim]{_terse(row.constants)}[/]"
    numbers = (row.warps, row.stages, row.registers, row.spills, row.shared)
    yield from map(str, numbers)
    yield f"{100 * row.shared / row.limit:.0f}"
    yield row.matrix


def _terse(constants: str) -> str:
    """Switches by name where they are on."""
    given = (part for part in constants.split() if not part.endswith("=False"))
    return " ".join(part.removesuffix("=True") for part in given)
