"""Plants faults one by one in a copy of the project and asks which tests notice. Not part of CI.

    python tests/faults/plant.py [PATTERN ...] [--table tests/faults/found.csv] [--list]

Each fault of the tables beside this file is planted alone; the thin suite's tests of the part that
has it run until one fails, and the dense suite's where none does. A fault that only the dense suite
finds shows that the thin one needs one more sample. PATTERN chooses faults by kind or file.

Python, Triton and CUDA C++ are text that is read anew by every process. The C++ of the CPU would
have to be compiled for every fault; instead all of its faults are compiled at once, each behind
a switch that SSLFAST_PLANTED turns on when the library is loaded.
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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import kernels_cpu
import kernels_gpu
import python
from fault import Fault

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "faults" / "project"
BUILD = ROOT / "build" / "faults" / "cpu"
FAULTS: tuple[Fault, ...] = (*kernels_cpu.FAULTS, *kernels_gpu.FAULTS, *python.FAULTS)
COLUMNS = ("kind", "file", "thin", "dense", "seconds")
SWITCH = "SSLFAST_PLANTED"
DECLARED = 'extern "C" int sslfast_planted;\n'
DEFINED = f"""
#include <cstdlib>
extern "C" {{
__attribute__((visibility("default"))) int sslfast_planted =
    std::getenv("{SWITCH}") ? std::atoi(std::getenv("{SWITCH}")) : 0;
}}
"""
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
    for each in chosen:
        started = time.monotonic()
        thin = first_failure(each, "thin")
        dense = "" if thin != NOT_FOUND else first_failure(each, "full")
        row = (each.kind, each.file, thin, dense, f"{time.monotonic() - started:.0f}")
        print(" | ".join(row), flush=True)
        keep(args.table, row)
    return 0


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
def planted(fault: Fault) -> Iterator[dict[str, str]]:
    """The environment in which the copy has the fault."""
    environment = {**os.environ, "PYTHONPATH": str(COPY), "SSLFAST_REQUIRE_NATIVE": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # nothing stale where a second is too short
    if fault.interpreted:
        environment["TRITON_INTERPRET"] = "1"
    if fault.is_compiled:
        yield {**environment, SWITCH: str(1 + FAULTS.index(fault))}
        return
    path = COPY / fault.file
    before = path.read_text()
    path.write_text(before.replace(fault.text, fault.where.replace("{}", fault.new, 1), 1))
    try:
        yield environment
    finally:
        path.write_text(before)


def first_failure(fault: Fault, density: str) -> str:
    """The first test that fails, or what ended the run otherwise; `NOT_FOUND` if all pass."""
    selected = " ".join(
        f"tests/{each}" if each.endswith(".py") else each for each in fault.tests.split(" ")
    )
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    if fault.interpreted:
        command += ["-m", "not uninterpreted"]
    with planted(fault) as environment:
        try:
            done = subprocess.run(
                [*command, *shlex.split(selected)],
                cwd=COPY,
                env={**environment, "SSLFAST_TESTS": density},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return "hangs"
    if done.returncode == 0:
        return NOT_FOUND
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+(?:\[[^\]]*\])?)", done.stdout, re.MULTILINE)
    if failed is None and done.returncode > 0:
        raise RuntimeError(
            f"{fault.kind}: pytest returned {done.returncode}\n{done.stdout[-3000:]}"
        )
    return failed[1] if failed else f"crashes ({done.returncode})"


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
