"""What the enumerated tests do not know of `standardize`: conventions, statistics, constants."""

from __future__ import annotations

from typing import Any

import density
import pytest
import torch
from conftest import CPU_BACKENDS, require_backend, require_dtype, widest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import sslfast
from sslfast._registry import PRIMITIVES
from sslfast.testing import check_case, evaluate

PRIMITIVE = PRIMITIVES["standardize"]
X, D3 = torch.zeros(4, 3), torch.ones(3)
META = {"device": "meta"}

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kind": ({"embeddings": [[1.0]]}, TypeError, "embeddings must be a tensor, got list"),
    "integers": ({"embeddings": X.long()}, TypeError, "embeddings must be floating point .*int64"),
    "vector": ({"embeddings": D3}, ValueError, r"embeddings must be a matrix .* got shape \(3,\)"),
    "tokens": ({"embeddings": X[None]}, ValueError, r"embeddings must be a matrix \(N, D\)"),
    "no features": ({"embeddings": X[:, :0]}, ValueError, "at least one feature"),
    "no rows": (
        {"embeddings": X[:0]},
        ValueError,
        r"embeddings must have more than ddof = 0 rows .* got shape \(0, 3\)",
    ),
    "one row": (
        {"embeddings": X[:1], "ddof": 1},
        ValueError,
        r"more than ddof = 1 rows .*\(1, 3\)",
    ),
    "many ddof": ({"ddof": 4}, ValueError, r"more than ddof = 4 rows .* got shape \(4, 3\)"),
    "ddof kind": ({"ddof": 1.0}, TypeError, "ddof must be an integer, got float"),
    "ddof bool": ({"ddof": True}, TypeError, "ddof must be an integer, got bool"),
    "ddof negative": ({"ddof": -1}, ValueError, "ddof must be at least 0, got -1"),
    "eps kind": ({"eps": "1"}, TypeError, "eps must be a number, got str"),
    "eps bool": ({"eps": True}, TypeError, "eps must be a number, got bool"),
    "eps negative": ({"eps": -1e-5}, ValueError, "eps must be finite and at least 0, got -1e-05"),
    "eps nan": ({"eps": float("nan")}, ValueError, "eps must be finite .* got nan"),
    "eps infinite": ({"eps": float("inf")}, ValueError, "eps must be finite .* got inf"),
    "eps_on": (
        {"eps_on": "std"},
        ValueError,
        r"eps_on must be one of \('variance', 'deviation'\), got 'std'",
    ),
    "mean alone": ({"mean": D3}, ValueError, "variance must be given together with mean"),
    "variance alone": ({"variance": D3}, ValueError, "mean must be given together with variance"),
    "mean kind": ({"mean": 0.0, "variance": D3}, TypeError, "mean must be a tensor, got float"),
    "mean dtype": (
        {"mean": D3.int(), "variance": D3},
        TypeError,
        "mean must be floating point .*int32",
    ),
    "mean length": (
        {"mean": torch.ones(4), "variance": D3},
        ValueError,
        r"mean must have shape \(D,\) = \(3,\), got shape \(4,\)",
    ),
    "variance shape": (
        {"mean": D3, "variance": D3[None]},
        ValueError,
        r"variance must have shape \(D,\) = \(3,\), got shape \(1, 3\)",
    ),
    "mean device": (
        {"mean": D3.to(**META), "variance": D3},
        ValueError,
        r"mean must be on the device of embeddings \(cpu\), got meta",
    ),
    "variance negative": (
        {"mean": D3, "variance": torch.tensor([1.0, 0.0, -0.5])},
        ValueError,
        r"variance must not be negative, got -0\.5 at index 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        sslfast.standardize(**{"embeddings": X, **arguments})


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_deviation(rows: Tensor, unbiased: bool, eps: float) -> Tensor:
    return (rows - rows.mean(0)) / (rows.std(0, correction=int(unbiased)) + eps)


CONVENTIONS = {
    "lightly's Barlow Twins": (
        {},
        lambda rows: torch.nn.functional.batch_norm(rows, None, None, training=True),
    ),
    "Mixed Barlow Twins": ({"ddof": 1, "eps": 0.0}, lambda rows: by_deviation(rows, True, 0.0)),
    "stable-pretraining": (
        {"ddof": 1, "eps_on": "deviation"},
        lambda rows: by_deviation(rows, True, 1e-5),
    ),
    "unbiased, eps on the variance": (
        {"ddof": 1, "eps": 1e-3},
        lambda rows: (rows - rows.mean(0)) / (rows.var(0) + 1e-3).sqrt(),
    ),
    "centred": ({"unit_variance": False}, lambda rows: rows - rows.mean(0)),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions_of_other_libraries(
    name: str, cpu_backend: str, generator: torch.Generator
) -> None:
    """Values and gradients by torch's own formulas."""
    options, formula = CONVENTIONS[name]
    dtype = widest(cpu_backend, PRIMITIVE.name)
    rows = (3 * normal(generator, 29, 17) + normal(generator, 17)).to(dtype).requires_grad_()
    weights = normal(generator, 29, 17).to(dtype)
    actual, expected = sslfast.standardize(rows, **options), formula(rows)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, rows, weights), torch.autograd.grad(expected, rows, weights)
    )


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2), (0, 2)], ids=str)
def test_outputs_left_unused(
    used: tuple[int, ...], cpu_backend: str, generator: torch.Generator
) -> None:
    """VICReg takes its hinge from the variance, others from the mean alone."""
    dtype = widest(cpu_backend, PRIMITIVE.name)
    rows = (3 * normal(generator, 29, 17)).to(dtype).requires_grad_()

    def gradient(function: Any) -> Tensor:
        outputs = function(rows, ddof=1, statistics=True)
        (drows,) = torch.autograd.grad(sum(outputs[i].sin().sum() for i in used), rows)
        return drows

    torch.testing.assert_close(gradient(sslfast.standardize), gradient(PRIMITIVE.reference))


