"""Compilation on first use: every kernel, the options of a real run, the cache, the reasons.

What each kernel takes of each chip is in bench/results/resources.csv, which
tests/backends/triton/test_triton_resources.py compares.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import density
import pytest

from sslfast import _nvrtc
from sslfast._registry import PRIMITIVES
from sslfast.bench import resources_cuda
from sslfast.cuda import specialisations

ARCHS = ("sm_80", "sm_90a", "sm_100a")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache on disk and in memory."""
    _require(_nvrtc.missing_compiler())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _nvrtc.cubin.cache_clear()
    yield tmp_path / "sslfast" / "nvrtc"
    _nvrtc.cubin.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What was compiled, in order, with its macros; the compiler is not asked."""
    seen: list[tuple[str, ...]] = []

    def compile_source(name: str, arch: str, defines: tuple[str, ...] = ()) -> bytes:
        seen.append((name, arch, *defines))
        return f"cubin {len(seen)}".encode()

    monkeypatch.setattr(_nvrtc, "compile_source", compile_source)
    return seen


def _require(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(reason)


def test_every_primitive_on_cuda_has_a_source() -> None:
    on_cuda = [name for name, each in PRIMITIVES.items() if "cuda" in each.implementations]
    assert sorted(_nvrtc.sources()) == sorted(on_cuda)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_100a"),
        ((12, 1), "sm_121a"),
    ],
)
def test_architecture_of_a_device(capability: tuple[int, int], arch: str) -> None:
    assert _nvrtc.architecture(*capability) == arch


@pytest.mark.thin(rule=density.nowhere)  # test_triton_resources compiles them, too
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_stays_in_registers(arch: str) -> None:
    """Under the very options of a real run: no local memory, no stack.

    Of the sets of macros of a source the first and the last; the table has all of them.
    """
    _require(resources_cuda.missing())
    for name in _nvrtc.sources():
        sets = specialisations(name)
        used: dict[str, resources_cuda.Usage] = {}
        for defines in {sets[0], sets[-1]}:
            used |= resources_cuda.usage(_nvrtc.compile_source(name, arch, defines))
        kernels = " ".join(used)
        assert f"{name}_fwd_kernel_" in kernels
        assert f"{name}_bwd_kernel_" in kernels
        for kernel, each in used.items():
            assert (each.stack, each.local) == (0, 0), kernel


@pytest.mark.thin(rule=density.one_chip)
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_are_normalized_four_blocks_at_a_time(arch: str) -> None:
    _require(resources_cuda.missing())
    used = resources_cuda.usage(_nvrtc.compile_source("l2_normalize", arch))
    assert len(used) == 2 * len(PRIMITIVES["l2_normalize"].implementations["cuda"].dtypes)
    assert max(each.registers for each in used.values()) <= 64


def test_cubin_is_kept_in_memory_and_on_disk(cache: Path, compiled: list[tuple[str, ...]]) -> None:
    first = _nvrtc.cubin("l2_normalize", "sm_80")
    assert _nvrtc.cubin("l2_normalize", "sm_80") == first
    assert _nvrtc.cubin("l2_normalize", "sm_90a") != first
    _nvrtc.cubin.cache_clear()
    assert _nvrtc.cubin("l2_normalize", "sm_80") == first
    assert compiled == [("l2_normalize", "sm_80"), ("l2_normalize", "sm_90a")]
    assert len(list(cache.iterdir())) == 2


def test_each_set_of_macros_is_a_cubin_of_its_own(
    cache: Path, compiled: list[tuple[str, ...]]
) -> None:
    for _ in range(2):
        seen = {_nvrtc.cubin("l2_normalize", "sm_80", given) for given in ((), ("A=1",), ("A=2",))}
        assert len(seen) == 3
        _nvrtc.cubin.cache_clear()
    rows = ("l2_normalize", "sm_80")
    assert compiled == [rows, (*rows, "A=1"), (*rows, "A=2")]
    assert "-DA=1" in _nvrtc.options("sm_80", ("A=1",))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:20],
        lambda content: b"x" + content[1:],
    ],
    ids=["short", "empty", "no digest", "changed"],
)
def test_damaged_cubin_is_compiled_again(
    cache: Path, compiled: list[tuple[str, ...]], damage: Callable[[bytes], bytes]
) -> None:
    whole = _nvrtc.cubin("l2_normalize", "sm_80")
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    _nvrtc.cubin.cache_clear()
    fresh = _nvrtc.cubin("l2_normalize", "sm_80")
    assert fresh != whole
    assert len(compiled) == 2
    _nvrtc.cubin.cache_clear()
    assert _nvrtc.cubin("l2_normalize", "sm_80") == fresh  # and kept again
    assert list(cache.iterdir()) == [file]


def test_changed_source_is_compiled_again(
    cache: Path,
    compiled: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any of the files may be included."""
    root = tmp_path / "csrc"
    shutil.copytree(_nvrtc.source_root(), root)
    monkeypatch.setattr(_nvrtc, "source_root", lambda: root)
    for expected, file in enumerate(
        ("cuda/rows/rows.cuh", "include/sslfast/rows/l2_normalize.h", None), 1
    ):
        _nvrtc.cubin.cache_clear()
        _nvrtc.cubin("l2_normalize", "sm_80")
        assert len(compiled) == expected
        if file is not None:
            with (root / file).open("a") as end:
                end.write("// changed\n")


