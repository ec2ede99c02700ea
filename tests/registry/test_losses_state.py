"""Whatever keeps state, three steps on: functional twin, module, checkpoint, ranks, bad batches."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from rank_processes import needs_gloo, on_ranks
from state_cases import CASES, MODULES, STEPS, StateCase, Stepped, copied, flat, kept, ranks_step
from torch import Tensor

from sslfast import losses
from sslfast._registry import LOSSES
from sslfast.testing import as_tuple

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_module = pytest.mark.parametrize("stepped", MODULES.values(), ids=MODULES)


def test_whatever_has_a_buffer_is_stepped() -> None:
    for name in losses.__all__:
        source = inspect.getsource(getattr(losses, name))
        if "register_buffer(" in source:
            assert any(each.split("-")[0] == name for each in MODULES), name
    stateful = {loss.name for loss in LOSSES.values() if loss.state is not None}
    assert stateful == {case.loss.name for case in CASES}
    assert {"TiCoLoss", "NTXentLoss", "InfoNCELoss"} <= stateful


@every_case
def test_module_twin_and_eager_form_agree_step_after_step(case: StateCase) -> None:
    """The module keeps what its twin returns; the eager form says what that is."""
    module, argument = case.module(), case.state.argument
    state = copied(case.state.kept(module))
    truth = copied(state)
    for step in range(STEPS):
        batch = case.batch(step)
        named = dict(zip(case.state.batch, batch, strict=True)) | case.options()
        before = copied(state)
        at_rest = case.loss.functional(**named, **{argument: state})
        assert isinstance(at_rest, Tensor)
        assert_same(flat(state), flat(before))
        expected, truth = case.loss.eager(**named, **{argument: truth}, update=True)
        loss, state = case.loss.functional(**named, **{argument: state}, update=True)
        found = module(*batch)
        for value in (at_rest, loss, found):
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(
                torch.autograd.grad(value, batch, retain_graph=True),
                torch.autograd.grad(expected, batch, retain_graph=True),
            )
        torch.testing.assert_close(flat(state), flat(truth))
        assert_same(flat(case.state.kept(module)), flat(state))


@every_case
def test_twin_writes_into_the_state_that_it_is_given(case: StateCase) -> None:
    """So that a captured graph, and a wrapper that holds the buffers, go on with it."""
    argument = case.state.argument
    module = case.module()
    module(*case.batch(0))
    given = copied(case.state.kept(module))
    named = dict(zip(case.state.batch, case.batch(1), strict=True)) | case.options()
    _, returned = case.loss.functional(**named, **{argument: given}, update=True)
    for left, right in zip(flat(given), flat(returned), strict=True):
        assert left.data_ptr() == right.data_ptr()


@every_module
def test_a_checkpoint_continues(stepped: Stepped) -> None:
    straight, first = stepped.make(), stepped.make()
    for step in range(STEPS - 1):
        for module in (straight, first):
            stepped.step(module, stepped.batch(step))
    resumed = stepped.make()
    resumed.load_state_dict(first.state_dict())
    assert set(kept(resumed)) == set(kept(straight))
    outputs = [stepped.step(each, stepped.batch(STEPS)) for each in (straight, resumed)]
    assert_same(*map(as_tuple, outputs))
    assert_same(list(kept(straight).values()), list(kept(resumed).values()))


@every_module
def test_evaluation_leaves_the_state_alone(stepped: Stepped) -> None:
    """Without gradients, and in evaluation mode, as a validation pass does."""
    module = stepped.make()
    stepped.step(module, stepped.batch(0))
    before = kept(module)
    module.eval()
    if "update" in stepped.options or "TiCo" in type(module).__name__:
        return  # they are told by an argument
    stepped.step(module, [each.detach() for each in stepped.batch(1)])
    assert_same(list(kept(module).values()), list(before.values()))


@every_module
@pytest.mark.parametrize("made", ["first step", "later step", "state"])
def test_state_of_inference_mode_is_written_later(stepped: Stepped, made: str) -> None:
    """A sanity check before training runs in inference mode, and makes or replaces state there."""
    plain, module = stepped.make(), stepped.make()
    if made != "first step":
        for each in (plain, module):
            stepped.step(each, stepped.batch(0))
    with torch.inference_mode():
        if made == "state":
            module = stepped.make()
            module.load_state_dict(plain.state_dict())
        else:
            stepped.step(module, stepped.batch(1))
    if made != "state":
        stepped.step(plain, stepped.batch(1))
    for step in range(2, 2 + STEPS):
        outputs = [stepped.step(each, stepped.batch(step)) for each in (plain, module)]
        torch.testing.assert_close(*map(as_tuple, outputs))
        for output in as_tuple(outputs[1])[:1]:
            output.sum().backward()
    torch.testing.assert_close(kept(module), kept(plain))


@every_module
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("bad", [0, -1], ids=["first argument", "last argument"])
def test_a_bad_batch_leaves_the_state_alone(stepped: Stepped, bad: int, value: float) -> None:
    """Its loss is not finite, which a gradient scaler skips; the next batch is as if it had not
    been."""
    for before in (0, 1):
        module = stepped.make()
        for step in range(before):
            stepped.step(module, stepped.batch(step))
        state = kept(module)
        batch = stepped.batch(7)
        with torch.no_grad():
            batch[bad][1, 2] = value
        try:
            loss = stepped.step(module, batch)
        except ValueError:
            loss = None  # refused: W-MSE has no covariance to whiten by
        if isinstance(loss, Tensor) and loss.ndim == 0:
            assert not loss.isfinite()
        after = kept(module)
        assert_same(list(after.values()), list(state.values()))
        for output in as_tuple(stepped.step(module, stepped.batch(8))):
            assert output.isfinite().all()


def test_a_bad_first_batch_of_lazy_state() -> None:
    """TiCo has no covariance before it, a bank of K alone no features."""
    bad = torch.full((3, 4), torch.nan, requires_grad=True)
    good = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tico = losses.TiCoLoss()
    assert tico(bad, good).isnan()
    assert tico.C is None
    fresh = losses.TiCoLoss()
    assert torch.equal(tico(good, good), fresh(good, good))
    with pytest.warns(UserWarning, match="feature dimension"):
        bank = losses.NTXentLoss(memory_bank_size=8)
    assert bank(bad, good).isnan()
    assert bank.memory_bank.bank.isfinite().all()
    assert bank.memory_bank.bank_ptr.item() == 0


def bad_on_one_rank() -> dict[str, list[Tensor]]:
    """The last rank alone has a NaN."""
    found = {}
    for case in CASES:
        module = case.module(gather_distributed=True)
        module(*case.own_batch(0))
        batch = case.own_batch(1)
        if torch.distributed.get_rank() == 1:
            batch[-1].data[0, 0] = torch.nan
        before = flat(copied(case.state.kept(module)))
        module(*batch)
        found[str(case)] = [before, flat(copied(case.state.kept(module)))]
    return found


def find() -> dict[str, Any]:
    return {"steps": ranks_step(), "bad": bad_on_one_rank()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(find, 2, tmp_path_factory.mktemp("state"))


@needs_gloo
@every_case
def test_ranks_go_on_like_one_process(case: StateCase, ranks: list[dict[str, Any]]) -> None:
    """State of the whole batch on every rank; mean of the losses; gradients times W."""
    for step, whole in enumerate(ranks_step()[str(case)]):
        parts = [result["steps"][str(case)][step] for result in ranks]
        loss, *gradients = whole[: 1 + len(case.state.batch)]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), loss)
        for index, gradient in enumerate(gradients, start=1):
            joined = torch.cat([part[index] for part in parts]) / len(parts)
            torch.testing.assert_close(joined, gradient)
        state = whole[1 + len(gradients) :]
        for part in parts:
            torch.testing.assert_close(part[1 + len(gradients) :], state)


@needs_gloo
@every_case
def test_a_bad_batch_of_one_rank_is_refused_by_all(
    case: StateCase, ranks: list[dict[str, Any]]
) -> None:
    for result in ranks:
        before, after = result["bad"][str(case)]
        assert_same(after, before)


def assert_same(left: Any, right: Any) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
