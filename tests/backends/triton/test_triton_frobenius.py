"""What the enumerated tests do not know of the Triton `cross_frobenius`: tiles, parts, strips."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sslfast
from sslfast._core.correlation import frobenius as layout
from sslfast._core.correlation.frobenius import Arguments
from sslfast._core.devices import INTERPRETED
from sslfast._registry import PRIMITIVES
from sslfast.ops.correlation import frobenius_cost
from sslfast.ops.correlation import frobenius_keep as keep
from sslfast.testing import check_case
from sslfast.triton._launch import TARGETS, Launch, launch, recording

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
tile_of = pytest.importorskip("sslfast.triton.correlation.tiles").tile_of
PRIMITIVE = PRIMITIVES["cross_frobenius"]
TRITON = PRIMITIVE.implementations["triton"]
REFERENCE = PRIMITIVE.implementations["reference"]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs the kernels")
compiling = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile")

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)
# rows, features of a and of b (None: the symmetric form), route, diagonal apart
FORMS = {
    "gram": (70, 150, 140, "gram", False),
    "gram split": (70, 150, 150, "gram", True),
    "symmetric gram": (150, 70, None, "gram", True),
    "direct": (40, 150, 70, "direct", False),
    "direct split": (70, 150, 150, "direct", True),
    "symmetric direct": (70, 150, None, "direct", True),
}


def arguments_of(form: str, dtype: torch.dtype, device: str = "cpu") -> Arguments:
    num_rows, *dims, route, split = FORMS[form]
    return arguments(num_rows, *dims, route=route, split=split, dtype=dtype, device=device)


def arguments(
    num_rows: int,
    *dims: int | None,
    route: str,
    split: bool,
    dtype: torch.dtype,
    device: str = "cpu",
) -> Arguments:
    generator = torch.Generator().manual_seed(1)
    a, b = (
        None
        if dim is None
        else torch.empty(num_rows, dim, device=device, dtype=dtype)
        if device == "meta"
        else torch.randn(num_rows, dim, generator=generator).to(dtype)
        for dim in dims
    )
    assert a is not None
    return Arguments(a, b, split, route)


def room(given: Arguments) -> int:
    """Elements of the cache where `a` learns."""
    return keep.cache_elements(given.a, given.b, given.route, learns=True)


def gradients(given: Arguments, cached: bool) -> tuple[Tensor, ...]:
    """Total, diagonal and gradients, with the products kept or formed again."""
    sums = TRITON.forward(given, room(given) if cached else 0)
    dtotal = torch.tensor(0.75)
    ddiagonal = torch.linspace(-1, 1, len(sums.diagonal))
    needs = True, given.b is not None
    form = dtotal, ddiagonal, given, sums.diagonal, sums.cache, needs
    return sums.total, sums.diagonal, *TRITON.backward(*form)


def expected(given: Arguments) -> tuple[Tensor, ...]:
    wide = given._replace(a=given.a.double(), b=None if given.b is None else given.b.double())
    sums = REFERENCE.forward(wide, 0)
    ddiagonal = torch.linspace(-1, 1, len(sums.diagonal)).double()
    needs = True, given.b is not None
    form = torch.tensor(0.75).double(), ddiagonal, wide, sums.diagonal, sums.cache, needs
    return sums.total, sums.diagonal, *REFERENCE.backward(*form)


def assert_near(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Sums to float32's digits, gradients to those of their dtype, by relative L2 error."""
    for index, (left, right) in enumerate(zip(actual, truth, strict=True)):
        limit = 8 * torch.finfo(torch.float32 if index < 2 else dtype).eps
        assert left.shape == right.shape
        assert float((left.double() - right).norm()) <= limit * float(right.norm())


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_products_are_kept_whole(form: str, dtype: torch.dtype) -> None:
    """Both triangles, zeros behind the last column, no diagonal where it is split off."""
    from sslfast.triton.correlation.products import Operands

    given = arguments_of(form, dtype)
    cache = torch.full((room(given),), torch.nan)
    sums = TRITON.forward(given, len(cache))
    kept = Operands.of(given).kept(sums.cache)
    assert kept is not None
    a = given.a.double()
    b = a if given.b is None else given.b.double()
    products = [a.T @ b] if given.route == "direct" else [a @ a.T, b @ b.T][: 1 + (b is not a)]
    assert len(kept.matrices) == len(products)
    for index, (matrix, product) in enumerate(zip(kept.matrices, products, strict=True)):
        if given.route == "direct" and given.split_diagonal:
            product.fill_diagonal_(0)
        columns = product.shape[1]
        unit = kept.units[index, 0].double() if dtype == torch.float16 else 1
        actual = matrix[:, :columns].double() * unit
        limit = 2 * torch.finfo(dtype).eps * product.abs().max()
        assert float((actual - product).abs().max()) <= limit
        assert torch.equal(matrix[:, columns:], torch.zeros_like(matrix[:, columns:]))
        if given.route == "gram" or given.b is None:
            assert torch.equal(matrix[:, :columns], matrix[:, :columns].T)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_strips_of_products_give_the_gradient(
    form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was kept: three strips, the last of them ragged."""
    monkeypatch.setattr("sslfast.triton.correlation.plan.GPU_STRIP_ROWS", 64)
    monkeypatch.setattr("sslfast.triton.correlation.plan.GPU_STRIP_BYTES", 0)
    given = arguments_of(form, dtype)
    assert_near(gradients(given, cached=False), expected(given), dtype)


@interpreted
@pytest.mark.parametrize("processors", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["gram split", "symmetric gram", "direct split"])
def test_contractions_in_parts(
    form: str, dtype: torch.dtype, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many programs share a tile; twice the same bits."""
    chip = replace(TARGETS["sm_90"], processors=processors)
    num_rows, *dims, route, split = FORMS[form]
    if route == "gram":
        dims = [dim and dim + 500 for dim in dims]
    else:
        num_rows += 500
    with monkeypatch.context() as patched:
        patched.setattr("sslfast.triton.correlation.plan.PART_DEPTH", 0)
        patched.setattr("sslfast.triton.correlation.products.target", lambda tensor: chip)
        given = arguments(num_rows, *dims, route=route, split=split, dtype=dtype)
        results = gradients(given, cached=True)
        for left, right in zip(gradients(given, cached=True), results, strict=True):
            assert torch.equal(left, right)
    assert_near(results, expected(given), dtype)


@interpreted
def test_parts_of_few_tiles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Grams that meet, whose parts would be larger than the operands."""
    given = arguments(200, 20, 30, route="gram", split=False, dtype=torch.float32)
    whole = TRITON.forward(given, 0)
    monkeypatch.setattr(layout, "GPU_PARTS_BYTES", 0)
    with recording(TARGETS["sm_90"]) as recorded:
        TRITON.forward(given, 0)
    assert len(named(recorded, "fwd")) == len(named(recorded, "combine")) > 3
    assert torch.equal(TRITON.forward(given, 0).total, whole.total)


@interpreted
@pytest.mark.parametrize(("num_rows", "dim"), [(8, 2048), (2048, 8)], ids=str)
@pytest.mark.parametrize("both", [True, False])
def test_float16_where_its_products_overflow(
    num_rows: int, dim: int, both: bool, generator: torch.Generator
) -> None:
    """Standard deviation 8: squared norms of 131072."""
    drawn = [8 * torch.randn(num_rows, dim, generator=generator) for _ in range(1 + both)]
    given: dict[str, Any] = dict(zip("ab", drawn, strict=False))
    if num_rows > dim:
        assert (given["a"].half().T @ given["a"].half()).isinf().any()
    with sslfast.backend("triton"):
        # gradients of the plain sum are beyond float16 too
        report = check_case(
            lambda **a: 1e-9 * sslfast.cross_frobenius(**a, split_diagonal=True)[0],
            lambda **a: 1e-9 * PRIMITIVE.reference(**a, split_diagonal=True)[0],
            given,
            dtype=torch.float16,
            absolute=32 * torch.finfo(torch.float16).eps,
        )
    assert all(each.kernel.relative_l2 > 0 for each in report.reports)
    report.require()


@interpreted
@pytest.mark.parametrize("magnitude", [0.0, 1e-7, 3e4])
@pytest.mark.parametrize("route", ["gram", "direct"])
def test_scales_of_float16(route: str, magnitude: float, generator: torch.Generator) -> None:
    """Products of its smallest and of its largest numbers keep their digits."""
    a = (magnitude * torch.randn(20, 30, generator=generator).clamp(-2, 2)).half()
    given = Arguments(a, None, False, route)
    sums = TRITON.forward(given, room(given))
    wide = given._replace(a=a.double())
    truth = REFERENCE.forward(wide, 0)
    torch.testing.assert_close(sums.total.double(), truth.total, rtol=1e-6, atol=0)
    dtotal = torch.tensor(1.0 / max(magnitude, 1e-7) ** 3 / 1000)
    none = a.new_empty(0, dtype=torch.float32)
    needs = True, False
    (actual, _) = TRITON.backward(dtotal, none, given, none, sums.cache, needs)
    (right, _) = REFERENCE.backward(dtotal.double(), none.double(), wide, none, none, needs)
    torch.testing.assert_close(actual.double(), right, rtol=2e-3, atol=1e-3 * right.abs().max())


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("route", ["gram", "direct"])
def test_an_infinite_row_is_infinite(route: str, dtype: torch.dtype) -> None:
    """Not NaN by way of the zeros that a tile has beyond the last row."""
    given = arguments(5, 7, None, route=route, split=False, dtype=dtype)
    given.a[1, 2] = torch.inf
    for elements in (0, room(given)):
        sums = TRITON.forward(given, elements)
        assert sums.total == REFERENCE.forward(given, 0).total == torch.inf


@interpreted
def test_triangles_have_every_tile_once() -> None:
    @triton.jit
    def tiles(out, first, rows, columns, TRIANGLE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
        index = first + tl.arange(0, BLOCK)
        i, j = tile_of(index, rows, columns, TRIANGLE)
        tl.store(out + tl.arange(0, BLOCK), i)
        tl.store(out + BLOCK + tl.arange(0, BLOCK), j)

    def found(first: int, rows: int, columns: int, triangle: bool, count: int) -> list[Any]:
        out = torch.empty(2, 1024, dtype=torch.int32)
        launch(tiles, (1,), out, first, rows, columns, TRIANGLE=triangle, BLOCK=1024)
        return list(zip(*out[:, :count].tolist(), strict=True))

    blocks = 44
    triangle = found(0, blocks, blocks, True, blocks * (blocks + 1) // 2)
    assert set(triangle) == {(i, j) for j in range(blocks) for i in range(j + 1)}
    for last in (8191, 40_000):  # columns so far right that a root in float32 is not exact
        edge = last * (last + 1) // 2
        assert found(edge - 2, last, last, True, 4) == [
            (last - 2, last - 1),
            (last - 1, last - 1),
            (0, last),
            (1, last),
        ]
    for rows, columns in ((3, 5), (8, 4), (21, 45)):
        rectangle = found(0, rows, columns, False, rows * columns)
        assert set(rectangle) == {(i, j) for i in range(rows) for j in range(columns)}


@interpreted
@pytest.mark.parametrize("form", ["gram split", "direct split"])
def test_wide_tiles_of_gradients(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 columns, stored by halves, of which the last is empty or ragged."""
    chip = replace(TARGETS["sm_90"], processors=1)
    monkeypatch.setattr("sslfast.triton.correlation.gradients.target", lambda tensor: chip)
    num_rows, dim, _, route, split = FORMS[form]
    for features in (dim, dim + 130):
        form_of = {"route": route, "split": split, "dtype": torch.bfloat16}
        given = arguments(num_rows, features, features, **form_of)  # type: ignore[arg-type]
        assert_near(gradients(given, cached=True), expected(given), torch.bfloat16)


def record(given: Arguments, arch: str = "sm_90", cached: bool = True) -> list[Launch]:
    """Launches of forward and backward on meta tensors: nothing can be read back."""
    with recording(TARGETS[arch]) as recorded:
        sums = TRITON.forward(given, room(given) if cached else 0)
        TRITON.backward(
            torch.empty((), device="meta"),
            torch.empty_like(sums.diagonal),
            *(given, sums.diagonal, sums.cache, (True, given.b is not None)),
        )
    return recorded


def named(recorded: list[Launch], part: str) -> list[Launch]:
    return [each for each in recorded if f"_{part}_kernel" in each.kernel.__name__]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("given", "products"),
    [
        ((2048, 8192, 8192, "gram"), 2),
        ((4096, 8192, None, "gram"), 1),
        ((8192, 4096, None, "direct"), 1),
    ],
    ids=str,
)
def test_symmetric_products_cost_half(
    given: tuple[Any, ...], products: int, dtype: torch.dtype
) -> None:
    """As many tiles as lie on and above the diagonal, their contractions split or not."""
    num_rows, *dims, route = given
    recorded = record(
        arguments(num_rows, *dims, route=route, split=True, dtype=dtype, device="meta")
    )
    (forward,) = named(recorded, "fwd")
    blocks = min(num_rows, dims[0]) // forward.constants["BLOCK"]
    programs = products * blocks * (blocks + 1) // 2
    assert forward.grid[0] % programs == 0
    assert forward.grid[0] // programs <= 2
    assert len(named(recorded, "bwd")) == products


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("num_rows", [64, 256, 1000, 4096])
def test_few_tiles_are_split_among_the_processors(arch: str, num_rows: int) -> None:
    """No chip runs a quarter empty where a contraction is long."""
    form = {"route": "gram", "split": True, "dtype": torch.bfloat16, "device": "meta"}
    recorded = record(arguments(num_rows, 16_384, 16_384, **form), arch)  # type: ignore[arg-type]
    (forward,), processors = named(recorded, "fwd"), TARGETS[arch].processors
    blocks = -(-num_rows // forward.constants["BLOCK"])
    (programs,) = forward.grid
    waves = -(-programs // processors)
    assert programs > 0.75 * waves * processors or programs == 32 * blocks * (blocks + 1)


class _Live(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there were at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: Counter[int] = Counter()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(result is each for each in args):
            storage = result.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if not self.tensors[key]:
                self.now += size
                self.peak = max(self.peak, self.now)
            self.tensors[key] += 1
            weakref.finalize(result, self._free, key, size)
        return result

    def _free(self, key: int, size: int) -> None:
        self.tensors[key] -= 1
        if not self.tensors[key]:
            self.now -= size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (256, 8192, 8192, "gram"),
        (1000, 8191, 8191, "gram"),
        (2048, 8192, None, "gram"),
        (8192, 2048, 2048, "direct"),
        (65_536, 256, None, "direct"),
        (16_384, 100, 100, "gram"),
        (100, 16_384, 16_384, "direct"),
    ],
    ids=str,
)
def test_memory_keeps_its_promise(
    shape: tuple[Any, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the launchers allocate, on meta tensors; the promise is not four times of it."""
    for module in ("frobenius", "products", "gradients"):
        monkeypatch.setattr(
            f"sslfast.triton.correlation.{module}.launch", lambda *given, **options: None
        )
    num_rows, *dims, route = shape
    given = arguments(num_rows, *dims, route=route, split=True, dtype=dtype, device="meta")
    with recording(TARGETS["sm_90"]):
        for learns in (False, True):
            with _Live() as live:
                if learns:
                    record(given)
                else:
                    TRITON.forward(given, 0)
            promise = frobenius_cost.peak_bytes(given.a, given.b, route=route, backward=learns)
            print(f"{live.peak / 2**20:.1f} MiB of {promise / 2**20:.1f}")
            assert live.peak <= promise
    assert promise < 4 * live.peak


# as in a training: beyond the samples, so that tiles are as large as they get
LARGE = {
    "gram": (2048, 8192, 8192, "gram"),
    "symmetric gram": (4096, 8192, None, "gram"),
    "direct": (8192, 4096, 4096, "direct"),
    "ragged gram": (1001, 8190, 8190, "gram"),
    "ragged direct": (8191, 1001, 1001, "direct"),
    "forced gram": (16_384, 512, None, "gram"),
    "forced direct": (512, 8192, 8192, "direct"),
}


@compiling
@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("form", LARGE)
def test_large_problems_fit_the_chip(form: str, arch: str) -> None:
    """No spills, shared memory within the limit, matrix instructions in every product."""
    from sslfast.bench.resources_triton import _row, compile_launch, compiling_for

    num_rows, *dims, route = LARGE[form]
    given = arguments(num_rows, *dims, route=route, split=True, dtype=torch.bfloat16, device="meta")
    seen = set()
    with compiling_for(arch):
        for each in record(given, arch, cached="forced" not in form):
            kernel = compile_launch(each)
            if kernel.hash in seen:
                continue
            seen.add(kernel.hash)
            row = _row("cross_frobenius", arch, form, each, kernel)
            assert not row.failures
            assert bool(row.matrix) == ("_fwd_" in row.kernel or "_bwd_" in row.kernel)
    assert len(seen) >= 3


# tiles of matrices of halves that a kernel reads or writes
POINTERS = {"fwd": 2, "diagonal": 2, "bwd": 4}


@compiling
@pytest.mark.parametrize("route", ["gram", "direct"])
def test_offsets_have_64_bits(route: str) -> None:
    """Pointers to rows of matrices, which may lie beyond 32 bits."""
    from sslfast.bench.resources_triton import compile_launch, compiling_for

    given = arguments(
        1 << 20, 4096, 4096, route=route, split=True, dtype=torch.bfloat16, device="meta"
    )
    with compiling_for("sm_90"):
        for each in {launch.kernel: launch for launch in record(given)}.values():
            text = compile_launch(each).asm["ttir"]
            widths = re.findall(
                r"tt\.addptr .*tensor<\d+x\d+x!tt\.ptr<bf16>>, tensor<\S*x(i\d+)>", text
            )
            least = [n for part, n in POINTERS.items() if f"_{part}_" in each.kernel.__name__]
            assert widths.count("i64") >= sum(least), text
