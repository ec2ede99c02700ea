"""Imports run one way: what each layer of the package may import, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslfast

PACKAGE = Path(sslfast.__path__[0])

NATIVE = {"_library", "_nvrtc"}
BACKENDS = {"cpu", "triton", "cuda"}
SHARED = {"_core", "_registry"}
OPS = {"ops", "_backends", *BACKENDS, *SHARED}
LOSSES = {"losses", "distributed", "ops", "_backends", *SHARED}
USERS = {"losses", "functional", "masking", "data", "distributed", "evaluation", "models"}

# By layer, the first name below `sslfast`: those that it may import. Whoever stands above all of
# them, as the command line does, is not listed.
MAY_IMPORT = {
    "_core": {"_core"},
    "_registry": {"_core"},
    "_library": {"_core"},
    "_nvrtc": {"_core"},
    "_memory": {"_memory", "_core"},
    "cpu": {"cpu", "_core", *NATIVE},
    "triton": {"triton", "_core", *NATIVE},
    "cuda": {"cuda", "_core", *NATIVE},
    "_backends": {*SHARED, *NATIVE},
    "ops": OPS,
    "distributed": {"distributed", "ops", "_core"},
    "losses": LOSSES,
    "functional": {"losses"},
    "models": {"models", "_core"},
    "data": {"data", "_core"},
    "masking": {"masking", *OPS},
    "evaluation": {"evaluation", "data", "models", *LOSSES},
    "testing": {"_memory", "_backends", *SHARED},
    "pretrain": {"pretrain", "_memory", *USERS, *OPS},
}
FREE = {"__init__", "_info", "cli"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and layer of every import of the package, within functions too, and of module names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "sslfast":
            names = [f"sslfast.{each.name}" for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.replace(".", "").isidentifier() else []
        else:
            continue
        for name in names:
            if name == "sslfast" and not isinstance(node, ast.Constant):
                yield node.lineno, "__init__"
            elif name.startswith("sslfast."):
                yield node.lineno, name.split(".")[1]


def upwards(path: Path, allowed: set[str]) -> list[str]:
    return [
        f"{path.name}:{line}: {layer_of(path)} imports {layer}"
        for line, layer in imported(path)
        if layer not in allowed and (PACKAGE / layer).exists() | (PACKAGE / f"{layer}.py").exists()
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_file_has_a_layer() -> None:
    layers = {layer_of(path) for path in FILES if not path.is_relative_to(PACKAGE / "bench")}
    assert layers - {*MAY_IMPORT, *FREE, "csrc"} == set()


@pytest.mark.parametrize("layer", sorted(MAY_IMPORT))
def test_a_layer_imports_only_what_lies_below(layer: str) -> None:
    found = [
        wrong
        for path in FILES
        if layer_of(path) == layer
        for wrong in upwards(path, MAY_IMPORT[layer])
    ]
    assert not found, "\n".join(found)


def test_the_layers_are_ordered() -> None:
    """No layer may import another that may import it, by whatever way."""
    below = {layer: set(allowed) - {layer} for layer, allowed in MAY_IMPORT.items()}
    while below:
        lowest = {layer for layer, allowed in below.items() if not allowed & set(below)}
        assert lowest, f"these import one another: {sorted(below)}"
        below = {layer: allowed for layer, allowed in below.items() if layer not in lowest}


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("from sslfast.ops.similarity import logsumexp\n", 1),
        ("import torch\nimport sslfast.triton._launch as launch\n", 2),
        ("def f():\n    from sslfast import ops\n", 2),
        ('def f():\n    return import_module("sslfast.cuda.rows")\n', 2),
        ("import sslfast\n", 1),
    ],
)
def test_an_import_upwards_is_seen(
    source: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    for layer in ("ops", "triton", "cuda"):
        (tmp_path / layer).mkdir()
    (tmp_path / "__init__.py").touch()
    path = tmp_path / "_core.py"
    path.write_text(source)
    (wrong,) = upwards(path, MAY_IMPORT["_core"])
    assert wrong.startswith(f"_core.py:{line}: _core imports")
