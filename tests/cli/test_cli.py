"""The command line: help of every command, one line and code 2 for bad input."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from places import ROOT

from sslfast import _info, cli
from sslfast._registry import LOSSES, PRIMITIVES


def exit_code(*argv: str) -> int:
    """The code of a command, whether returned or raised by argparse."""
    try:
        return cli.main(argv)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize("command", [command.name for command in cli.COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: sslfast {command}" in text
    summary = next(c.summary for c in cli.COMMANDS if c.name == command)
    assert summary.split()[0].capitalize() in text


def test_top_level_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for command in cli.COMMANDS:
        assert command.name in text
        assert command.summary in text


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((), "COMMAND"),
        (("train",), "train"),
        (("info", "--nonsense"), "--nonsense"),
        (("bench", "no-such-family"), "no-such-family"),
        (("bench", "--sizes", "0"), "'0'"),
        (("bench", "--sizes", "12x"), "'12x'"),
        (("bench", "--threads", "0"), "'0'"),
        (("bench", "--rounds", "few"), "'few'"),
        (("bench", "--backend", "gpu", "--list"), "gpu"),
        (("bench", "--replot", "--output", "no/such/folder"), "no/such/folder"),
    ],
)
def test_bad_input_is_named_and_exits_with_2(
    argv: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*argv) == 2
    captured = capsys.readouterr()
    assert named in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_info, "run", interrupted)
    assert exit_code("info") == 130


def test_absent_extra_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builtins, "__import__", _importing_all_but("rich"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sslfast.bench.report", raising=False)
    assert exit_code("bench", "--quick", "--sizes", "2x2") == 2
    assert 'rich is not installed: pip install "sslfast[bench]"' in capsys.readouterr().err


def _importing_all_but(absent: str) -> Callable[..., Any]:
    original = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=absent)
        return original(name, *args, **kwargs)

    return importing


def test_info_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("info") == 0
    text = capsys.readouterr().out
    for name in (*PRIMITIVES, *LOSSES):
        assert name in text


def test_info_runs_as_a_process_of_its_own() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "sslfast.cli", "info"], capture_output=True, text=True, check=True
    )
    assert "threads" in finished.stdout


def test_markdown_table_has_a_row_per_primitive(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("info", "--markdown") == 0
    printed = capsys.readouterr().out.strip()
    assert printed == _info.readme_table()
    head, rule, *rows = (line.replace("\\|", "") for line in printed.splitlines())
    assert [row.split("|")[1].strip(" `") for row in rows] == list(PRIMITIVES)
    assert {row.count("|") for row in rows} == {head.count("|")} == {rule.count("|")}


def test_readme_table_is_current() -> None:
    """After a change of the registry put `sslfast info --markdown` between the markers."""
    readme = (ROOT / "README.md").read_text()
    begin, end = _info.README_MARKERS
    assert begin in readme
    assert readme.split(begin)[1].split(end)[0].strip() == _info.readme_table()
