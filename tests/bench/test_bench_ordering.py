"""Ordering cases of the benchmark: its formulas in float64, its peers, what it must show."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import OWN, reading
from test_bench_families import entered
from torch import Tensor

from sslfast._registry import LOSSES, PRIMITIVES
from sslfast.bench import ledger, ordering, peers, plots, runner, suite
from sslfast.bench.contestants import COMPILE, EAGER, enter
from sslfast.bench.formulas import ordering as formulas
from sslfast.testing import evaluate

WORKLOADS = {workload.name: workload for workload in ordering.workloads()}
LENGTHS = (2, 3, 4, 7, 11, 13, 16, 33)  # powers of two, one off them, what GroCo sorts
networks = pytest.mark.parametrize("network", ["odd_even", "bitonic"])
lengths = pytest.mark.parametrize("n", LENGTHS)


def lists(n: int, count: int = 5) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def assert_same(actual: Any, expected: Any, inputs: Mapping[str, Any], *leaves: str) -> None:
    """Values and gradients of two forms, in float64."""
    found, truth = (evaluate(form, inputs, leaves) for form in (actual, expected))
    assert found.keys() == truth.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-11)


@networks
@lengths
def test_the_dense_form_is_the_sort(network: str, n: int) -> None:
    rule = {"network": network, "steepness": 3.0}
    reference = partial(PRIMITIVES["relaxed_sort"].reference, permutation=True, **rule)
    assert_same(partial(formulas.dense_sort, **rule), reference, {"values": lists(n)}, "values")


@networks
@lengths
def test_two_groups_by_permutation_and_by_sweeps(network: str, n: int) -> None:
    """Both binary cross-entropies are -log of the mass in the own group."""
    rule = {"network": network, "steepness": 1.0}
    mass = PRIMITIVES["sorting_group_mass"].reference
    truth = partial(mass, cross_entropy=True, **rule)
    sort = partial(formulas.dense_sort, **rule)
    inputs = {"values": lists(n), "group_sizes": (n - n // 3 - 1, n // 3 + 1)}
    assert_same(partial(formulas.groupwise_cross_entropy, sort=sort), truth, inputs, "values")
    assert_same(partial(formulas.swept_cross_entropy, **rule), truth, inputs, "values")


@networks
@lengths
def test_the_permutation_against_a_teacher(network: str, n: int) -> None:
    rule = {"network": network, "steepness": 5.0}
    truth = partial(PRIMITIVES["sorting_group_mass"].reference, cross_entropy=True, **rule)
    sort = partial(formulas.dense_sort, **rule)
    teacher = lists(n) + 0.1 * lists(n).flip(0)
    inputs = {"values": lists(n), "group_sizes": (1,) * n, "teacher": teacher}
    assert_same(partial(formulas.permutation_cross_entropy, sort=sort), truth, inputs, "values")


@networks
@pytest.mark.parametrize("n", [2, 5, 8, 13])
def test_diffsort_in_float64(network: str, n: int) -> None:
    """The form that eager has here is diffsort's own, to its last digits."""
    rule = {"network": network, "steepness": 10.0}
    try:
        sort = peers.diffsort(**rule).load()
    except ImportError as error:
        pytest.skip(str(error))
    assert_same(partial(formulas.dense_sort, **rule), sort, {"values": lists(n)}, "values")


@pytest.mark.parametrize("name", ["GroCoLoss", "NeCoLoss"])
def test_the_authors_forms_are_the_registered_ones(name: str) -> None:
    """In float64: a case's eager form stands in for the loss's own."""
    workload = WORKLOADS[name]
    case = workload.at({"B": 9, "V": 3, "n": 7, "D": 5})
    inputs = {
        name: value.detach().double() if isinstance(value, Tensor) else value
        for name, value in case.inputs().items()
    }
    assert_same(workload.eager, LOSSES[name].eager, inputs, *workload.leaves)


def test_sweeps_keep_one_gradient_and_only_where_it_is_wanted() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    form = partial(formulas.swept_cross_entropy, network="odd_even", steepness=1.0)
    values = lists(11).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        form(values, (10, 1))
        assert [tensor.shape for tensor in kept] == [values.shape]
        with torch.no_grad():
            form(values, (10, 1))
    assert len(kept) == 1