@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
@pytest.mark.parametrize(
    "learning", [("embeddings",), ("mean",), ("variance", "embeddings"), ("mean", "variance")]
)
def test_given_statistics_that_learn(
    learning: tuple[str, ...], eps_on: str, cpu_backend: str, generator: torch.Generator
) -> None:
    dtype = widest(cpu_backend, PRIMITIVE.name)
    drawn = {
        "embeddings": normal(generator, 700, 150),  # two groups of rows, two strips of columns
        "mean": normal(generator, 150),
        "variance": normal(generator, 150).square(),
    }
    drawn["variance"][7] = 0
    arguments = {name: value.to(dtype) for name, value in drawn.items()}
    options = {"eps": 0.01, "eps_on": eps_on}
    actual = evaluate(sslfast.standardize, {**arguments, **options}, learning)
    expected = evaluate(PRIMITIVE.reference, {**arguments, **options}, learning)
    torch.testing.assert_close(actual, expected)


def test_own_statistics_are_given_ones_that_learn(
    cpu_backend: str, generator: torch.Generator
) -> None:
    """The fused backward pass against autograd through mean and variance."""
    dtype = widest(cpu_backend, PRIMITIVE.name)
    rows = normal(generator, 40, 11).to(dtype).requires_grad_()
    weights = normal(generator, 40, 11).to(dtype)
    own = sslfast.standardize(rows, ddof=1)
    handed = sslfast.standardize(rows, mean=rows.mean(0), variance=rows.var(0))
    torch.testing.assert_close(own, handed)
    torch.testing.assert_close(
        torch.autograd.grad(own, rows, weights), torch.autograd.grad(handed, rows, weights)
    )


