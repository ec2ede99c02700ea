"""What the enumerated tests do not know of the sorting networks: tables, tails, saturation."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from conftest import require_dtype
from torch import Tensor

import sslfast
from sslfast._core.sorting.network import NETWORKS, RELAXATIONS, layers_of, num_swaps, swap_table
from sslfast.ops.sorting.group_mass import reference
from sslfast.ops.sorting.network_reference import LEAST_MASS

pytestmark = pytest.mark.primitives("relaxed_sort", "sorting_group_mass")
LISTS = torch.zeros(3, 4)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kind": ({"values": [[1.0]]}, TypeError, "values must be a tensor, got list"),
    "integers": ({"values": LISTS.long()}, TypeError, "values must be floating point .*int64"),
    "one list": ({"values": LISTS[0]}, ValueError, r"values must be lists .* got shape \(4,\)"),
    "no values": ({"values": LISTS[:, :0]}, ValueError, r"at least one value .*\(3, 0\)"),
    "network": ({"network": "merge"}, ValueError, r"network must be one of .* got 'merge'"),
    "relaxation": ({"relaxation": "tanh"}, ValueError, "relaxation must be one of .* got 'tanh'"),
    "steepness": ({"steepness": 0.0}, ValueError, r"steepness must be .* above 0, got 0\.0"),
    "steepness nan": ({"steepness": math.nan}, ValueError, "steepness must be .* got nan"),
    "steepness kind": ({"steepness": "1"}, TypeError, "steepness must be a number, got str"),
    "steepness bool": ({"steepness": True}, TypeError, "steepness must be a number, got bool"),
    "art_lambda": ({"art_lambda": 1.0}, ValueError, r"art_lambda must be .* got 1\.0"),
    "art_lambda kind": ({"art_lambda": None}, TypeError, "art_lambda must be a number"),
}
REFUSED_GROUPS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "sizes kind": ({"group_sizes": 4}, TypeError, "group_sizes must be a sequence .* got int"),
    "sizes tensor": ({"group_sizes": torch.ones(4)}, TypeError, "got Tensor"),
    "sizes floats": ({"group_sizes": (1.0, 3.0)}, TypeError, "group_sizes must hold integers"),
    "sizes sum": ({"group_sizes": (2, 1)}, ValueError, r"n = 4, got \(2, 1\)"),
    "sizes zero": ({"group_sizes": (4, 0)}, ValueError, r"must be positive .* got \(4, 0\)"),
    "sizes none": ({"group_sizes": ()}, ValueError, r"must be positive .* got \(\)"),
    "teacher alone": ({"teacher": LISTS}, ValueError, "teacher must be None unless cross_entropy"),
    "teacher shape": (
        {"teacher": LISTS[:2], "cross_entropy": True},
        ValueError,
        r"teacher must have the shape of values \(3, 4\), got \(2, 4\)",
    ),
    "teacher kind": (
        {"teacher": LISTS.long(), "cross_entropy": True},
        TypeError,
        "teacher must be floating point",
    ),
    "teacher device": (
        {"teacher": LISTS.to("meta"), "cross_entropy": True},
        ValueError,
        "teacher must be on the device of values",
    ),
    "teacher_steepness": (
        {"teacher": LISTS, "cross_entropy": True, "teacher_steepness": -1.0},
        ValueError,
        r"teacher_steepness must be finite and above 0, got -1\.0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        sslfast.relaxed_sort(**{"values": LISTS, **arguments})
    with pytest.raises(error, match=message):
        sslfast.sorting_group_mass(**{"values": LISTS, "group_sizes": (3, 1), **arguments})


@pytest.mark.parametrize("name", REFUSED_GROUPS)
def test_refuses_groups(name: str) -> None:
    arguments, error, message = REFUSED_GROUPS[name]
    with pytest.raises(error, match=message):
        sslfast.sorting_group_mass(**{"values": LISTS, "group_sizes": (3, 1), **arguments})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite(bad: float, cpu_backend: str) -> None:
    """An excluded similarity of -inf must not come into a network: its difference is NaN."""
    values = LISTS.clone()
    values[1, 2] = bad
    message = rf"must be finite, got {bad} at index \(1, 2\)"
    with pytest.raises(ValueError, match=f"values {message}"):
        sslfast.relaxed_sort(values)
    with pytest.raises(ValueError, match=f"values {message}"):
        sslfast.sorting_group_mass(values, (3, 1))
    with pytest.raises(ValueError, match=f"teacher {message}"):
        sslfast.sorting_group_mass(LISTS, (3, 1), cross_entropy=True, teacher=values)


@pytest.mark.parametrize("length", range(1, 13))
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_sort(network: str, length: int) -> None:
    """What sorts every list of zeros and ones sorts every list (Knuth, volume 3, 5.3.4, Z)."""
    for wires in product((0, 1), repeat=length):
        values = list(wires)
        for layer in layers_of(network, length):
            for p, q in layer:
                if values[p] > values[q]:
                    values[p], values[q] = values[q], values[p]
        assert values == sorted(values)


@pytest.mark.parametrize(
    ("network", "length", "layers", "swaps"),
    [
        ("odd_even", 11, 11, 55),
        ("odd_even", 49, 49, 1176),
        ("bitonic", 11, 10, 46),
        ("bitonic", 49, 21, 483),
        ("bitonic", 128, 28, 1792),
    ],
)
def test_size_of_networks(network: str, length: int, layers: int, swaps: int) -> None:
    assert len(layers_of(network, length)) == layers
    assert num_swaps(network, length) == swaps
    table, begins = swap_table(network, length, torch.device("cpu"))
    assert table.shape == (swaps, 2)
    assert begins[-1] == swaps
    for layer in layers_of(network, length):
        wires = [wire for pair in layer for wire in pair]
        assert len(set(wires)) == len(wires)


def small_share(relaxation: str, v: Tensor) -> Tensor:
    """f(-v) in float64, by formulas that keep the digits of small results."""
    if relaxation == "cauchy":
        return torch.atan2(torch.ones_like(v), v) / math.pi
    if relaxation == "reciprocal":
        return 1 / (2 + v)
    if relaxation == "optimal":
        return torch.where(v <= 0.25, 0.5 - v, 1 / (16 * v))
    if relaxation == "gaussian":
        return torch.special.erfc(v / math.sqrt(2)) / 2
    return torch.special.expit(-v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_small_shares_keep_their_digits(
    relaxation: str, dtype: torch.dtype, cpu_backend: str
) -> None:
    """A comparator's smaller share over all magnitudes, relative to itself."""
    require_dtype(cpu_backend, dtype, "relaxed_sort")
    if cpu_backend == "reference":
        pytest.skip("the manual has the formulas as published, which cancel in the tails")
    d = torch.logspace(-3, 1, 257, dtype=torch.float64).to(dtype)
    for sign in (1, -1):
        values = torch.stack([torch.zeros_like(d), sign * d], 1)
        _, shares = sslfast.relaxed_sort(
            values, relaxation=relaxation, steepness=1.0, permutation=True
        )
        small = shares[:, 0, 1 if sign > 0 else 0].double()
        v = d.double()
        if relaxation == "logistic_phi":
            v = v / (v + 1e-10).pow(0.25)
        truth = small_share(relaxation, v)
        error = ((small - truth) / truth).abs().max()
        assert error < (1e-6 if dtype == torch.float32 else 2e-14)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_equal_values_share_alike(relaxation: str, zero: float, cpu_backend: str) -> None:
    """Also of zeros of either sign, whose difference may be -0."""
    values = torch.tensor([[zero, 0.0], [0.0, zero], [3.0, 3.0]], requires_grad=True)
    ordered, shares = sslfast.relaxed_sort(values, relaxation=relaxation, permutation=True)
    torch.testing.assert_close(shares, torch.full((3, 2, 2), 0.5))
    torch.testing.assert_close(ordered, values.detach())
    (gradient,) = torch.autograd.grad(shares[:, 0, 0].sum(), values)
    assert gradient.isfinite().all()
    assert (gradient[:, 1] > 0).all()


