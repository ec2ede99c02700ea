"""Builds the native library through CMake and ninja; everything else is in pyproject.toml.

Without torch, CMake or a C++ compiler the package still installs, as pure Python: the reason is
written to sslfast/native_status.json, and `sslfast info` shows it.
"""

from __future__ import annotations

import json
import subprocess
import sys
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


class CMakeBuild(build_ext):
    """Runs CMake once for all targets and leaves them beside the package's Python files."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        output.mkdir(parents=True, exist_ok=True)
        status = {"built": True, "reason": ""}
        try:
            self._cmake(output)
        except (ImportError, OSError, BuildError) as error:
            reason = str(error)
            if isinstance(error, ImportError):
                reason += " (build with torch installed: pip install --no-build-isolation .)"
            status = {"built": False, "reason": reason}
            print(f"sslfast: native kernels were not built: {reason}", file=sys.stderr)
        (output / "native_status.json").write_text(json.dumps(status) + "\n")

    def _cmake(self, output: Path) -> None:
        import pybind11
        import torch

        build = Path(self.build_temp).resolve()
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
    packages=[*find_packages(include=["sslfast", "sslfast.*"]), "sslfast.bench"],
    ext_modules=[Extension("sslfast._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    distclass=NativeDistribution,
)
