"""The native build: instruction sets, vector mathematics, threads, and the stable interface."""

from __future__ import annotations

import importlib
import math
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REQUIRE_NATIVE

import sslfast
from sslfast import _library
from sslfast.testing import threads

LIBRARY = Path(sslfast.__file__).parent / _library.LIBRARY_NAME
ISAS = ("baseline", "avx2", "avx512")
MATRIX_ISAS = ("avx512_bf16", "amx", "emulated")
AVX512 = ("avx512", "avx512_bf16", "amx")


@pytest.fixture(scope="module")
def native():
    reason = _library.missing_reason()
    if reason is not None and REQUIRE_NATIVE:
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    return importlib.import_module("sslfast._native")


def _require(native, isa: str) -> None:
    if isa not in _library.supported_isas():
        pytest.skip(f"this processor or build has no {isa}")


def test_report_names_what_was_built(native):
    info = native.build_info()
    assert tuple(info["isas"]) == _library.compiled_isas()
    assert set(_library.supported_isas()) <= set(_library.compiled_isas()) <= {*ISAS, *MATRIX_ISAS}
    assert {"baseline", "emulated"} <= set(_library.supported_isas())
    assert _library.supported_isas()[-1] != "emulated"
    assert info["stable_abi"] == "2.10"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "ulp"), [("float32", 2.0**-23), ("float64", 2.0**-52)])
def test_exp_within_two_units_in_the_last_place(native, isa, dtype, ulp):
    _require(native, isa)
    limit = 87 if dtype == "float32" else 708
    x = torch.linspace(-limit, limit, 20011, dtype=torch.float64)
    x = torch.cat([x, torch.linspace(-1, 1, 5003, dtype=torch.float64)])
    x = x.to(getattr(torch, dtype)).double()
    result = torch.tensor(native.exp(isa, dtype, x.tolist()), dtype=torch.float64)
    assert ((result / torch.exp(x) - 1).abs() <= 2 * ulp).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_limits(native, isa, dtype):
    _require(native, isa)
    zero, low, high, infinite, nan, one = native.exp(
        isa, dtype, [-math.inf, -2000.0, 2000.0, math.inf, math.nan, 0.0]
    )
    assert (zero, low, high, infinite, one) == (0.0, 0.0, math.inf, math.inf, 1.0)
    assert math.isnan(nan)


def test_parallel_loops_really_use_the_threads(native):
    with threads(2):
        assert native.num_threads() == 2
        assert native.distinct_threads() == 2


def test_arithmetic_peak_is_measured_and_checked(native):
    assert native.fma_peak("baseline", "float32", 0.01, 1) > 1e8
    with pytest.raises(ValueError, match="isa = 'sse9'"):
        native.fma_peak("sse9")
    with pytest.raises(ValueError, match="dtype = 'int8'"):
        native.fma_peak("baseline", "int8")
    with pytest.raises(ValueError, match="seconds"):
        native.fma_peak("baseline", "float32", -1.0)
    with pytest.raises(ValueError, match="threads"):
        native.fma_peak("baseline", "float32", 0.01, 0)


@pytest.mark.parametrize("isa", MATRIX_ISAS)
def test_the_peak_of_matrix_instructions_is_measured(native, isa):
    _require(native, isa)
    assert native.matrix_peak(isa, 1e-3, 1) > 1e7
    assert native.matrix_peak(isa, 1e-3, 2) > 1e7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sse9",), "isa = 'sse9'; expected one of"),
        (("baseline",), "isa = 'baseline' has no matrix instructions"),
        (("emulated", 0.0), "seconds must lie in .0, 60., got 0.0"),
        (("emulated", math.nan), "seconds must lie in .0, 60., got nan"),
        (("emulated", 1e-3, 0), "threads must lie in .1, 4096., got 0"),
    ],
)
def test_the_peak_of_matrix_instructions_names_what_is_wrong(native, arguments, message):
    with pytest.raises(ValueError, match=message):
        native.matrix_peak(*arguments)


def test_a_set_that_cannot_run_has_no_peak(native):
    missing = {isa.name: isa.missing for isa in _library.isas().values() if isa.missing}
    for name, reason in missing.items():
        with pytest.raises(RuntimeError, match=reason):
            native.fma_peak(name)
        with pytest.raises(RuntimeError, match=reason):
            native.matrix_peak(name)
    if not missing:
        pytest.skip("this processor has every instruction set of this build")