def test_given_statistics_of_another_dtype(cpu_backend: str, generator: torch.Generator) -> None:
    rows = normal(generator, 9, 5).to(torch.bfloat16).requires_grad_()
    mean = normal(generator, 5).requires_grad_()
    variance = (1 + normal(generator, 5).square()).half().requires_grad_()
    y, handed_mean, handed_variance = sslfast.standardize(
        rows, mean=mean, variance=variance, statistics=True
    )
    assert (y.dtype, handed_mean.dtype, handed_variance.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    torch.testing.assert_close(handed_mean, mean.float())
    y.sum().backward()
    for leaf in (rows, mean, variance):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype


def test_given_centre_has_no_use_for_the_variance(cpu_backend: str) -> None:
    mean, variance = torch.full((3,), 2.0), torch.zeros(3, requires_grad=True)
    y = sslfast.standardize(X, mean=mean, variance=variance, unit_variance=False)
    torch.testing.assert_close(y, X - 2)
    (dvariance,) = torch.autograd.grad(y.sum(), variance)
    assert torch.equal(dvariance, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 2, 7, 600])
@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
def test_constant_columns_are_zero(
    eps_on: str, num_rows: int, dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    """To the last bit, so that no eps is needed; and so is their gradient."""
    require_dtype(cpu_backend, dtype, PRIMITIVE.name)
    values = torch.tensor([0.1, 1 / 3, -1000.1, 0.0, 3e-6, 54321.9], dtype=torch.float64)
    rows = values.repeat(num_rows, 1).to(dtype).requires_grad_()
    y, mean, variance = sslfast.standardize(rows, eps=0.0, eps_on=eps_on, statistics=True)
    cotangent = normal(generator, *rows.shape).to(dtype)
    (drows,) = torch.autograd.grad(y, rows, cotangent)
    assert torch.equal(mean, values.to(dtype).to(mean.dtype))
    for zero in (y, variance, drows):
        assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize("num_rows", [40, 3000])
def test_a_large_mean_costs_no_digits(
    num_rows: int, cpu_backend: str, generator: torch.Generator
) -> None:
    """Ten thousand deviations away, where a float32 mean is off by 3e-4 of one."""
    rows = (1e4 + normal(generator, num_rows, 13)).float()
    rows[:, 1] -= 1e4
    rows[0, 1] = 1e4  # the first row is what others measure from
    y, _, variance = sslfast.standardize(rows, statistics=True)
    truth, _, spread = PRIMITIVE.reference(rows.double(), statistics=True)
    assert (y.double() - truth).abs().max() < 4e-7 * truth.abs().max()
    torch.testing.assert_close(variance.double(), spread, rtol=4e-7, atol=0)
    naive = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    assert (naive.double() - truth).abs().max() > 5e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_do_not_overflow(
    dtype: torch.dtype, cpu_backend: str, generator: torch.Generator
) -> None:
    """Sums of squares and of gradients beyond 65504, the gradient itself within it."""
    rows = (16 * normal(generator, 1030, 6)).to(dtype).requires_grad_()
    cotangent = (2e4 + 1e3 * normal(generator, 1030, 6)).to(dtype)
    y = sslfast.standardize(rows)
    (drows,) = torch.autograd.grad(y, rows, cotangent)
    wide = rows.detach().double().requires_grad_()
    truth = PRIMITIVE.reference(wide)
    (dtruth,) = torch.autograd.grad(truth, wide, cotangent.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), truth, rtol=eps, atol=eps)
    torch.testing.assert_close(drows.double(), dtruth, rtol=eps, atol=0.1)
    if dtype == torch.float16:
        assert rows.detach().square().sum(0).isinf().all()


def test_nan_stays_in_its_column(cpu_backend: str, generator: torch.Generator) -> None:
    rows = normal(generator, 30, 4).float()
    rows[3, 1], rows[0, 2] = torch.nan, torch.inf
    rows.requires_grad_()
    y = sslfast.standardize(rows)
    (drows,) = torch.autograd.grad(y.square().sum(), rows)
    for result in (y, drows):
        assert result.isnan().all(0).tolist() == [False, True, True, False]
        assert result.isfinite().all(0).tolist() == [True, False, False, True]


