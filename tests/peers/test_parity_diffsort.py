"""`relaxed_sort`, `DiffSortNet` and the losses on networks against diffsort 0.2, where installed.

diffsort multiplies the permutation by dense one-hot matrices, layer by layer, and leaves the rest
to autograd. Everything here is float64 and lists are drawn so that no share saturates: there both
must agree to 1e-10. Where shares come near 0 and 1 diffsort forms 1 - alpha by a difference, and is
no oracle.
"""

from __future__ import annotations

import inspect
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
from sslfast import relaxed_sort, sorting_group_mass
from sslfast._core.sorting.network import RELAXATIONS, layers_of
from sslfast.losses import DiffSortNet

NETWORKS = ("odd_even", "bitonic")
PAIRS = list(product(NETWORKS, RELAXATIONS))
LENGTHS = (2, 3, 5, 8, 11, 13, 16, 25, 32, 49, 64)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def theirs_or_skip(*arguments, **options) -> torch.nn.Module:
    diffsort = pytest.importorskip("diffsort", reason="diffsort is not installed")
    return diffsort.DiffSortNet(*arguments, **options)


@pytest.fixture
def _optimal_without_epsilon(monkeypatch):
    """Theirs adds 1e-10 to |v| in the tails of ``"optimal"``, which alone costs digits to 1e-8."""
    functional = pytest.importorskip("diffsort.functional", reason="diffsort is not installed")

    def optimal(v: Tensor) -> Tensor:
        tail = v.sign() * (0.5 - 1 / (16 * v.abs().clamp_min(0.25)))
        return 0.5 + torch.where(v.abs() <= 0.25, v, tail)

    monkeypatch.setattr(functional, "s_best", optimal)


def lists(batch: int, length: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, generator=generator, dtype=torch.float64).requires_grad_()


def weights_of(*tensors: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


def gradient(outputs: tuple[Tensor, ...], leaf: Tensor) -> Tensor:
    return torch.autograd.grad(outputs, leaf, weights_of(*outputs))[0]


@pytest.mark.usefixtures("_optimal_without_epsilon")
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("network", "relaxation"), PAIRS)
def test_values_permutation_and_gradient(network, relaxation, length):
    steepness = 1.0 if relaxation in ("gaussian", "logistic", "logistic_phi") else 3.0
    theirs = theirs_or_skip(network, length, steepness=steepness, distribution=relaxation)
    ours = DiffSortNet(network, length, steepness=steepness, distribution=relaxation)
    values = lists(4, length)
    expected, actual = theirs(values), ours(values)
    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(gradient(actual, values), gradient(expected, values), **CLOSE)


@pytest.mark.usefixtures("_optimal_without_epsilon")
@pytest.mark.parametrize(("network", "relaxation"), PAIRS)
def test_the_sorted_values_alone_have_the_same_gradient(network, relaxation):
    theirs = theirs_or_skip(network, 13, steepness=2.0, distribution=relaxation)
    values = lists(5, 13)
    expected = theirs(values)[:1]
    actual = (relaxed_sort(values, network=network, relaxation=relaxation, steepness=2.0),)
    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(gradient(actual, values), gradient(expected, values), **CLOSE)


@pytest.mark.parametrize(("network", "length"), list(product(NETWORKS, (5, 11, 16, 49))))
def test_group_masses_are_sums_of_its_permutation(network, length):
    theirs = theirs_or_skip(network, length, steepness=4.0)
    values = lists(6, length)
    sizes = (length - 3, 1, 2)
    parts = theirs(values)[1].split(sizes, 2)
    expected = (torch.stack([part.sum(2) for part in parts], 2),)
    actual = (sorting_group_mass(values, sizes, network=network, steepness=4.0),)
    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(gradient(actual, values), gradient(expected, values), **CLOSE)


@pytest.mark.parametrize("art_lambda", [0.0, 0.1, 0.5])
def test_art_lambda(art_lambda):
    options = {"steepness": 1.0, "art_lambda": art_lambda}
    theirs = theirs_or_skip("odd_even", 9, distribution="logistic_phi", **options)
    ours = DiffSortNet("odd_even", 9, distribution="logistic_phi", **options)
    values = lists(4, 9)
    torch.testing.assert_close(ours(values), theirs(values), **CLOSE)


def test_optimal_as_they_have_it():
    values = lists(4, 16)
    expected = theirs_or_skip("bitonic", 16, steepness=3.0, distribution="optimal")(values)
    actual = DiffSortNet("bitonic", 16, steepness=3.0, distribution="optimal")(values)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


