"""The library of CUDA kernels: its build, what it needs of torch, and what is said without it.

nvcc builds it here for every chip against whatever torch is installed. The one function that only
a CUDA build of torch has is stood in for where there is none, so that the whole library can be
linked, loaded and asked, up to the point where it needs a GPU.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import density
import pytest
import setuptools
import torch
from places import ROOT

import sslfast
from sslfast import _backends, _library, _nvrtc
from sslfast._core.sorting.network import RELAXATIONS
from sslfast.bench import resources_cuda
from sslfast.cuda.rows import blocks

NORMALIZE = [
    f"l2_normalize_{direction}_kernel_{dtype}"
    for direction in ("fwd", "bwd")
    for dtype in ("float16", "bfloat16", "float32", "float64")
]
SORTING = [
    f"sorting_group_mass_{kernel}_kernel_odd_even_{length}_cauchy_float32"
    for kernel in ("fwd", "bwd", "entropy", "pair")
    for length in (11, 12, 13)
] + [
    f"{kernel}_kernel_{relaxation}_{dtype}"
    for kernel in ("relaxed_sort_fwd", "relaxed_sort_bwd", "sorting_group_mass_entropy")
    for relaxation in RELAXATIONS
    for dtype in ("float32", "float64")
]
# Of sm_90 alone the form that has everything.
ARCHS = ("sm_80", density.CHIP, "sm_100") if density.FULL else (density.CHIP,)
CODES = [f"{arch.removesuffix('a')}.cubin" for arch in ARCHS]
CODES.append("sm_100.ptx" if density.FULL else "sm_90.ptx")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libsslfast_cuda.so, built as setup.py builds it, or for one chip."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("cuda")
    options = {
        **({} if density.FULL else {"SSLFAST_CUDA_ARCHS": "90a-real;90-virtual"}),
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_COMPILER": nvcc,
        "SSLFAST_CUDA": "ON",
        "SSLFAST_OUTPUT": folder,
        "SSLFAST_TORCH": Path(torch.__file__).parent,
        "SSLFAST_TORCH_CXX11_ABI": int(torch.compiled_with_cxx11_abi()),
    }
    build = folder / "build"
    given = [f"-D{name}={value}" for name, value in options.items()]
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, *given)
    run("cmake", "--build", build)
    return folder / _library.CUDA_LIBRARY_NAME


def run(*command: object) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_every_source_is_compiled_for_its_chips(library: Path) -> None:
    if resources_cuda.missing() is not None:
        pytest.skip(resources_cuda.missing())
    cuobjdump = resources_cuda._cuobjdump()
    listed = run(cuobjdump, "--list-elf", "--list-ptx", library)
    sources = list((ROOT / "csrc" / "cuda").rglob("*.cu"))
    for code in CODES:
        assert listed.count(code) == len(sources) > 0, listed
    for arch in ARCHS:
        report = run(cuobjdump, "--dump-resource-usage", "-arch", arch, library)
        found = re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
        assert {name for name, *_ in found} >= {*NORMALIZE, *SORTING}
        assert {(stack, local) for _, stack, local in found} == {("0", "0")}, report


@pytest.mark.slow
def test_library_needs_neither_torch_nor_a_cuda_runtime(library: Path) -> None:
    """One build serves every torch; the runtime is in it."""
    needed = run("nm", "-C", "-D", "--undefined-only", library).splitlines()
    assert [line for line in needed if "torch" in line or "at::" in line or "c10::" in line] == []
    libraries = run("readelf", "-d", library)
    assert "torch" not in libraries
    assert "cudart" not in libraries


@pytest.mark.slow
def test_library_loads_and_says_what_it_needs(library: Path) -> None:
    script = f"""