def test_nan_variance_is_no_zero(cpu_backend: str) -> None:
    variance = torch.tensor([torch.nan, 1.0, 0.0])
    y = sslfast.standardize(X + 1, mean=torch.zeros(3), variance=variance, eps=0.0)
    assert y.isnan().all(0).tolist() == [True, False, False]
    assert torch.equal(y[:, 1:], torch.tensor([[1.0, 0.0]]).expand(4, 2))


def test_infinite_mean_is_no_nan(cpu_backend: str) -> None:
    mean = torch.tensor([torch.inf, -torch.inf, 0.0])
    y = sslfast.standardize(X + 1, mean=mean, variance=D3, eps=0.0)
    assert torch.equal(y, torch.tensor([[-torch.inf, torch.inf, 1.0]]).expand(4, 3))


def test_only_the_rows_are_saved(cpu_backend: str) -> None:
    """The user's tensor itself, and vectors; not y, nor anything else of N x D."""
    rows = torch.randn(50, 8, requires_grad=True)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        sslfast.standardize(rows, statistics=True)
    matrices = [tensor for tensor in saved if tensor.numel() >= rows.numel()]
    assert [tensor.data_ptr() for tensor in matrices] == [rows.data_ptr()]


sizes = st.one_of(st.integers(2, 20), st.sampled_from([63, 64, 65, 130]))
features = st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 129, 257]))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(deadline=None, derandomize=True, max_examples=density.examples(40))
@given(
    num_rows=sizes,
    dim=features,
    scale=st.floats(-3, 3).map(lambda power: 10.0**power),
    mean=st.sampled_from([0.0, 1.0, 100.0]),
    ddof=st.integers(0, 1),
    eps_on=st.sampled_from(["variance", "deviation"]),
    unit_variance=st.booleans(),
    learned=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_anywhere(
    backend: str,
    num_rows: int,
    dim: int,
    scale: float,
    mean: float,
    ddof: int,
    eps_on: str,
    unit_variance: bool,
    learned: bool,
    seed: int,
) -> None:
    require_backend(backend)
    generator = torch.Generator().manual_seed(seed)
    case: dict[str, Any] = {"embeddings": scale * (normal(generator, num_rows, dim) + mean)}
    if learned:
        case["mean"] = scale * (normal(generator, dim) + mean)
        case["variance"] = scale**2 * normal(generator, dim).square()
    options = {"ddof": ddof, "eps_on": eps_on, "unit_variance": unit_variance, "eps": 1e-3}
    with sslfast.backend(backend):
        check_case(
            PRIMITIVE.function,
            PRIMITIVE.reference,
            {**case, **options, "statistics": True},
            dtype=torch.float32,
            differentiable=PRIMITIVE.differentiable,
        ).require()


@pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name.startswith("cpu")])
@pytest.mark.parametrize(
    "shape", [(512, 1), (513, 127), (1025, 128), (2048, 1024), (2049, 1025)], ids=str
)
@pytest.mark.parametrize("learned", [False, True])
def test_groups_of_rows(
    learned: bool, shape: tuple[int, int], backend: str, generator: torch.Generator
) -> None:
    """Below, at and above the sizes at which the native kernels divide rows and columns."""
    require_backend(backend)
    case: dict[str, Any] = {"embeddings": normal(generator, *shape) + 1, "statistics": True}
    if learned:
        case["mean"] = normal(generator, shape[1])
        case["variance"] = normal(generator, shape[1]).square()
    with sslfast.backend(backend):
        check_case(
            PRIMITIVE.function,
            PRIMITIVE.reference,
            case,
            dtype=torch.float32,
            differentiable=PRIMITIVE.differentiable,
        ).require()
