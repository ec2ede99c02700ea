"""``sslfast bench``: choose cases, measure them, print, keep and draw what came out."""

from __future__ import annotations

import argparse
import os
import time
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from sslfast.bench.place import Place
    from sslfast.bench.runner import Options
    from sslfast.bench.suite import Case, Size

LARGEST_QUICK_SIZE = 1024
QUICK_ROUNDS = 5
CUT_SHORT = 3

EPILOG = """\
Each case runs in a process of its own. Its contestants take turns, and one that does not match
the float64 oracle is shown as failed and not reported. Times are minima and medians, memory is
the peak above the inputs with the gradients included, "% of limit" is the least time that the
formula's arithmetic and traffic can take on this machine, measured in the same run and in this
precision, over the time taken. In half precision everyone runs under autocast. On a CPU some
contestants are left out at the largest shapes, where a call takes them seconds; the case names
them. On a GPU times are the device's, with a cold L2 cache; its ledger is
<family>_gpu.csv.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "families",
        nargs="*",
        metavar="family",
        help="families to measure, for example contrastive (default: all; --list names them)",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where to measure (default: cuda where torch sees a GPU, else cpu)",
    )
    parser.add_argument(
        "--dtype",
        type=lambda text: tuple(text.split(",")),
        metavar="T,...",
        help="one or several of fp32, fp32-high, fp32-medium (as of"
        " torch.set_float32_matmul_precision), bf16, fp16 on a CPU (default: fp32), of bf16, fp16,"
        " tf32, fp32 on a GPU (default: bf16)",
    )
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
        help="rows (and features, or length of a list) instead of the cases' own, for example"
        " 1024,4096x256",
    )
    parser.add_argument(
        "--first",
        action="store_true",
        help="of every case its first size alone, and none that eager does not fit",
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
    parser.add_argument(
        "--run",
        metavar="NAME",
        dest="name",
        help="name of the run in the ledger; cases that it already has are not measured again"
        " (default: the time)",
    )
    parser.add_argument(
        "--budget",
        type=_positive,
        metavar="S",
        help="begin no case after so many seconds; exit code 3 where cases are left",
    )
    parser.add_argument("--plots", action="store_true", help="draw the run from its ledger")
    parser.add_argument(
        "--replot", action="store_true", help="draw the last run of the ledgers, measure nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Measure the chosen cases.

    Returns:
        0; 1 where sslfast broke the error rule, or could not run on a backend that nobody named;
        3 where the budget ended before the cases did.
    """
    from sslfast.bench import contestants, suite
    from sslfast.bench.place import Place, default_device, default_precision

    if args.replot:
        return _replot(args)
    for backend in args.backend or ():
        contestants.check_backend(backend)
    device = args.device or default_device()
    places = [Place(device, dtype) for dtype in args.dtype or (default_precision(device),)]
    largest = LARGEST_QUICK_SIZE if args.quick and not args.sizes else None
    cases = suite.select(args.families, args.sizes, largest, device, args.first)
    if not cases:
        raise ValueError("no case has these sizes: sslfast bench --list names the cases")
    if args.list:
        for case in cases:
            print(f"{case.workload.family:<14}{case.name}")
        return 0
    for place in places:
        place.require()
    return _measure(cases, [_options(args, place) for place in places], args)


def _measure(cases: list[Case], each: list[Options], args: argparse.Namespace) -> int:
    from sslfast.bench import ledger, report

    console = report.console()
    report.heading(console, _machine(each))
    begin, code = time.monotonic(), 0
    kept: dict[Path, None] = {}
    work = [(case, options) for options in each for case in cases]
    for left, (case, options) in zip(range(len(work), 0, -1), work, strict=True):
        path = _ledger(args, case.workload.family, options.place)
        if (case.name, options.place.label) in ledger.finished(path, options.run):
            continue
        if args.budget and time.monotonic() - begin > args.budget:
            goes_on = f"--run {options.run} goes on with them"
            console.print(f"{args.budget} s are over with up to {left} cases left: {goes_on}")
            code = code or CUT_SHORT
            break
        code |= _measure_case(case, options, path, console, named=bool(args.backend))
        kept[path] = None
    for path in kept:
        console.print(f"kept in {path}")
        if args.plots:
            _draw(path, console)
    return code


