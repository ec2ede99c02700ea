"""``sslfast bench``: choose cases, measure them, print, keep and draw what came out."""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from sslfast.bench.ledger import Row
    from sslfast.bench.runner import Options
    from sslfast.bench.suite import Case

LARGEST_QUICK_SIZE = 1024
QUICK_ROUNDS = 5

EPILOG = """\
Each case runs in a process of its own. Its contestants take turns, and one that does not match
the float64 oracle is shown as failed and not reported. Times are minima and medians, memory is
the peak above the inputs with the gradients included, "% of limit" is the least time that the
formula's arithmetic and traffic can take on this machine, measured in the same run, over the
time taken.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "families", nargs="*", metavar="family", help="families to measure (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"sizes up to {LARGEST_QUICK_SIZE}, {QUICK_ROUNDS} rounds, no torch.compile or peers",
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=(),
        metavar="N[xD],...",
        help="rows (and features) instead of the cases' own, for example 1024,4096x256",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="T",
        help="threads of every contestant (default: the processors of this machine)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="R",
        help="rounds of the clock (default: as many of 3 to 50 as fit into 25 seconds)",
    )
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        help="backend to measure, for example cpu, cpu:avx2, reference; may be repeated"
        " (default: the one that would be chosen)",
    )
    parser.add_argument("--no-peers", action="store_true", help="sslfast and eager only")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench", "results"),
        metavar="DIR",
        help="folder of the CSV ledgers and plots (default: bench/results)",
    )
    parser.add_argument("--plots", action="store_true", help="draw the run from its ledger")
    parser.add_argument(
        "--replot", action="store_true", help="draw the last run of the ledgers, measure nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Measure the chosen cases; 0, or 1 where a contestant broke the error rule."""
    from sslfast.bench import contestants, suite

    if args.replot:
        return _replot(args)
    for backend in args.backend or ():
        contestants.check_backend(backend)
    largest = LARGEST_QUICK_SIZE if args.quick and not args.sizes else None
    cases = suite.select(args.families, args.sizes, largest)
    if not cases:
        raise ValueError("no case has these sizes: sslfast bench --list names the cases")
    if args.list:
        for case in cases:
            print(f"{case.workload.family:<14}{case.name}")
        return 0
    return _measure(cases, args)


def _measure(cases: list[Case], args: argparse.Namespace) -> int:
    from sslfast.bench import ledger, report, runner

    options = _options(args)
    console = report.console()
    report.heading(console, _machine(options))
    kept: dict[str, list[Row]] = defaultdict(list)
    red = False
    for case in cases:
        with console.status(case.name):
            rows = runner.measure(case, options)
        report.show(console, case, rows)
        good = [row for row in rows if not row.failure]
        red |= any(row.red for row in rows)
        kept[case.workload.family] += good
        ledger.append(_ledger(args, case.workload.family), good)
    for family in kept:
        console.print(f"kept in {_ledger(args, family)}")
        if args.plots:
            _draw(_ledger(args, family), console)
    return int(red)


def _options(args: argparse.Namespace) -> Options:
    from sslfast.bench.contestants import default_backend
    from sslfast.bench.runner import Options

    return Options(
        run=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        threads=args.threads,
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else None),
        backends=tuple(args.backend or [default_backend()]),
        peers=not (args.no_peers or args.quick),
        memory=not args.no_memory,
    )


def _machine(options: Options) -> list[tuple[str, str]]:
    import torch

    from sslfast._info import cpu_model
    from sslfast.bench import machine

    return [
        ("device", cpu_model()),
        ("torch", torch.__version__),
        ("commit", machine.commit()),
        ("backend", ", ".join(options.backends)),
        ("ISA", machine.best_isa() or "not known: the native library is missing"),
        ("threads", str(options.threads)),
        ("load", f"{machine.load():.2f}"),
    ]


def _replot(args: argparse.Namespace) -> int:
    from sslfast.bench import report

    ledgers = [_ledger(args, family) for family in args.families] or sorted(
        args.output.glob("*.csv")
    )
    if not ledgers:
        raise ValueError(f"no ledger in {args.output}: run sslfast bench first")
    for path in ledgers:
        _draw(path, report.console())
    return 0


def _draw(path: Path, console: Console) -> None:
    from sslfast.bench import plots

    for written in plots.draw(path):
        console.print(f"drawn  {written}")


def _ledger(args: argparse.Namespace, family: str) -> Path:
    path: Path = args.output / f"{family}.csv"
    return path


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def _sizes(text: str) -> tuple[dict[str, int], ...]:
    from sslfast.bench.suite import parse_size

    try:
        return tuple(dict(parse_size(part)) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
