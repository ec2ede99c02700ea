"""What the Triton kernels take of each chip: the table, its rules, and that it is up to date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import density
import pytest
import torch
from places import ROOT

from sslfast import cli
from sslfast._core.devices import INTERPRETED
from sslfast._registry import PRIMITIVES
from sslfast.bench import resources, resources_triton
from sslfast.bench.resources import Part, Row
from sslfast.triton._launch import TARGETS, recording

pytest.importorskip("triton")
pytest.importorskip("rich")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile")

TABLE = ROOT / "bench" / "results" / "resources.csv"
ROW = Row(
    backend="triton",
    primitive="l2_normalize",
    kernel="l2_normalize_fwd_kernel",
    arch="gfx942",
    case="batch fp32",
    constants="ROWS=16, BLOCK_D=128",
    warps=4,
    stages=1,
    registers=40,
    spills=0,
    shared=64,
    tensor_memory=0,
    matrix="",
    compiler="triton 3.6.0",
)


# Each part is a test of its own, for any worker to take. The thin suite compiles the first sample
# of a primitive for one chip; `make test-full` all.
PARTS = [
    Part((name,), (arch,), (backend,), brief=not density.FULL)
    for name, spec in PRIMITIVES.items()
    for backend in resources.SOURCES
    for arch in (TARGETS if density.FULL else ["sm_90"])
    if backend in spec.implementations and not (backend == "cuda" and TARGETS[arch].is_amd)
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_kernels_fit_their_chip_and_are_those_of_the_table(part: Part) -> None:
    rows = resources.compiled(part, jobs=1)
    assert not [failure for row in rows for failure in row.failures]
    assert_both_directions(part, " ".join(row.kernel for row in rows))
    keys = {row.key for row in rows}
    kept = [row for row in resources.read(TABLE) if part.covers(row)]
    compared = [row for row in kept if row.key in keys] if part.brief else kept
    differing, skipped = resources.compare(rows, compared)
    assert not differing, "\n".join(differing)
    if skipped:
        pytest.skip("; ".join(skipped))


def assert_both_directions(part: Part, kernels: str) -> None:
    """But for a gradient that every backend takes from the same torch operations."""
    (name,), (backend,) = part.primitives, part.backends
    backends = PRIMITIVES[name].implementations
    shared = backends[backend].backward is backends["reference"].backward
    assert f"{name}_fwd" in kernels
    assert (f"{name}_bwd" in kernels) != shared


def test_table_has_every_triton_primitive_on_every_chip() -> None:
    expected = {
        (name, arch)
        for name, spec in PRIMITIVES.items()
        if "triton" in spec.implementations
        for arch in TARGETS
    }
    rows = [row for row in resources.read(TABLE) if row.backend == "triton"]
    assert {(row.primitive, row.arch) for row in rows} == expected
    for row in rows:
        assert not row.failures
        assert f"{row.primitive}_" in row.kernel


@pytest.mark.parametrize("aligned", [True, False])
def test_arguments_are_specialised_as_in_a_launch(aligned: bool) -> None:
    """Addresses and sizes divisible by 16 let loads be 16 bytes wide; a 1 is a constant."""
    dim = 128 if aligned else 129
    implementation = PRIMITIVES["l2_normalize"].implementations["triton"]
    with resources_triton.compiling_for("sm_90"), recording(TARGETS["sm_90"]) as recorded:
        implementation.forward(torch.empty(1, dim, device="meta"), 1e-12)
        source = resources_triton.compile_launch(recorded[0]).src
    names = source.fn.arg_names
    divisible = {names[path[0]] for path, attributes in source.attrs.items() if attributes}
    assert divisible == {"embeddings", "normalized", "norm"} | (
        {"dim", "stride"} if aligned else set()
    )
    assert source.signature["num_rows"] == "constexpr"


@pytest.mark.parametrize(
    ("assembly", "expected"),
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}", "mma.sync bf16"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1}", "mma.sync tf32"),
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%f1}", "wgmma f16"),
        ("tcgen05.mma.cta_group::1.kind::tf32 [ %r1 + 0 ]", "tcgen05 tf32"),
        ("\tv_mfma_f32_32x32x8_bf16 a[0:15]\n\tv_mfma_f32_32x32x8_bf16 a", "v_mfma bf16"),
        ("\tv_mfma_f32_16x16x16_f16 v[0:3]", "v_mfma f16"),
        ("\tv_mfma_f32_16x16x16f16 v[0:3]", "v_mfma f16"),
        ("\tv_mfma_f32_16x16x4_f32 v[0:3]", "v_mfma f32"),
        ("\tv_mfma_f32_16x16x8_xf32 v[0:3]", "v_mfma xf32"),
        ("fma.rn.f32 %f1, %f2, %f3, %f4;", ""),
    ],
)
def test_matrix_instructions_are_found(assembly: str, expected: str) -> None:
    assert resources_triton.matrix_instructions(assembly) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spills": 8}, "8 spilled"),
        ({"shared": 65_537}, "65537 bytes of shared memory, above 65536"),
        ({"tensor_memory": 513}, "513 columns of tensor memory"),
    ],
)
def test_limits(change: dict[str, int], said: str) -> None:
    assert not ROW.failures
    (failure,) = replace(ROW, **change).failures  # type: ignore[arg-type]
    assert said in failure
    assert "l2_normalize_fwd_kernel on gfx942, batch fp32" in failure


def test_a_file_keeps_the_rows(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, constants='A="x", B', registers=12)]
    path = tmp_path / "new" / "resources.csv"
    assert resources.read(path) == []
    resources.write(path, rows)
    assert resources.read(path) == rows


def test_writing_a_part_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        replace(ROW, arch="sm_90"),
        replace(ROW, primitive="another"),
        replace(ROW, backend="cuda"),
    ]
    fresh = replace(ROW, registers=41)
    monkeypatch.setattr(resources, "compiled", lambda part, jobs: [fresh])
    command = ["resources", "--write", "--output", str(tmp_path)]
    path = tmp_path / "resources.csv"
    resources.write(path, [ROW, *others])
    part = ["l2_normalize", "--arch", "gfx942", "--backend", "triton"]
    assert cli.main([*command, *part]) == 0
    assert resources.read(path) == resources.ordered([*others, fresh])
    assert cli.main(command) == 0
    assert resources.read(path) == [fresh]


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        ([ROW], [replace(ROW, registers=41)], "registers 40 instead of 41"),
        ([ROW], [replace(ROW, shared=128, warps=8)], "warps 4 instead of 8, shared 64 instead"),
        ([ROW], [], "not in the table"),
        ([], [ROW], "in the table, and no longer compiled"),
    ],
)
def test_differences_say_what_to_do(new: list[Row], old: list[Row], said: str) -> None:
    (difference,), skipped = resources.compare(new, old)
    assert said in difference
    assert "sslfast resources --write" in difference
    assert not skipped


def test_another_compiler_is_not_compared() -> None:
    other = replace(ROW, registers=1, compiler="triton 3.9.0")
    differing, (skipped,) = resources.compare([other], [ROW])
    assert not differing
    assert "triton 3.6.0" in skipped
    assert "triton 3.9.0" in skipped
    assert resources.compare([ROW], [ROW]) == ([], [])


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, checked, and 1 where a number has changed or a limit is broken."""
    found = [ROW]

    def compiled(part: Part, jobs: int) -> list[Row]:
        assert part == Part(("l2_normalize",), ("gfx942",))
        return found

    monkeypatch.setattr(resources, "compiled", compiled)
    command = ["resources", "l2_normalize", "--arch", "gfx942", "--output", str(tmp_path)]
    assert cli.main([*command, "--check"]) == 1
    assert cli.main([*command, "--write"]) == 0
    assert cli.main([*command, "--check"]) == 0
    found[0] = replace(ROW, registers=41)
    assert cli.main([*command, "--check"]) == 1
    assert cli.main(command) == 0
    found[0] = replace(ROW, spills=4)
    assert cli.main(command) == 1
    assert "4 spilled" in capsys.readouterr().out


def test_unknown_primitives_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resources", "no_such_primitive"]) == cli.BAD_INPUT
    assert "no_such_primitive" in capsys.readouterr().err