def test_a_compiled_form_has_the_matrices_as_constants() -> None:
    """They are made in a constructor by diffsort, so no call pays for them."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    workload = WORKLOADS["GroCo sort + loss"]
    assert workload.eager is not None
    torch.compiler.reset()
    compiled = torch.compile(workload.eager, fullgraph=True, backend=backend, dynamic=False)
    inputs = workload.at({"B": 3, "n": 5}).inputs()
    torch.testing.assert_close(compiled(**inputs), workload.eager(**inputs))
    (graph,) = graphs
    called = {str(node.target) for node in graph.graph.nodes if node.op.startswith("call")}
    assert called
    assert not [target for target in called if "one_hot" in target or "tensor" in target]


def test_metric_learning_is_told_the_rows_of_a_class() -> None:
    """With the labels themselves it reads blocks of another size wherever these differ."""
    workload = WORKLOADS["SmoothAPLoss"]
    case = workload.at({"B": 12, "m": 2, "D": 5})
    inputs = case.inputs()
    try:
        objective = enter(workload, ordering.METRIC_LEARNING).objective
    except ImportError as error:
        pytest.skip(str(error))
    expected = workload.fused(**inputs)
    torch.testing.assert_close(objective(**inputs), expected, rtol=1e-4, atol=1e-6)
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    as_given = losses.SmoothAPLoss(temperature=ordering.TEMPERATURE)(*inputs.values())
    assert abs(as_given - expected) > 1e-2


def test_no_choice_of_negatives_hangs_on_a_rounding() -> None:
    """Which the oracle in float64 would take otherwise: the cosines of an anchor are apart."""
    inputs = WORKLOADS["GroCoLoss"].at({"B": 64, "V": 2, "D": 80}).inputs()
    for view in inputs["embeddings"].detach().unbind(1):
        similarity = (view @ view.T).fill_diagonal_(-torch.inf)
        nearest = similarity.topk(inputs["topk_neg"] + 1).values  # the first one left out, too
        assert inputs["topk_neg"] == 10
        assert nearest.diff().abs().min() > 0.01


def test_nearest_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "CHUNK", 4)  # the last one is not whole
    inputs = WORKLOADS["kNN top-20"].at({"N": 10, "M": 30, "D": 3}).inputs()
    expected = formulas.top_similarities(**inputs)
    torch.testing.assert_close(formulas.top_similarities_in_chunks(**inputs), expected)
    assert expected.shape == (10, ordering.NEIGHBORS)


def test_what_is_claimed_is_measured() -> None:
    on_cpu = [case.name for case in suite.select(["ordering"], (), None)]
    assert on_cpu[0] == "GroCo sort + loss B=1024 n=11"
    assert {
        "NeCo sort + loss B=3136 n=49",
        "kNN top-20 N=4096 M=65536 D=256",
        "GroCoLoss B=1024 V=2 D=2048",
        "SmoothAPLoss B=384 m=4 D=512",
    } <= set(on_cpu)
    on_gpu = [case.name for case in suite.select(["ordering"], (), None, "cuda")]
    assert {"GroCo sort + loss B=1024 n=11", "GroCoLoss B=1024 V=2 D=2048"} <= set(on_gpu)


def test_only_a_compiled_form_is_left_out_and_only_of_many_layers() -> None:
    cases = suite.select(["ordering"], (), None)
    assert all(set(case.left_out("cpu")) <= {COMPILE} for case in cases)
    assert not any(case.left_out("cuda") for case in cases)
    left_out = {case.name for case in cases if case.left_out("cpu")}
    assert {"NeCo sort + loss B=3136 n=49", "relaxed_sort odd_even B=256 n=32"} <= left_out
    complete = {case.name for case in cases} - left_out
    assert {"GroCo sort + loss B=1024 n=13", "relaxed_sort bitonic B=256 n=32"} <= complete


def test_small_lists_sleep_at_barriers() -> None:
    """Of what is small, by rows and width whatever their letters."""
    policies = {
        case.name: runner.wait_policy(case) for case in suite.select(["ordering"], (), None)
    }
    assert policies["GroCo sort + loss B=1024 n=11"] == runner.PASSIVE
    assert policies["kNN top-20 N=4096 M=65536 D=256"] == ""
    assert policies["GroCoLoss B=1024 V=2 D=2048"] == ""


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_who_takes_part(name: str) -> None:
    workload = WORKLOADS[name]
    for contestant in (OWN, EAGER, *workload.peers):
        case = workload.at(workload.shapes[0])
        assert entered(case, contestant).name == contestant


def test_a_plot_names_the_letters_of_its_case(tmp_path: Path) -> None:
    path = tmp_path / "ordering.csv"
    for count in (512, 3136):
        case = f"NeCo sort + loss B={count} n=49"
        ledger.append(path, [reading(family="ordering", case=case, N=count, D=49)])
    figure = plots._against_size(ledger.read(path), "min_ms", "ms")
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlabel() == "B (n = 49)"
    assert axes.get_title().startswith("NeCo sort + loss,")
