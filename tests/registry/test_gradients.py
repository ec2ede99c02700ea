"""Gradients against finite differences in float64, and what has no gradient."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import density
import pytest
import torch
from conftest import CASES, Case, require_dtype, widest
from torch import Tensor

import sslfast
from sslfast._registry import PRIMITIVES
from sslfast.testing import cast, check_case

LOGSUMEXP = PRIMITIVES["similarity_logsumexp"]
MAX_INPUTS = 700  # finite differences cost two calls an element
CHECKED = tuple(
    case
    for case in CASES
    if case.sample.size in ("tiny", "extreme")
    and case.sample.smooth
    and sum(
        value.numel()
        for value in case.sample.make(torch.Generator().manual_seed(0)).values()
        if isinstance(value, Tensor)
    )
    <= MAX_INPUTS
)


@pytest.mark.thin(rule=density.oracle)
@pytest.mark.uninterpreted
@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_gradcheck(case: Case, cpu_backend: str, generator: torch.Generator) -> None:
    require_dtype(cpu_backend, torch.float64, case.primitive.name)
    arguments = case.sample.make(generator)
    names = [n for n in case.primitive.differentiable if n in arguments]
    leaves = [arguments[name].requires_grad_() for name in names]

    def function(*values: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = case.primitive.function(**{**arguments, **dict(zip(names, values, strict=True))})
        if isinstance(outputs, Tensor):
            return _finite(outputs)
        return tuple(_finite(output) for output in outputs)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=False)


def _finite(output: Tensor) -> Tensor:
    """Rows whose every key is excluded are -inf and have no finite difference."""
    return output.masked_fill(output == -torch.inf, 0.0)


def _options(generator: torch.Generator, backend: str) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        rows = torch.randn(shape, generator=generator, dtype=torch.float64)
        return rows.to(widest(backend, LOGSUMEXP.name))

    return {
        "queries": normal(5, 3),
        "keys": normal(7, 3),
        "scale": normal(5),
        "bias": normal(7),
    }


@pytest.mark.parametrize(
    "wanted",
    [
        names
        for count in (1, 2, 3)
        for names in combinations(("queries", "keys", "scale", "bias"), count)
    ],
    ids="+".join,
)
def test_partial_gradients(
    wanted: tuple[str, ...], cpu_backend: str, generator: torch.Generator
) -> None:
    """Each subset of the arguments that may require a gradient."""
    arguments = _options(generator, cpu_backend)
    for name in wanted:
        arguments[name].requires_grad_()
    leaves = [arguments[name] for name in wanted]
    ids = {"query_ids": torch.arange(5) % 3, "key_ids": torch.arange(7) % 4}
    actual = torch.autograd.grad(sslfast.similarity_logsumexp(**arguments, **ids).sum(), leaves)
    with sslfast.backend("reference"):
        expected = torch.autograd.grad(
            sslfast.similarity_logsumexp(**arguments, **ids).sum(), leaves
        )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("unused", [0, 1], ids=["rows", "columns"])
def test_one_output_unused(unused: int, cpu_backend: str, generator: torch.Generator) -> None:
    options = _options(generator, cpu_backend)
    queries, keys = (options[name].requires_grad_() for name in ("queries", "keys"))
    outputs = sslfast.similarity_logsumexp(queries, keys, scale=3.0, columns=True)
    actual = torch.autograd.grad(outputs[1 - unused].sum(), (queries, keys))
    exchanged = (queries, keys) if unused else (keys, queries)
    expected = sslfast.similarity_logsumexp(*exchanged, scale=3.0).sum()
    torch.testing.assert_close(actual, torch.autograd.grad(expected, (queries, keys)))


def test_learned_scale_without_row_gradient(cpu_backend: str, generator: torch.Generator) -> None:
    """Only the temperature learns; with enough features for the exponentials to be kept."""
    require_dtype(cpu_backend, torch.float64, LOGSUMEXP.name)
    queries = torch.randn(33, 80, generator=generator, dtype=torch.float64)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(33)

    def total(value: Tensor) -> Tensor:
        return sslfast.similarity_logsumexp(queries, scale=value, query_ids=ids).sum()

    assert torch.autograd.gradcheck(total, scale)


@pytest.mark.parametrize("num_rows", [1, 2, 191, 192, 193, 400])
def test_kept_exponentials_do_not_change_the_gradient(
    num_rows: int, cpu_backend: str, generator: torch.Generator
) -> None:
    """With a gradient to come the symmetric form keeps exponentials; the rectangular never does."""
    dtype = widest(cpu_backend, LOGSUMEXP.name)
    rows = torch.randn(num_rows, 64, generator=generator, dtype=dtype)
    rows = (rows / 4).requires_grad_()
    symmetric = sslfast.similarity_logsumexp(rows, scale=1.5)
    rectangular = sslfast.similarity_logsumexp(rows, rows, scale=1.5)
    with torch.no_grad():
        torch.testing.assert_close(sslfast.similarity_logsumexp(rows, scale=1.5), symmetric)
    weights = torch.rand(num_rows, generator=generator, dtype=dtype)
    torch.testing.assert_close(
        torch.autograd.grad(symmetric, rows, weights),
        torch.autograd.grad(rectangular, rows, weights),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_zero_row_has_finite_gradient(dtype: torch.dtype, cpu_backend: str) -> None:
    rows = torch.zeros(3, 4, dtype=dtype)
    rows[1] = 1
    rows.requires_grad_()
    sslfast.l2_normalize(rows).backward(torch.full((3, 4), 2.0, dtype=dtype))
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_excluded_rows_have_zero_gradient(cpu_backend: str, generator: torch.Generator) -> None:
    queries = torch.randn(4, 3, generator=generator, requires_grad=True)
    keys = torch.randn(2, 3, generator=generator, requires_grad=True)
    rows = sslfast.similarity_logsumexp(
        queries, keys, query_ids=torch.tensor([0, 1, 0, 2]), key_ids=torch.zeros(2).long()
    )
    assert (rows == -torch.inf).tolist() == [True, False, True, False]
    dqueries, dkeys = torch.autograd.grad(rows[[0, 2]].sum(), (queries, keys))
    assert not dqueries.any()
    assert not dkeys.any()


@pytest.mark.parametrize("case", [c for c in CASES if c.sample.size == "ragged"], ids=str)
def test_second_derivative_raises(case: Case, generator: torch.Generator) -> None:
    arguments = cast(case.sample.make(generator), torch.float32)
    leaf = arguments[case.primitive.differentiable[0]].requires_grad_()
    outputs = case.primitive.function(**arguments)
    first = outputs if isinstance(outputs, Tensor) else outputs[0]
    dfirst = torch.ones_like(first, requires_grad=True)  # all that the gradient of a sum depends on
    (gradient,) = torch.autograd.grad(first, leaf, dfirst, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{case.primitive.name}_backward"):
        gradient.sum().backward()


def test_probabilities_of_a_row_sum_to_one(cpu_backend: str) -> None:
    """The saved sum is rounded to float32, 2e-6 here, which would scale the row's gradient.

    Triton's kernels keep the sum itself, added up in float32, the CPU's in float64.
    """
    worst = 0.0
    for seed in range(4 if cpu_backend == "triton" else 20):
        generator = torch.Generator().manual_seed(seed)
        queries = 3 * torch.randn(1, 16, generator=generator)
        keys = torch.randn(5000, 16, generator=generator)
        bias = torch.zeros(5000, requires_grad=True)
        (dbias,) = torch.autograd.grad(
            sslfast.similarity_logsumexp(queries, keys, bias=bias).sum(), bias
        )
        worst = max(worst, abs(float(dbias.double().sum()) - 1))
    assert worst < {"reference": 4e-6, "triton": 4e-7}.get(cpu_backend, 1.5e-7)


@pytest.mark.uninterpreted
@pytest.mark.parametrize("form", ["symmetric", "rows", "columns", "bias and scales"])
def test_kept_exponentials_give_the_same_gradient(
    form: str, cpu_backend: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Over several strips of keys, with ids, against exponentials computed again."""
    num_rows, num_keys, dim = 200, 9000, 128
    queries = torch.nn.functional.normalize(torch.randn(num_rows, dim, generator=generator))
    keys = torch.nn.functional.normalize(torch.randn(num_keys, dim, generator=generator))
    arguments = {"queries": queries, "keys": keys, "scale": torch.tensor(9.0)}
    arguments["query_ids"] = torch.arange(num_rows) % 7
    arguments["key_ids"] = torch.arange(num_keys) % 11
    if form == "symmetric":
        del arguments["keys"], arguments["key_ids"]
    if form == "bias and scales":
        arguments["scale"] = 5 + torch.rand(num_rows, generator=generator)
        arguments["bias"] = torch.randn(num_keys, generator=generator)
    leaves = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]

    def gradients() -> list[Tensor]:
        outputs = sslfast.similarity_logsumexp(**arguments, columns=form == "columns")
        total = outputs.sum() if isinstance(outputs, Tensor) else sum(o.sum() for o in outputs)
        return list(torch.autograd.grad(total, leaves))

    kept = gradients()
    monkeypatch.setattr("sslfast._core.similarity.logsumexp_keep.cache_bytes", lambda *_: 0)
    for one, other in zip(kept, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["queue", "options", "cold", "one filtered out", "wide"])
def test_only_queries_learn(
    form: str, dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    """The gradient is then the mean of the keys, which the forward pass sums where it can."""
    require_dtype(cpu_backend, dtype, LOGSUMEXP.name)
    num_rows, num_keys, dim = 70, 333, 300 if form == "wide" else 61
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    arguments: dict[str, Any] = {
        "queries": torch.nn.functional.normalize(normal(num_rows, dim)),
        "keys": torch.nn.functional.normalize(normal(num_keys, dim)),
        "scale": torch.tensor({"queue": 5.0, "cold": 2000.0}.get(form, 20.0)).double(),
    }
    if form == "options":
        arguments["scale"] = 5 + normal(num_rows).abs()
        arguments["bias"] = normal(num_keys)
    if form in ("options", "one filtered out"):
        arguments["query_ids"] = torch.arange(num_rows) % 9
        arguments["key_ids"] = torch.arange(num_keys) % 11
    if form == "one filtered out":
        arguments["key_ids"][:] = 3
    report = check_case(
        sslfast.similarity_logsumexp,
        LOGSUMEXP.reference,
        arguments,
        dtype=dtype,
        differentiable=("queries", "scale"),
    )
    print(f"error ratio {report.ratio:.2f}")
    report.require()
