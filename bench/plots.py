"""Plots made from a ledger and from nothing else: ``sslfast bench --replot`` draws them again."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import use
from matplotlib.figure import Figure

from sslfast.bench import ledger
from sslfast.bench.contestants import CHUNKED, COMPILE, EAGER, SSLFAST

Rows = Sequence[dict[str, str]]
SIZE = re.compile(r" (\w)=\d+")  # in the name of a case

FIXED = {EAGER: "#4c566a", COMPILE: "#6b8cae", CHUNKED: "#9a9a9a"}
PEERS = ("#b48a5a", "#8a9a5b", "#7d5a8c", "#3f7f7a", "#a0606a", "#5f7fa8")  # in the ledger's order
OWN = ("#d62728", "#f4803c", "#8c1d40", "#f2a7a0")  # sslfast's backends, in the ledger's order

use("Agg")


def draw(path: Path) -> list[Path]:
    """Draw the last run of a ledger beside it; returns the files written.

    Of several dtypes the one with most rows.
    """
    rows = [row for row in ledger.latest(ledger.read(path)) if row["what"] == ledger.BOTH]
    dtypes = Counter(row["dtype"] for row in rows)
    rows = [row for row in rows if row["dtype"] == dtypes.most_common(1)[0][0]]
    drawn = {
        "time": _against_size(rows, "min_ms", "forward + backward, ms (minimum)"),
        "memory": _against_size(rows, "peak_mib", "peak memory above the inputs, MiB"),
        "ratios": _ratios(rows),
        "roofline": _roofline(rows),
    }
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            target = path.with_name(f"{path.stem}_{name}.png")
            figure.savefig(target, dpi=150)
            written.append(target)
    return written


def _against_size(rows: Rows, column: str, label: str) -> Figure | None:
    """A curve per contestant over the rows, for the workload and width of most sizes."""
    by_workload: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["N"] and row[column]:
            by_workload[SIZE.split(row["case"])[0], row["D"]].append(row)
    if not by_workload:
        return None
    found = max(by_workload.items(), key=lambda item: len({r["N"] for r in item[1]}))
    (workload, _), chosen = found
    figure, axes = _figure(f"{workload}, {_machine(chosen[0])}")
    styles = _styles(chosen)
    for contestant in _contestants(chosen):
        points = sorted(
            (int(row["N"]), float(row[column])) for row in chosen if row["contestant"] == contestant
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=contestant, **styles[contestant])
    rows, *others = SIZE.findall(chosen[0]["case"])
    width = f" ({others[-1]} = {chosen[0]['D']})" if others else ""
    axes.set(xscale="log", yscale="log", xlabel=f"{rows}{width}", ylabel=label)
    sizes = sorted({int(row["N"]) for row in chosen})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _ratios(rows: Rows) -> Figure | None:
    """How many times faster than eager each contestant is, a group of bars per case."""
    rows = [row for row in rows if row["times_faster"] and row["contestant"] != EAGER]
    if not rows:
        return None
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        groups[row["case"]].append(row["contestant"])
    cases = list(groups)
    figure, axes = _figure(_machine(rows[0]))
    height = 0.8 / max(map(len, groups.values()))
    styles = _styles(rows)
    for contestant in _contestants(rows):
        chosen = [row for row in rows if row["contestant"] == contestant]
        places = [
            cases.index(case) + height * (present.index(contestant) - (len(present) - 1) / 2)
            for case, present in groups.items()
            if contestant in present
        ]
        values = [float(row["times_faster"]) for row in chosen]
        bars = axes.barh(places, values, height, label=contestant, **styles[contestant])
        axes.bar_label(bars, [f"{value:.1f}x" for value in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.set_xlabel("times faster than eager, forward + backward (minima)")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def _roofline(rows: Rows) -> Figure | None:
    """Reached FLOP/s over arithmetic intensity, under the machine's measured roof."""
    rows = [row for row in rows if row["gflops"] and row["gbytes"] and row["peak_gflops"]]
    if not rows:
        return None
    peak = max(float(row["peak_gflops"]) for row in rows)
    bandwidth = max(float(row["peak_gbytes"]) for row in rows)
    reached = [(float(row["gflops"]), float(row["gbytes"]), row) for row in rows]
    intensities = [gflops / gbytes for gflops, gbytes, _ in reached]
    span = [min(1.0, *intensities), 2 * max(peak / bandwidth, *intensities)]
    corner = peak / bandwidth
    figure, axes = _figure(f"roofline, {_machine(rows[0])}")
    ends = sorted({*span, corner})
    axes.plot(ends, [min(peak, bandwidth * end) for end in ends], color="black", linewidth=1)
    for gflops, gbytes, row in reached:
        axes.plot(gflops / gbytes, gflops, marker="o", linestyle="none", label=row["case"])
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _figure(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _machine(row: dict[str, str]) -> str:
    if row.get("driver"):
        return f"{row['device']}, {row['dtype']}"
    isa = row["isa"] or "ISA unknown"
    return f"{row['device']}, {row['threads']} threads, {isa}, {row['dtype']}"


def _contestants(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["contestant"] for row in rows))


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """sslfast stands out; the others share the muted end of the palette."""
    found = _contestants(rows)
    own = [name for name in found if name.startswith(SSLFAST)]
    others = [name for name in found if name not in (*own, *FIXED)]
    colors = {name: PEERS[i % len(PEERS)] for i, name in enumerate(others)}
    styles: dict[str, dict[str, Any]] = {n: {"color": c} for n, c in {**FIXED, **colors}.items()}
    styles.update((name, {"color": OWN[i % len(OWN)], "zorder": 3}) for i, name in enumerate(own))
    return styles