def test_one_value_is_its_own_list(cpu_backend: str) -> None:
    values = torch.tensor([[2.0], [-1.0]], requires_grad=True)
    ordered, shares = sslfast.relaxed_sort(values, permutation=True)
    assert torch.equal(ordered, values)
    assert torch.equal(shares, torch.ones(2, 1, 1))
    rows = sslfast.sorting_group_mass(values, (1,), cross_entropy=True)
    assert torch.equal(rows, torch.zeros(2))
    (gradient,) = torch.autograd.grad(rows.sum(), values)
    assert torch.equal(gradient, torch.zeros(2, 1))


@pytest.mark.parametrize("relaxation", ["logistic", "logistic_phi", "gaussian"])
def test_saturated_masses_keep_their_digits(
    relaxation: str, cpu_backend: str, generator: torch.Generator
) -> None:
    """Groups far apart: losses of 1e-9 and below, which 1 - mass in float32 rounds to 0."""
    if cpu_backend == "reference":
        pytest.skip("the manual sums P, which is the baseline here")
    values = torch.randn(32, 11, generator=generator).sort(1).values
    values[:, 8:] += {"gaussian": 6, "logistic": 22}.get(relaxation, 50)
    options: dict[str, Any] = {"relaxation": relaxation, "steepness": 1.0, "cross_entropy": True}
    leaf = values.clone().requires_grad_()
    rows = sslfast.sorting_group_mass(leaf, (8, 3), **options)
    (gradient,) = torch.autograd.grad(rows.sum(), leaf)
    exact = values.double().requires_grad_()
    masses = sslfast.sorting_group_mass(exact, (8, 3), relaxation=relaxation, steepness=1.0)
    other = torch.cat([masses[:, :8, 1], masses[:, 8:, 0]], 1)  # what is missing from 1
    truth = -torch.log1p(-other).mean(1)
    (dtruth,) = torch.autograd.grad(truth.sum(), exact)
    assert (truth < 1e-4).all()
    torch.testing.assert_close(rows.double(), truth, rtol=1e-3, atol=2e-7)
    torch.testing.assert_close(gradient.double(), dtruth, rtol=1e-3, atol=1e-7)


