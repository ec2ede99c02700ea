"""The terminal's view of a run: a table a case, and the sentences that its numbers need."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sslfast.bench.contestants import EAGER, SSLFAST
from sslfast.bench.ledger import BOTH, FORWARD, Row
from sslfast.bench.place import CPU
from sslfast.bench.suite import Case

COLUMNS = (
    "forward\nmin ms",
    "fwd+bwd\nmin ms",
    "fwd+bwd\nmedian",
    "peak\nMiB",
    "times\nfaster",
    "times\nsmaller",
    "error\nratio",
    "% of\nlimit",
    "repeats\nbitwise",
)
HOST = "host\nms"  # on a GPU: what launching forward and backward costs
NARROWEST = 104  # columns of a log file, which has no width of its own


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=NARROWEST)


def heading(to: Console, facts: Sequence[tuple[str, str]]) -> None:
    """What the run is on, one fact a line."""
    for name, value in facts:
        to.print(f"[bold]{name:>10}[/]  {value}")


def show(to: Console, case: Case, rows: Sequence[Row]) -> None:
    """One case: its table, who failed and why, and what else weighs on the numbers."""
    to.print()
    to.print(table(case, rows))
    for row in rows:
        if row.failure:
            color = "red" if row.contestant.startswith(SSLFAST) else "yellow"
            to.print(f"  [{color}]{row.contestant} failed:[/] {row.failure}")
    for note in notes(case, rows):
        to.print(f"  {note}", style="dim")


def table(case: Case, rows: Sequence[Row]) -> Table:
    """A line per contestant; ratios are those of forward and backward together."""
    shown = Table(title=case.name, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    on_gpu = any(row.host_ms is not None for row in rows)
    for name in (*COLUMNS, *([HOST] if on_gpu else [])):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in dict.fromkeys(row.contestant for row in rows):
        passes = {row.what: row for row in rows if row.contestant == name and not row.failure}
        if passes:
            host = [_figure(passes[BOTH].host_ms)] if on_gpu else []
            shown.add_row(name, *_numbers(passes[FORWARD], passes[BOTH]), *host)
        else:
            shown.add_row(name, "failed")
    return shown


def notes(case: Case, rows: Sequence[Row]) -> list[str]:
    """What a reader has to know to weigh the numbers of one case."""
    both = [row for row in rows if row.what == BOTH]
    found = [_circumstances(rows[0])]
    found += [f"{row.contestant}: {row.backends}" for row in both if row.backends]
    found += [
        f"roof: the formula's work at the measured {_figure(row.peak_gflops)} GFLOP/s of "
        f"{row.dtype if row.driver else f'{row.isa} in {row.dtype}'} would be "
        f"{_figure(row.best_possible)}x faster than eager"
        for row in both
        if row.contestant == EAGER and row.best_possible
    ]
    found += [
        f"{row.contestant} does not repeat bitwise: {row.repeatable.partition(': ')[2]}"
        for row in both
        if row.repeatable.startswith("no")
    ]
    if both and not any(row.peak_gflops for row in both):
        found.append("no % of limit: the native library is missing, sslfast info says why")
    left_out = () if rows[0].driver else case.left_out(CPU)
    if left_out:
        found.append(f"left out at this size, for the time they take: {', '.join(left_out)}")
    if case.workload.eager_bytes is not None:
        needed = case.workload.eager_bytes(case.shape) / (1 << 30)
        found.append(f"eager is not run: its similarities alone are {needed:.3g} GiB (by formula)")
    return found


def _circumstances(row: Row) -> str:
    if row.driver:
        return f"{row.device}, {row.dtype}, L2 cache flushed before every call"
    policy = f", OMP_WAIT_POLICY={row.wait_policy}" if row.wait_policy else ""
    return f"{row.dtype}, load {row.load:.2f}, {row.threads} threads{policy}"


def _numbers(forward: Row, both: Row) -> tuple[str, ...]:
    return (
        _figure(forward.min_ms),
        _figure(both.min_ms),
        _figure(both.median_ms),
        _figure(both.peak_mib),
        _figure(both.times_faster, "x"),
        _figure(both.times_smaller, "x"),
        _figure(both.error_ratio),
        _figure(both.percent_of_limit),
        both.repeatable.partition(":")[0],
    )


def _figure(value: float | None, unit: str = "") -> str:
    """Three significant digits at most, none invented."""
    if value is None:
        return ""
    if 0 < abs(value) < 0.01:
        return f"{value:.1g}{unit}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{unit}"