import ctypes
ask = ctypes.CDLL({str(library)!r}).sslfast_cuda_error
ask.restype = ctypes.c_char_p
print("answer:", ask(0))
kernel = ctypes.CDLL({str(library)!r}).sslfast_cuda_kernel
kernel.restype = ctypes.c_void_p
names = {NORMALIZE + SORTING}
print("absent:", [name for name in names if not kernel(name.encode())], kernel(b"no_such"))
"""
    told = run(sys.executable, "-c", script)
    assert "absent: [] None" in told
    if not torch.cuda.is_available():
        assert re.search(r"answer: b'.*(driver|device)", told)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What setup.py defines."""
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put an nvcc of some release first."""

    def install(release: str) -> Path:
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(
            f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}'\n"
        )
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDACXX", str(nvcc))
        return nvcc

    return install


def test_compiler_must_fit_torch(setup: Any, compiler: Callable[[str], Path]) -> None:
    nvcc = compiler("13.0")
    assert setup.nvcc_for("13.2") == str(nvcc)
    with pytest.raises(setup.BuildError, match=r"nvcc 13\.0 does not fit torch.* CUDA 12\.8"):
        setup.nvcc_for("12.8")
    with pytest.raises(setup.BuildError, match="torch is built without CUDA"):
        setup.nvcc_for(None)


def test_absent_compiler_is_told(
    setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(setup.BuildError, match=rf"neither on PATH nor under {tmp_path}"):
        setup.nvcc_for("13.0")


def built(setup: Any, folder: Path, cmake: Callable[..., None]) -> dict[str, Any]:
    """native_status.json after a build whose CMake is replaced."""
    command = setup.CMakeBuild(setuptools.Distribution({"name": "sslfast"}))
    command.get_ext_fullpath = lambda name: str(folder / "sslfast" / "_native.so")
    command._cmake = cmake
    command.build_extension(SimpleNamespace(name="sslfast._native"))
    status: dict[str, Any] = json.loads((folder / "sslfast" / _library.STATUS_NAME).read_text())
    return status


def test_failed_cuda_build_keeps_the_cpu_kernels(
    setup: Any,
    compiler: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiler("13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("SSLFAST_CUDA_ARCHS", "90a-real")
    ran: dict[str, dict[str, str]] = {}

    def cmake(name: str, output: Path, more: dict[str, str]) -> None:
        ran[name] = more
        if name == "cuda":
            raise setup.BuildError("nvcc fatal: no such architecture")

    status = built(setup, tmp_path, cmake)
    reason = "nvcc fatal: no such architecture"
    assert status == {"built": True, "reason": "", "cuda": {"built": False, "reason": reason}}
    assert ran["cpu"] == {}
    assert ran["cuda"]["SSLFAST_CUDA_ARCHS"] == "90a-real"
    assert f"CUDA kernels were not built: {reason}" in capsys.readouterr().err


def test_cpu_torch_builds_cpu_kernels_alone(
    setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    ran: list[str] = []
    status = built(setup, tmp_path, lambda name, output, more: ran.append(name))
    assert ran == ["cpu"]
    assert status["built"]
    assert status["cuda"] == {"built": False, "reason": "torch is built without CUDA"}


@pytest.mark.parametrize(
    ("status", "there", "reason"),
    [
        (None, False, "install from source with nvcc"),
        ({"built": True, "reason": ""}, False, "install from source with nvcc"),
        ({"cuda": {"built": False, "reason": "no nvcc"}}, False, "was not built: no nvcc"),
        ({"cuda": {"built": False, "reason": "no nvcc"}}, True, "was not built: no nvcc"),
        ({"cuda": {"built": True, "reason": ""}}, True, None),
        (None, True, None),
    ],
)
def test_absent_library_has_a_reason(
    status: dict[str, Any] | None,
    there: bool,
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path)
    if status is not None:
        (tmp_path / _library.STATUS_NAME).write_text(json.dumps(status))
    if there:
        (tmp_path / _library.CUDA_LIBRARY_NAME).write_text("this is no library")
    told = _library.cuda_built()
    assert told == reason if reason is None else reason in str(told)
    missing = str(_library.cuda_missing_reason.__wrapped__())
    assert (f"{_library.CUDA_LIBRARY_NAME} does not load" if reason is None else reason) in missing


GPU = {"hip": None, "cuda": "13.0", "available": True, "capability": (9, 0)}


@pytest.mark.parametrize(
    ("machine", "prebuilt", "compiler", "expected"),
    [
        ({}, None, None, {"": None, "prebuilt": None, "nvrtc": None}),
        ({}, "no nvcc", None, {"": None, "prebuilt": "no nvcc", "nvrtc": None}),
        ({}, None, "no cupy", {"": None, "prebuilt": None, "nvrtc": "no cupy"}),
        (
            {},
            "no nvcc",
            "no cupy",
            {"": "no nvcc; no cupy", "prebuilt": "no nvcc", "nvrtc": "no cupy"},
        ),
        ({"hip": "7.0", "cuda": None}, None, None, "torch is built for ROCm"),
        ({"cuda": None}, None, None, "is built without CUDA"),
        ({"available": False}, None, None, "torch sees no GPU"),
        ({"capability": (7, 5)}, None, None, "has compute capability 7.5, 8.0 is needed"),
    ],
)
def test_why_the_backend_cannot_run(
    machine: dict[str, Any],
    prebuilt: str | None,
    compiler: str | None,
    expected: str | dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = {**GPU, **machine}
    monkeypatch.setattr(torch.version, "hip", state["hip"])
    monkeypatch.setattr(torch.version, "cuda", state["cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state["available"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: state["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: prebuilt)
    monkeypatch.setattr(_nvrtc, "missing_reason", lambda: compiler)
    for variant in ("", "prebuilt", "nvrtc"):
        told = _backends._missing_cuda.__wrapped__(variant)
        if isinstance(expected, str):
            assert expected in str(told)
        else:
            assert told == expected[variant]


@pytest.mark.parametrize(("build", "runs"), [("", True), ("prebuilt", True), ("nvrtc", False)])
def test_default_is_the_library_where_it_can_run(
    build: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: None)
    assert _library.runs_prebuilt(build) is runs
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: "no nvcc")
    assert _library.runs_prebuilt(build) is (build == "prebuilt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:prebuilt", "cuda:nvrtc"])
def test_forced_without_a_gpu_raises_its_reason(name: str) -> None:
    rows = torch.ones(2, 3)
    with sslfast.backend(name), pytest.raises(RuntimeError, match=f"cannot run on {name}: torch"):
        sslfast.l2_normalize(rows)
    with sslfast.backend(name):
        assert "torch" in sslfast.explain("l2_normalize", rows).reasons[name]
    assert "torch" in str(_backends.available()[name])


def test_rows_that_no_kernel_counts_are_rejected() -> None:
    rows = torch.empty(1, device="meta").expand(1, 2**31)
    assert "2147483648 features" in str(blocks.too_long(rows))
    assert blocks.too_long(rows[:, 1:]) is None
    implementation = sslfast._registry.PRIMITIVES["l2_normalize"].implementations["cuda"]
    assert implementation.reject(rows) is not None
