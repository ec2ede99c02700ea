"""Builds the native libraries through CMake and ninja; everything else is in pyproject.toml.

Without torch, CMake or a C++ compiler the package still installs, as pure Python, and without nvcc
or a CUDA build of torch it has no prebuilt CUDA kernels: the reasons are written to
sslfast/native_status.json, and `sslfast info` shows them. SSLFAST_CUDA_ARCHS names what nvcc
compiles for, as CMake's CUDA_ARCHITECTURES: "native" for the machine's own GPU, "90a-real;100".
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution

ROOT = Path(__file__).parent.resolve()


class BuildError(Exception):
    """A step of the build failed; the message is the first thing it complained about."""


def run(*command: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
        first = next((n for n, line in enumerate(lines) if "error" in line.lower()), len(lines) - 1)
        raise BuildError(f"{command[0]} {command[1]}: " + " ".join(lines[first : first + 4])[:500])


def nvcc_for(torch_cuda: str | None) -> str:
    """The CUDA compiler that fits torch, or a BuildError that says why there is none."""
    if torch_cuda is None:
        raise BuildError("torch is built without CUDA")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if nvcc is None:
        raise BuildError(f"nvcc is neither on PATH nor under {home} (CUDA_HOME)")
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", told)
    release = found[1] if found else "of unknown version"
    if release.split(".")[0] != torch_cuda.split(".")[0]:
        raise BuildError(f"nvcc {release} does not fit torch, which is built for CUDA {torch_cuda}")
    return nvcc


class CMakeBuild(build_ext):
    """Runs CMake for the CPU and for the CUDA kernels, and leaves both beside the Python files."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        output.mkdir(parents=True, exist_ok=True)
        status = self._attempt("native", lambda: self._cmake("cpu", output, {}))
        status["cuda"] = self._attempt("CUDA", lambda: self._cuda(output))
        (output / "native_status.json").write_text(json.dumps(status) + "\n")

    def _attempt(self, kernels: str, build: Callable[[], None]) -> dict[str, object]:
        """Whether a build succeeded, and its reason where it did not."""
        try:
            build()
        except (ImportError, OSError, subprocess.SubprocessError, BuildError) as error:
            reason = str(error)
            if isinstance(error, ImportError):
                reason += " (build with torch installed: pip install --no-build-isolation .)"
            print(f"sslfast: {kernels} kernels were not built: {reason}", file=sys.stderr)
            return {"built": False, "reason": reason}
        return {"built": True, "reason": ""}

    def _cuda(self, output: Path) -> None:
        import torch

        options = {
            "SSLFAST_CUDA": "ON",
            "SSLFAST_CUDA_ARCHS": os.environ.get("SSLFAST_CUDA_ARCHS", ""),
            "CMAKE_CUDA_COMPILER": nvcc_for(torch.version.cuda),
        }
        self._cmake("cuda", output, options)

    def _cmake(self, name: str, output: Path, more: dict[str, str]) -> None:
        import pybind11
        import torch

        build = Path(self.build_temp).resolve() / name
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python_EXECUTABLE": sys.executable,
            "SSLFAST_OUTPUT": output,
            "SSLFAST_VERSION": self.distribution.get_version(),
            "SSLFAST_TORCH": Path(torch.__file__).parent,
            "SSLFAST_TORCH_VERSION": torch.__version__,
            "SSLFAST_TORCH_CXX11_ABI": int(torch.compiled_with_cxx11_abi()),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            **more,
        }
        flags = [f"-D{name}={value}" for name, value in options.items()]
        run("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *flags)
        run("cmake", "--build", str(build))

    def _built(self) -> list[Path]:
        folder = Path(self.build_lib) / "sslfast"
        return sorted(path for path in folder.glob("*") if path.suffix in {".so", ".json"})

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._built()]

    def get_output_mapping(self) -> dict[str, str]:
        return {str(path): str(ROOT / "sslfast" / path.name) for path in self._built()}

    def copy_extensions_to_source(self) -> None:
        for built, source in self.get_output_mapping().items():
            self.copy_file(built, source)


class NativeDistribution(Distribution):
    """Marks the wheel as platform-specific whether or not the native part could be built."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    # The benchmark lives at the top of the checkout and is installed as sslfast.bench.
    # NVRTC compiles the CUDA sources where the package is installed: they are its data.
    packages=[
        *find_packages(include=["sslfast", "sslfast.*"]),
        "sslfast.bench",
        "sslfast.bench.formulas",
        "sslfast.csrc.cuda",
        "sslfast.csrc.include.sslfast",
    ],
    ext_modules=[Extension("sslfast._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    distclass=NativeDistribution,
)
