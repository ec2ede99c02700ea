"""Plants faults one by one in a copy of the project and asks which tests notice. Not part of CI.

    python tests/faults/plant.py [PATTERN ...] [--table tests/faults/found.csv] [--list]

Each fault of the tables beside this file is planted alone; the thin suite's tests of the part that
has it run until one fails, and the dense suite's where none does. A fault that only the dense suite
finds shows that the thin one needs one more sample. PATTERN chooses faults by kind or file.

Python, Triton and CUDA C++ are text that is read anew by every process. The C++ of the CPU would
have to be compiled for every fault; instead all its faults are compiled at once, each behind a
switch, and one run of pytest tries every test on every fault that none has noticed (`switched`).
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import kernels_cpu
import kernels_gpu
import python
from fault import Fault

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "faults" / "project"
BUILD = ROOT / "build" / "faults" / "cpu"
FAULTS: tuple[Fault, ...] = (*kernels_cpu.FAULTS, *kernels_gpu.FAULTS, *python.FAULTS)
COLUMNS = ("kind", "file", "thin", "dense")
DECLARED = 'extern "C" int sslfast_planted;\n'
DEFINED = 'extern "C" { __attribute__((visibility("default"))) int sslfast_planted = 0; }\n'
NOT_FOUND = "not found"
LIMIT = 1800  # seconds of one run


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", help="of kinds and files (default: all)")
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "found.csv")
    parser.add_argument("--list", action="store_true", help="check that every text is there once")
    args = parser.parse_args()
    chosen = [each for each in FAULTS if is_chosen(each, args.patterns)]
    for each in chosen:
        assert (ROOT / each.file).read_text().count(each.text) == 1, (each.kind, each.file)
    if args.list:
        print(
            "\n".join(f"{each.kind:50} {each.file}" for each in chosen), f"\n{len(chosen)} faults"
        )
        return 0
    prepare([each for each in chosen if each.is_compiled])
    for selected in dict.fromkeys(each.tests for each in chosen if each.is_compiled):
        together = [each for each in chosen if each.is_compiled and each.tests == selected]
        note(args.table, together, lambda density, faults: noticed_in_one_run(faults, density))
    for each in chosen:
        if not each.is_compiled:
            note(args.table, [each], lambda density, faults: [first_failure(faults[0], density)])
    return 0


def note(table: Path, faults: list[Fault], find: Callable[[str, list[Fault]], list[str]]) -> None:
    """What the thin suite finds, and of what is left what the dense one does."""
    thin = find("thin", faults)
    left = [fault for fault, found in zip(faults, thin, strict=True) if found == NOT_FOUND]
    dense = dict(zip(left, find("full", left) if left else [], strict=True))
    for fault, found in zip(faults, thin, strict=True):
        row = (fault.kind, fault.file, found, dense.get(fault, ""))
        print(" | ".join(row), flush=True)
        keep(table, row)


def noticed_in_one_run(faults: list[Fault], density: str) -> list[str]:
    """Of compiled faults with the same tests, the test that notices each."""
    numbers = [1 + FAULTS.index(fault) for fault in faults]
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found"
        found.touch()
        environment = {
            **os.environ,
            "PYTHONPATH": f"{COPY}:{COPY / 'tests' / 'faults'}",
            "SSLFAST_TESTS": density,
            "SSLFAST_FAULTS": " ".join(map(str, numbers)),
            "SSLFAST_FOUND": str(found),
        }
        done = run_tests(faults[0], environment, "-p", "switched")
        noticed = dict(line.split(" ", 1) for line in found.read_text().splitlines())
    if done.returncode < 0 or ("shouldstop" not in done.stdout and done.returncode not in (0, 2)):
        tail = done.stdout[-3000:]
        raise RuntimeError(f"{faults[0].tests}: pytest returned {done.returncode}\n{tail}")
    return [noticed.get(str(n), NOT_FOUND).removeprefix("tests/") for n in numbers]


def is_chosen(fault: Fault, patterns: Sequence[str]) -> bool:
    told = f"{fault.kind} {fault.file}"
    return not patterns or any(re.search(pattern, told) for pattern in patterns)


def prepare(compiled: Sequence[Fault]) -> None:
    """The copy as it is, and a library in which each of these faults can be switched on."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    contents = {name: (ROOT / name).read_bytes() for name in listed.stdout.splitlines()}
    for fault in compiled:
        text = with_switch(fault, contents[fault.file].decode())
        contents[fault.file] = text.encode()
    contents["csrc/cpu/isa.cpp"] += DEFINED.encode()
    for name, content in contents.items():
        path = COPY / name
        if not path.exists() or path.read_bytes() != content:  # what has changed is compiled again
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    build()