def test_no_place_to_keep_cubins_is_told_and_survived(
    cache: Path, compiled: list[tuple[str, ...]]
) -> None:
    cache.parent.write_text("a file where a folder is needed")
    with pytest.warns(UserWarning, match="compiled kernels cannot be kept"):
        assert _nvrtc.cubin("l2_normalize", "sm_80")


def test_compile_error_holds_the_log(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "csrc"
    shutil.copytree(_nvrtc.source_root(), root)
    (root / "cuda" / "broken.cuh").write_text(
        "__global__ void broken_fwd_kernel_float32() { undeclared = 1; }\n"
    )
    monkeypatch.setattr(_nvrtc, "source_root", lambda: root)
    with pytest.raises(
        _nvrtc.CompileError,
        match=r'(?s)NVRTC [\d.]+ cannot compile broken.cuh for sm_80:.*"undeclared" is undefined',
    ):
        _nvrtc.cubin("broken", "sm_80")
    assert not cache.exists()
    with pytest.raises(_nvrtc.CompileError, match="for sm_20"):
        _nvrtc.cubin("l2_normalize", "sm_20")


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        ("cuda.bindings.nvrtc", "cuda-bindings cannot be imported"),
        ("cupy", "cupy is not installed"),
    ],
)
def test_missing_package_is_named_with_its_install_line(
    absent: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec, import_module = _nvrtc.find_spec, _nvrtc.importlib.import_module

    def importing(name: str) -> object:
        if name == absent:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name)

    monkeypatch.setattr(_nvrtc, "find_spec", lambda n: None if n == absent else find_spec(n))
    monkeypatch.setattr(_nvrtc.importlib, "import_module", importing)
    monkeypatch.setattr(_nvrtc, "missing_compiler", _nvrtc.missing_compiler.__wrapped__)
    told = str(_nvrtc.missing_reason.__wrapped__())
    if absent == "cupy":
        _require(_nvrtc.missing_compiler())
    assert reason in told
    assert "pip install 'sslfast[cuda]'" in told


def test_absent_library_and_sources_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _require(_nvrtc.missing_compiler())
    monkeypatch.setattr(_nvrtc, "source_root", lambda: tmp_path)
    assert f"under {tmp_path}" in str(_nvrtc.missing_compiler.__wrapped__())

    def fail(returned: object) -> None:
        raise OSError("libnvrtc.so:\n not found")

    monkeypatch.setattr(_nvrtc, "_check", fail)
    told = str(_nvrtc.missing_compiler.__wrapped__())
    assert told.startswith("NVRTC cannot be loaded (libnvrtc.so: not found): pip install")


def test_sources_are_found_in_the_package_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sslfast"
    package.mkdir()
    monkeypatch.setattr(_nvrtc, "_PACKAGE", package)
    assert _nvrtc.source_root.__wrapped__() == tmp_path / "csrc"
    (package / "csrc").mkdir()
    assert _nvrtc.source_root.__wrapped__() == package / "csrc"


def test_sources_compile_from_where_a_wheel_puts_them(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package data alone, as pyproject.toml names it, is all that NVRTC needs."""
    text = (_nvrtc.source_root().parent / "pyproject.toml").read_text()
    data = re.findall(r'^"sslfast\.csrc\.(\S+)" = \["(\S+)"\]$', text, re.MULTILINE)
    assert data
    root = tmp_path / "csrc"
    for package, pattern in data:
        folder = _nvrtc.source_root() / package.replace(".", "/")
        for file in folder.glob(pattern):
            copy = root / file.relative_to(_nvrtc.source_root())
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    monkeypatch.setattr(_nvrtc, "source_root", lambda: root)
    for name in _nvrtc.sources():
        defines = specialisations(name)[0]
        assert _nvrtc.cubin(name, "sm_80", defines).startswith(b"\x7fELF")