def test_signature_and_attributes_are_theirs():
    diffsort = pytest.importorskip("diffsort", reason="diffsort is not installed")
    parameters = [
        inspect.signature(each).parameters for each in (DiffSortNet, diffsort.DiffSortNet)
    ]
    assert list(parameters[0]) == list(parameters[1])
    for name, parameter in parameters[1].items():
        assert parameters[0][name].default == parameter.default
    arguments = ("bitonic", 6, "cpu", 3.0, 0.1, "logistic_phi")
    ours, theirs = DiffSortNet(*arguments), diffsort.DiffSortNet(*arguments)
    for name in ("sorting_network_type", "size", "steepness", "art_lambda", "distribution"):
        assert getattr(ours, name) == getattr(theirs, name)
    torch.testing.assert_close(ours(lists(3, 6)), theirs(lists(3, 6)), **CLOSE)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(2, 128),
    network=st.sampled_from(NETWORKS),
    steepness=st.floats(0.1, 100.0),
    seed=st.integers(0, 1000),
)
def test_doubly_stochastic(relaxation, length, network, steepness, seed):
    values = lists(2, length, seed).detach()
    options = {"network": network, "relaxation": relaxation, "steepness": steepness}
    ordered, shares = relaxed_sort(values, permutation=True, **options)
    assert shares.min() >= 0
    ones = torch.ones(2, length, dtype=torch.float64)
    torch.testing.assert_close(shares.sum(1), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(shares.sum(2), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(ordered, (values[:, None] @ shares)[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("length", range(2, 129))
def test_every_network_sorts(network, length):
    """Zeros and ones tell (Knuth, volume 3, 5.3.4): all of them to n = 12, then random ones."""
    generator = torch.Generator().manual_seed(length)
    if length <= 12:
        values = torch.arange(2**length)[:, None] >> torch.arange(length) & 1
    else:
        density = torch.rand(2000, 1, generator=generator)
        values = (torch.rand(2000, length, generator=generator) < density).long()
    wires = list(values.unbind(1))
    for layer in layers_of(network, length):
        for p, q in layer:
            wires[p], wires[q] = wires[p] & wires[q], wires[p] | wires[q]
    assert torch.equal(torch.stack(wires, 1), values.sort(1).values)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 128), network=st.sampled_from(NETWORKS), seed=st.integers(0, 1000))
def test_the_limit_of_a_steep_network_is_the_sort(relaxation, length, network, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randperm(length, generator=generator)[None].double()
    options = {"network": network, "relaxation": relaxation, "permutation": True}
    expected, order = values.sort(1)
    wanted = torch.nn.functional.one_hot(order, length).mT.double()
    errors = []
    for steepness in (1e2, 1e5, 1e8):
        ordered, shares = relaxed_sort(values, steepness=steepness, **options)
        errors.append((shares - wanted).abs().max().item())
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[2] < 1e-5
    torch.testing.assert_close(ordered, expected, rtol=0, atol=1e-3)


def test_one_value_is_sorted():
    values = lists(3, 1)
    for network in NETWORKS:
        ordered, shares = DiffSortNet(network, 1)(values)
        assert torch.equal(ordered, values)
        assert torch.equal(shares, torch.ones(3, 1, 1, dtype=torch.float64))


def test_half_precision_returns_float32():
    ordered, shares = DiffSortNet("odd_even", 4)(lists(2, 4).half())
    assert ordered.dtype == shares.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("quick", 4), {}, ValueError, r"network must be one of .*, got 'quick'"),
        (("bitonic", 0), {}, ValueError, r"size must be at least 1, got 0"),
        (("bitonic", 4.0), {}, TypeError, r"size must be an integer, got float"),
        (("bitonic", 4), {"steepness": 0.0}, ValueError, r"steepness must be .*, got 0.0"),
        (("bitonic", 4), {"art_lambda": 1.0}, ValueError, r"art_lambda must be .*, got 1.0"),
        (("bitonic", 4), {"distribution": "x"}, ValueError, r"relaxation must be one of .* 'x'"),
        (
            ("bitonic", 4),
            {"interpolation_type": "gaussian", "distribution": "optimal"},
            ValueError,
            r"interpolation_type is the former name .* 'optimal', got 'gaussian'",
        ),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match="^" + message):
        DiffSortNet(*arguments, **options)


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (torch.ones(2, 5), ValueError, r"vectors must be lists of the size 4, got shape \(2, 5\)"),
        (torch.ones(4), ValueError, r"vectors must be lists \(B, n\) .* got shape \(4,\)"),
        (torch.ones(2, 4).long(), TypeError, r"vectors must be floating point .* torch.int64"),
        (torch.full((1, 4), torch.nan), ValueError, r"values must be finite, got nan"),
        (torch.full((1, 4), -torch.inf), ValueError, r"values must be finite, got -inf"),
    ],
)
def test_errors_name_the_vectors(vectors, error, message):
    with pytest.raises(error, match="^" + message):
        DiffSortNet("odd_even", 4)(vectors)


def test_a_second_derivative_raises():
    values = lists(2, 4)
    (first,) = torch.autograd.grad(relaxed_sort(values).sum(), values, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), values)


def test_it_runs_on_every_backend_for_lists():
    values = lists(3, 11)
    expected = DiffSortNet("odd_even", 11)(values)
    with sslfast.backend("reference"):
        torch.testing.assert_close(DiffSortNet("odd_even", 11)(values), expected, **CLOSE)
