"""The command line: ``sslfast info | bench | resources | pretrain | evaluate``.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``. Only the module of
the command that was typed is imported, so ``sslfast info`` works where an extra that another
command needs is absent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

BAD_INPUT = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    name: str
    module: str
    extra: str  # the extra of the package that holds what the command needs beside torch
    summary: str


COMMANDS = (
    Command("info", "sslfast._info", "", "what this machine and this installation can run"),
    Command(
        "bench",
        "sslfast.bench.command",
        "bench",
        "measure the losses against eager PyTorch and the libraries that are installed",
    ),
    Command(
        "resources",
        "sslfast.bench.resources",
        "bench",
        "compile the GPU kernels for every chip and show what they take of it",
    ),
    Command(
        "pretrain",
        "sslfast.pretrain.command",
        "pretrain",
        "pretrain an encoder without labels on a folder of images",
    ),
    Command(
        "evaluate",
        "sslfast.evaluation.command",
        "pretrain",
        "measure kNN accuracy and collapse of a pretrained encoder",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 with one line on stderr for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((c for c in COMMANDS if argv and argv[0] == c.name), None)
    try:
        args = _parser(chosen).parse_args(argv)
        code: int = args.run(args)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except ImportError as error:
        return _fail(chosen, _missing(error, chosen))
    except (ValueError, TypeError, OSError) as error:
        return _fail(chosen, str(error))


def _parser(chosen: Command | None) -> argparse.ArgumentParser:
    """The whole parser, filled in for the chosen command and summarised for the others."""
    parser = argparse.ArgumentParser(
        prog="sslfast",
        description="Fused losses, benchmarks and pretraining for self-supervised learning.",
        epilog="sslfast COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"sslfast {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name, help=command.summary, description=_sentence(command.summary)
        )
        if command is chosen:
            module = import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _version() -> str:
    try:
        return version("sslfast")
    except PackageNotFoundError:
        return "not installed: run from its sources"


def _missing(error: ImportError, command: Command | None) -> str:
    """An absent package by name with its install line; other import errors as they are."""
    absent = (error.name or "").partition(".")[0]
    own = absent in ("", "sslfast") or not isinstance(error, ModuleNotFoundError)
    if own or command is None or not command.extra:
        return str(error)
    return f'{absent} is not installed: pip install "sslfast[{command.extra}]"'


def _fail(command: Command | None, message: str) -> int:
    name = "sslfast" if command is None else f"sslfast {command.name}"
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