def with_switch(fault: Fault, text: str) -> str:
    number = 1 + FAULTS.index(fault)
    either = f"(::sslfast_planted == {number} ? ({fault.new}) : ({fault.old}))"
    text = text.replace(fault.text, fault.where.replace("{}", either, 1), 1)
    return text if DECLARED in text else text.replace("#include", f"{DECLARED}#include", 1)


def build() -> None:
    """As setup.py builds it."""
    import pybind11
    import torch

    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "SSLFAST_OUTPUT": COPY / "sslfast",
        "SSLFAST_VERSION": "planted",
        "SSLFAST_TORCH": Path(torch.__file__).parent,
        "SSLFAST_TORCH_VERSION": torch.__version__,
        "SSLFAST_TORCH_CXX11_ABI": int(torch.compiled_with_cxx11_abi()),
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    given = [f"-D{name}={value}" for name, value in options.items()]
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    configure = ["cmake", "-G", "Ninja", "-S", str(COPY), "-B", str(BUILD), *given]
    for command in (configure, ["cmake", "--build", str(BUILD)]):
        subprocess.run(command, check=True, env=tools, stdout=subprocess.DEVNULL)


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The copy has the fault."""
    path = COPY / fault.file
    before = path.read_text()
    path.write_text(before.replace(fault.text, fault.where.replace("{}", fault.new, 1), 1))
    try:
        yield
    finally:
        path.write_text(before)


def first_failure(fault: Fault, density: str) -> str:
    """The first test that fails, or what ended the run otherwise; `NOT_FOUND` if all pass."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(COPY),
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing stale where a second is too short
        "SSLFAST_TESTS": density,
        **({"TRITON_INTERPRET": "1"} if fault.interpreted else {}),
    }
    with planted(fault):
        try:
            done = run_tests(fault, environment, "-x")
        except subprocess.TimeoutExpired:
            return "hangs"
    if done.returncode == 0:
        return NOT_FOUND
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+(?:\[[^\]]*\])?)", done.stdout, re.MULTILINE)
    if failed is None and done.returncode > 0:
        tail = done.stdout[-3000:]
        raise RuntimeError(f"{fault.kind}: pytest returned {done.returncode}\n{tail}")
    return failed[1] if failed else f"crashes ({done.returncode})"


def run_tests(
    fault: Fault, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    words = (f"tests/{each}" if each.endswith(".py") else each for each in shlex.split(fault.tests))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *options]
    if fault.interpreted:
        command += ["-m", "not uninterpreted"]
    return subprocess.run(
        [*command, *words],
        cwd=COPY,
        env={**environment, "SSLFAST_REQUIRE_NATIVE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def keep(path: Path, row: Sequence[str]) -> None:
    """In place of what the table said of the fault before."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [each for each in csv.reader(file) if each[:2] != list(row[:2])][1:]
    order = {(each.kind, each.file): index for index, each in enumerate(FAULTS)}
    rows = sorted([*rows, list(row)], key=lambda each: order.get((each[0], each[1]), len(order)))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    assert shutil.which("git"), "the copy is made of what git knows"
    sys.exit(main())