def test_hopeless_lists_stay_finite(cpu_backend: str) -> None:
    """Masses of 0: -log goes on along its tangent, and nothing is infinite or NaN."""
    values = torch.linspace(30, -30, 9).repeat(2, 1).requires_grad_()
    rows = sslfast.sorting_group_mass(
        values, (6, 3), cross_entropy=True, relaxation="gaussian", steepness=10.0
    )
    most = 1 - math.log(LEAST_MASS)
    assert (rows > 0.5 * most).all()
    assert (rows <= most * 1.001).all()
    (gradient,) = torch.autograd.grad(rows.sum(), values)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_no_gradient_towards_oneself(
    network: str, cpu_backend: str, generator: torch.Generator
) -> None:
    """The cross entropy to a teacher is least where both agree."""
    require_dtype(cpu_backend, torch.float64, "sorting_group_mass")
    values = torch.randn(5, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"cross_entropy": True, "network": network, "steepness": 3.0}
    rows = sslfast.sorting_group_mass(values, (1,) * 9, teacher=values, **options)
    (gradient,) = torch.autograd.grad(rows.sum(), values)
    assert float(gradient.abs().max()) < 1e-13
    other = values.detach() + 0.1
    other[:, 0] += 1
    moved = sslfast.sorting_group_mass(values, (1,) * 9, teacher=other, **options)
    assert not torch.autograd.grad(moved.sum(), values)[0].abs().max() < 1e-3


def test_teacher_gets_no_gradient(cpu_backend: str, generator: torch.Generator) -> None:
    values = torch.randn(3, 5, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, generator=generator, requires_grad=True)
    rows = sslfast.sorting_group_mass(values, (1,) * 5, cross_entropy=True, teacher=teacher)
    rows.sum().backward()
    assert values.grad is not None
    assert teacher.grad is None


def test_nothing_but_the_gradient_is_kept(cpu_backend: str, generator: torch.Generator) -> None:
    values = torch.randn(64, 11, generator=generator, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rows = sslfast.sorting_group_mass(values, (10, 1), cross_entropy=True)
    assert [tensor.shape for tensor in kept] == [values.shape]
    with torch.no_grad():
        assert torch.equal(rows, sslfast.sorting_group_mass(values, (10, 1), cross_entropy=True))


@pytest.mark.parametrize("steepness", [1.0, 4.0, 10.0, 100.0])
def test_group_masses_by_steepness(
    steepness: float, cpu_backend: str, generator: torch.Generator
) -> None:
    """One positive at 1 and ten negatives at -1: a steepness of 1 is far from a hard sort."""
    values = torch.full((1, 11), -1.0)
    values[0, 10] = 1
    mass = sslfast.sorting_group_mass(values, (10, 1), steepness=steepness)[0, 10, 1]
    expected = {1.0: 0.386, 4.0: 0.802, 10.0: 0.920, 100.0: 0.992}[steepness]
    assert abs(float(mass) - expected) < 1e-3


def test_masses_against_the_manual(cpu_backend: str, generator: torch.Generator) -> None:
    """Longer than a register of lists, and a number of groups that divides nothing."""
    values = torch.randn(53, 40, generator=generator)
    sizes = (7, 1, 13, 19)
    for network in NETWORKS:
        masses = sslfast.sorting_group_mass(values, sizes, network=network)
        truth = reference(values.double(), sizes, network=network)
        torch.testing.assert_close(masses.double(), truth, rtol=1e-5, atol=1e-6)
