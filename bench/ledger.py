"""The ledgers: one CSV row per case, contestant and pass, with what is needed to judge it.

A CPU and a GPU have a ledger each, ``<family>.csv`` and ``<family>_gpu.csv``: they differ in the
columns that say what machine the row belongs to.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

FORWARD = "forward"
BOTH = "forward+backward"


@dataclass(frozen=True)
class Row:
    """One contestant's reading. Times in ms, memory in MiB, rates in GFLOP/s and GB/s.

    ``None`` means not measured or not applicable and is an empty cell. ``failure`` is the reason
    why there is no reading; such a row is printed and never written.
    """

    run: str  # UTC time at which the run began, shared by its rows
    commit: str
    sslfast: str
    torch: str
    python: str
    device: str
    isa: str  # instruction set; a GPU's compute capability, sm_90
    threads: int
    wait_policy: str
    load: float  # one-minute load average when the case began
    family: str
    case: str
    subject: str
    N: int | None  # rows of the case, whatever their letter
    D: int | None  # their width
    dtype: str  # of the rows; of float32 also what products make of it, "float32 high"
    contestant: str
    version: str  # of another library's contestant
    what: str  # FORWARD or BOTH
    rounds: int
    median_ms: float | None = None
    min_ms: float | None = None
    peak_mib: float | None = None  # above the inputs, gradients included
    times_faster: float | None = None  # eager's minimum over this minimum
    times_smaller: float | None = None  # eager's peak over this peak
    best_possible: float | None = None  # eager's minimum over the time of these FLOPs at the peak
    error: float | None = None  # largest relative L2 error of values and gradients to float64
    error_ratio: float | None = None  # by the error rule: over eager's, or over the rounding floor
    repeatable: str = ""  # "yes": bitwise the same again and with one thread
    gflops: float | None = None
    gbytes: float | None = None
    peak_gflops: float | None = None
    peak_gbytes: float | None = None
    percent_of_limit: float | None = None
    driver: str = ""  # from here on a GPU's
    cuda: str = ""
    triton: str = ""
    backends: str = ""  # that sslfast's primitives ran on
    host_ms: float | None = None  # of the host, to launch one call
    failure: str = ""

    @property
    def red(self) -> bool:
        """It ran and broke the error rule, rather than not being able to run."""
        return bool(self.failure) and self.error is not None


GPU_ALONE = ("driver", "cuda", "triton", "backends", "host_ms")
CPU_ALONE = ("threads", "wait_policy", "load")
COLUMNS = tuple(f.name for f in fields(Row) if f.name not in ("failure", *GPU_ALONE))
GPU_COLUMNS = tuple(f.name for f in fields(Row) if f.name not in ("failure", *CPU_ALONE))


def append(path: Path, rows: Iterable[Row], columns: tuple[str, ...] = COLUMNS) -> None:
    """Append rows to a ledger, which is created with its header where it does not exist.

    Raises:
        ValueError: a row has a failure, or the file has other columns.
    """
    rows = list(rows)
    for row in rows:
        if row.failure:
            raise ValueError(f"{row.case}, {row.contestant}: {row.failure}; it is not reported")
    if path.exists() and _header(path) != columns:
        raise ValueError(f"{path} has other columns than this version writes: move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(columns)
        writer.writerows([_cell(getattr(row, column)) for column in columns] for row in rows)


def is_ledger(path: Path) -> bool:
    """Other tables may lie in the same folder."""
    return _header(path) in (COLUMNS, GPU_COLUMNS)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a ledger as text, oldest first."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def latest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of the last run in a ledger."""
    return [row for row in rows if row["run"] == rows[-1]["run"]]


def finished(path: Path, run: str) -> set[tuple[str, str]]:
    """(case, dtype) that a run has rows of; none where there is no ledger."""
    rows = read(path) if path.exists() else []
    return {(row["case"], row["dtype"]) for row in rows if row["run"] == run}


def _header(path: Path) -> tuple[str, ...]:
    with path.open(newline="") as file:
        return tuple(next(csv.reader(file), ()))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