# Of bfloat16, float16, and float32 of one, two and three terms.
TAKEN = {
    "avx512_bf16": (1, 0, 1, 0, 0),
    "amx": (1, 4, 1, 4, 6),
    "emulated": (1, 4, 1, 4, 6),
    "avx512": (0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("isa", TAKEN)
def test_products_that_matrix_instructions_take(native, isa):
    if isa not in _library.compiled_isas():
        pytest.skip(f"this build has no {isa}")
    asked = [("bfloat16", 3), ("float16", 3), *(("float32", terms) for terms in (1, 2, 3))]
    assert tuple(native.matrix_products(isa, *each) for each in asked) == TAKEN[isa]
    assert native.matrix_products(isa, "float64") == 0
    assert _library.matrix_products(isa, torch.float32) == TAKEN[isa][-1]


def test_products_of_what_is_not(native):
    with pytest.raises(ValueError, match="isa = 'sse9'"):
        native.matrix_products("sse9", "float32")
    with pytest.raises(ValueError, match="dtype = 'int8'; expected bfloat16, float16"):
        native.matrix_products("emulated", "int8")
    with pytest.raises(ValueError, match="float_terms must be 1, 2 or 3, got 4"):
        native.matrix_products("emulated", "float32", 4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_normalized_number_has_no_gradient(native, isa, dtype):
    """y is exactly 1 or -1, so nothing is left of dy, whatever the rounding of x."""
    _require(native, isa)
    rows = torch.randn(501, 1, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rows.requires_grad_()
    with sslfast.backend(f"cpu:{isa}"):
        result = sslfast.l2_normalize(rows)
        (gradient,) = torch.autograd.grad(result, rows, torch.randn_like(rows))
    assert result.detach().abs().eq(1).all()
    assert gradient.eq(0).all()


def test_direct_call_with_a_wrong_argument_raises(native):
    z = torch.randn(4, 3)
    one, forward = torch.ones(1), torch.ops.sslfast_native.similarity_logsumexp_cpu
    with pytest.raises(RuntimeError, match="queries must be contiguous"):
        forward(z.T, None, one, None, None, None, False, 0, 0, 3, 0)
    with pytest.raises(RuntimeError, match="instruction set"):
        forward(z, None, one, None, None, None, False, 0, 0, 3, 9)
    with pytest.raises(RuntimeError, match="float_terms must be 1, 2 or 3"):
        forward(z, None, one, None, None, None, False, 0, 0, 4, 0)
    with pytest.raises(RuntimeError, match="columns need keys"):
        forward(z, None, one, None, None, None, True, 0, 0, 3, 0)
    with pytest.raises(RuntimeError, match="query_ids must be"):
        forward(z, None, one, None, torch.arange(5), None, False, 0, 0, 3, 0)
    with pytest.raises(RuntimeError, match="keep is none of Keep"):
        forward(z, None, one, None, None, None, False, 4, 0, 3, 0)


def _tool(*command: str) -> list[str]:
    out = subprocess.run([*command, str(LIBRARY)], capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


def test_library_uses_only_the_stable_interface_of_torch(native):
    """One build must serve torch 2.10 and later: no symbol of at:: or c10:: may be needed."""
    needed = _tool("nm", "-C", "-D", "--undefined-only")
    assert any("aoti_torch" in line for line in needed)
    assert [line for line in needed if "at::" in line or "c10::" in line] == []


@pytest.mark.parametrize(("register", "isas"), [("zmm", AVX512), ("ymm", ("avx2", *AVX512))])
def test_wide_registers_only_in_code_of_their_instruction_set(native, register, isas):
    """An inline function compiled for AVX-512 and linked into the baseline would crash there."""
    if "avx512" not in _library.compiled_isas():
        pytest.skip("this build has the baseline only")
    users, function = set(), ""
    for line in _tool("objdump", "-d", "--no-show-raw-insn"):
        if line.endswith(">:"):
            function = line
        elif f"%{register}" in line:
            users.add(function)
    assert users
    mangled = [f"7sslfast{len(isa)}{isa}" for isa in isas]
    assert [f for f in users if not any(name in f for name in mangled)] == []
