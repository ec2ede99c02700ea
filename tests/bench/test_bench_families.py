"""Every family's cases at small sizes: all contestants compute one objective, oracles as well."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from conftest import or_skip
from test_bench import OWN, SIZES

from sslfast import losses
from sslfast._registry import LOSSES
from sslfast.bench import correctness, runner, suite, worker
from sslfast.bench.contestants import EAGER, Contestant, enter
from sslfast.bench.place import CPU
from sslfast.bench.suite import Case, Workload
from sslfast.testing import cast, evaluate

# A GPU's alone come at small sizes like the others; without an eager form they are elsewhere.
WORKLOADS = {
    workload.name: workload
    for module in suite.family_modules()
    for workload in module.workloads()
    if workload.eager is not None
}
MODULES = {module.FAMILY: module for module in suite.family_modules()}
TALL, WIDE = (22, 5), (6, 17)  # rows and width
CONTESTANTS = [
    pytest.param(name, contestant, id=f"{name}-{contestant}")
    for name, workload in WORKLOADS.items()
    for contestant in (EAGER, *(n for n, peer in workload.peers.items() if CPU in peer.devices))
]
ORACLES = [name for name, workload in WORKLOADS.items() if workload.oracle is not None]
both_sizes = pytest.mark.parametrize("size", [TALL, WIDE], ids=["tall", "wide"])


def small_case(workload: Workload, size: tuple[int, int]) -> Case:
    """The case at so many rows of this width, other letters as in the tests of the benchmark."""
    letters = list((workload.shapes or workload.gpu_shapes or ())[0])
    others = {letter: SIZES.get(letter, 2) for letter in letters}
    return workload.at({**others, letters[-1]: size[1], letters[0]: size[0]})


def entered(case: Case, name: str) -> Contestant:
    with or_skip():
        return enter(case.workload, name)


@both_sizes
@pytest.mark.parametrize("name", list(WORKLOADS))
def test_sslfast_is_right(name: str, size: tuple[int, int]) -> None:
    case = small_case(WORKLOADS[name], size)
    own = enter(case.workload, OWN)
    assert correctness.Standard(case).judge(own).failure == ""
    if case.workload.counted:  # nothing but primitives, which repeat with any number of threads
        assert correctness.repeatability(case, own) == "yes"


@both_sizes
@pytest.mark.parametrize(("name", "contestant"), CONTESTANTS)
def test_everyone_computes_the_same(name: str, contestant: str, size: tuple[int, int]) -> None:
    """Values and gradients: they are timed as one objective."""
    case = small_case(WORKLOADS[name], size)
    assert correctness.Standard(case).judge(entered(case, contestant)).failure == ""


@both_sizes
@pytest.mark.parametrize("name", ORACLES)
def test_oracles_are_the_formula(name: str, size: tuple[int, int]) -> None:
    """In float64, against the form that would take minutes at the sizes that are measured."""
    case = small_case(WORKLOADS[name], size)
    workload = case.workload
    assert workload.oracle is not None
    assert workload.eager is not None
    inputs = cast(case.inputs(), torch.float64)
    expected = evaluate(workload.eager, inputs, workload.leaves)
    for result, value in evaluate(workload.oracle, inputs, workload.leaves).items():
        torch.testing.assert_close(value, expected[result], rtol=1e-11, atol=1e-11)


def test_a_form_is_warmed_up_at_any_size() -> None:
    """Peak memory is read after a call in which every dimension is `WARM_UP_SIZE`."""
    for workload in WORKLOADS.values():
        if not workload.shapes:
            continue
        shape = dict.fromkeys(workload.shapes[0], runner.WARM_UP_SIZE)
        for name in (OWN, EAGER, *workload.peers):
            try:
                run = worker.memory_run(workload.name, shape, name)
            except ImportError:
                continue
            assert run() is not None, f"{workload.name}: {name}"


def test_every_family_has_shapes_that_its_users_meet() -> None:
    families = {loss.family for loss in LOSSES.values()}
    assert set(MODULES) == families
    for family in families:
        assert find_spec(f"{losses.__name__}.{family}") is not None
        assert all(workload.family == family for workload in MODULES[family].workloads())
        subjects = {case.workload.subject for case in suite.select([family], (), None)}
        assert subjects >= {loss.name for loss in LOSSES.values() if loss.family == family}