def _measure_case(
    case: Case, options: Options, path: Path, console: Console, *, named: bool
) -> bool:
    """Print one case; whether sslfast was wrong in it, or failed unless `named`, else keep it."""
    from sslfast.bench import ledger, report, runner
    from sslfast.bench.contestants import SSLFAST

    try:
        with console.status(case.name):
            rows = runner.measure(case, options)
    except RuntimeError as error:  # its process ended; the other cases have theirs
        console.print(f"\n[red]{case.name} failed:[/] {error}")
        return True
    report.show(console, case, rows)
    own = [row for row in rows if row.contestant.startswith(SSLFAST)]
    wrong = any(row.red or (row.failure and not named) for row in own)
    if not wrong:
        columns = ledger.GPU_COLUMNS if options.place.is_gpu else ledger.COLUMNS
        ledger.append(path, [row for row in rows if not row.failure], columns)
    return wrong


def _options(args: argparse.Namespace, place: Place) -> Options:
    from sslfast.bench.contestants import default_backend
    from sslfast.bench.runner import Options

    backends = args.backend or ([] if place.is_gpu else [default_backend()])
    return Options(
        run=args.name or _started(),
        threads=args.threads,
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else None),
        backends=tuple(backends),
        peers=not (args.no_peers or args.quick),
        memory=not args.no_memory,
        place=place,
    )


@cache
def _started() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _machine(each: list[Options]) -> list[tuple[str, str]]:
    import torch

    from sslfast._info import cpu_model
    from sslfast.bench import machine

    options = each[0]
    facts = [("torch", torch.__version__), ("commit", machine.commit())]
    if options.place.is_gpu:
        return _gpu(each) + facts
    isas = dict.fromkeys(filter(None, map(machine.isa_of, options.backends)))
    return [
        ("device", cpu_model()),
        *facts,
        ("backend", ", ".join(options.backends)),
        ("dtype", _labels(each)),
        ("ISA", ", ".join(isas) or "not known: the native library is missing"),
        ("threads", str(options.threads)),
        ("load", f"{machine.load():.2f}"),
    ]


def _labels(each: list[Options]) -> str:
    return ", ".join(options.place.label for options in each)


def _gpu(each: list[Options]) -> list[tuple[str, str]]:
    from sslfast.bench import gpu
    from sslfast.bench.contestants import runnable_backends

    found = gpu.identity()
    backends = each[0].backends or tuple(runnable_backends("cuda"))
    return [
        ("device", f"{found.name} ({found.arch})"),
        ("driver", f"{found.driver}, CUDA {found.cuda}, triton {found.triton or 'absent'}"),
        ("dtype", _labels(each)),
        ("backends", ", ".join(backends)),
        ("run", each[0].run),
    ]


def _replot(args: argparse.Namespace) -> int:
    from sslfast.bench import ledger, report

    names = [f"{family}*.csv" for family in args.families] or ["*.csv"]
    found = sorted({path for name in names for path in args.output.glob(name)})
    ledgers = [path for path in found if ledger.is_ledger(path)]
    if not ledgers:
        raise ValueError(f"no ledger in {args.output}: run sslfast bench first")
    for path in ledgers:
        _draw(path, report.console())
    return 0


def _draw(path: Path, console: Console) -> None:
    from sslfast.bench import plots

    for written in plots.draw(path):
        console.print(f"drawn  {written}")


def _ledger(args: argparse.Namespace, family: str, place: Place) -> Path:
    path: Path = args.output / f"{family}{'_gpu' if place.is_gpu else ''}.csv"
    return path


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def _sizes(text: str) -> tuple[Size, ...]:
    from sslfast.bench.suite import parse_size

    try:
        return tuple(map(parse_size, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
