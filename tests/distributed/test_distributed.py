"""Several gloo processes against one process that holds the whole batch."""

from __future__ import annotations

from itertools import product
from typing import Any

import distributed_cases
import distributed_clip
import pytest
import torch
import torch.distributed as dist
from rank_processes import needs_gloo, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslfast._registry import LOSSES
from sslfast.distributed import all_gather_rows, rank, world_size
from sslfast.functional import ntxent_loss
from sslfast.losses import CLIPLoss, NTXentLoss
from sslfast.losses.contrastive.ntxent import _ntxent_eager

NUM_IMAGES = 24
CASES = list(product((0.5, 0.05), (torch.float32, torch.float64), (False, True)))

pytestmark = needs_gloo


class ContrastiveModel(nn.Module):
    """A linear encoder and its loss; the temperature may be a parameter."""

    def __init__(self, temperature: float, dtype: torch.dtype, learnable: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(16, 8, dtype=dtype)
        parameter = nn.Parameter(torch.tensor(temperature, dtype=dtype))
        self.loss = NTXentLoss(parameter if learnable else temperature, gather_distributed=True)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.loss(self.encoder(first), self.encoder(second))


def images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    content, *noise = torch.randn(3, NUM_IMAGES, 16, generator=generator, dtype=torch.float64)
    return tuple((content + 0.5 * part).to(dtype) for part in noise)


def own(batch: Tensor) -> Tensor:
    return batch.chunk(world_size())[rank()]


def loss_and_gradients(model: nn.Module, first: Tensor, second: Tensor) -> list[Tensor]:
    loss = model(first, second)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def ntxent_cases() -> dict[str, list[Tensor]]:
    results = {}
    for case in CASES:
        model = DistributedDataParallel(ContrastiveModel(*case))
        first, second = images(case[1])
        results[str(case)] = loss_and_gradients(model, own(first), own(second))
    return results


def eager_case() -> list[Tensor]:
    first, second = (own(view).requires_grad_() for view in images(torch.float64))
    results = []
    for loss_function in (ntxent_loss, _ntxent_eager):
        loss = loss_function(first, second, temperature=0.1, gather_distributed=True)
        results += [loss, *torch.autograd.grad(loss, (first, second))]
    return [result.detach() for result in results]


def compiled_case() -> list[Tensor]:
    first, second = (own(view).requires_grad_() for view in images(torch.float32))
    loss = NTXentLoss(0.1, gather_distributed=True)
    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        value = function(first, second)
        results += [value.detach(), *torch.autograd.grad(value, (first, second))]
    return results


def half_gather_case() -> list[Tensor]:
    rows = torch.full((2, 3), float(rank()), dtype=torch.bfloat16, requires_grad=True)
    gathered = all_gather_rows(rows)
    # 256 + 1 = 256 in bfloat16: a sum that rounds at every rank would lose the ones.
    weight = 256.0 if rank() == 0 else 1.0
    gathered.backward(torch.full_like(gathered, weight))
    return [gathered.detach(), rows.grad]


def subgroup_case() -> list[Tensor]:
    last_two = dist.new_group([world_size() - 2, world_size() - 1])
    if rank() < world_size() - 2:
        return []
    rows = torch.full((1, 2), float(rank()), requires_grad=True)
    gathered = all_gather_rows(rows, last_two)
    (gathered * torch.tensor([[1.0], [10.0]])).sum().backward()
    return [gathered.detach(), rows.grad]


def bank_case() -> list[Tensor]:
    torch.manual_seed(3)
    loss = NTXentLoss(0.1, memory_bank_size=(40, 16), gather_distributed=True).double()
    first, second = images(torch.float64)
    value = loss(own(first).requires_grad_(), own(second))
    return [value.detach(), loss.memory_bank.bank, loss.memory_bank.bank_ptr]


def unequal_batches_message() -> str:
    try:
        all_gather_rows(torch.zeros(2 + rank(), 4))
    except ValueError as error:
        return str(error)
    return "no error"


def find() -> dict[str, Any]:
    return {
        "ntxent": ntxent_cases(),
        "eager": eager_case(),
        "compiled": compiled_case(),
        "half": half_gather_case(),
        "subgroup": subgroup_case(),
        "bank": bank_case(),
        "unequal": unequal_batches_message(),
        "clip": distributed_clip.run(),
        "clip errors": distributed_clip.messages(),
        "losses": {str(case): distributed_cases.run(case) for case in distributed_cases.CASES},
    }


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[dict]:
    """What each rank found, in rank order."""
    return on_ranks(find, request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


def test_every_loss_that_gathers_has_a_sample_that_does():
    gathering = {loss.name for loss in LOSSES.values() if distributed_cases.gathers(loss)}
    assert gathering == {case.loss.name for case in distributed_cases.CASES}


@pytest.mark.parametrize("case", distributed_cases.CASES, ids=str)
def test_every_loss_under_ddp_is_the_loss_of_the_global_batch(ranks, case):
    whole = distributed_cases.run(case)
    parts = [result["losses"][str(case)] for result in ranks]
    assert all(part.keys() == whole.keys() for part in parts)
    torch.testing.assert_close(torch.stack([part["loss"] for part in parts]).mean(), whole["loss"])
    for name in whole.keys() - {"loss"}:
        expected = whole[name]
        assert expected.abs().max() > 0
        if parts[0][name].shape != expected.shape:  # rows: what they receive is not averaged yet
            received = torch.cat([part[name] for part in parts]) / len(parts)
            torch.testing.assert_close(received, expected)
        else:
            for part in parts:
                torch.testing.assert_close(part[name], expected)


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *product(distributed_clip.WAYS, ("", " told", " open_clip")),
        *product(distributed_clip.COMPILED_WAYS, (" compiled",)),
    ],
    ids=str,
)
def test_clip_gathers_as_open_clip_does(ranks, way, kind):
    results = [result["clip"].get(f"{way}{kind}") for result in ranks]
    if results[0] is None:
        pytest.skip("open_clip_torch is not installed")
    truths = [distributed_clip.expected(way, len(ranks), index) for index in range(len(ranks))]
    for result, truth in zip(results, truths, strict=True):
        torch.testing.assert_close(result[:3], truth[:3])
    scales = (torch.stack([each[3] for each in found]).mean() for found in (results, truths))
    torch.testing.assert_close(*scales)
    assert len({result[0].item() for result in results}) == (len(ranks) if way[0] else 1)


def test_clip_gathers_nothing_in_a_world_of_one_and_knows_its_place(ranks):
    for index, result in enumerate(ranks):
        rows = slice(index * distributed_clip.SHARE, (index + 1) * distributed_clip.SHARE)
        images, texts, scale = distributed_clip.towers(len(ranks))
        alone = CLIPLoss()(images[rows], texts[rows], scale)
        torch.testing.assert_close(result["clip"]["alone"][0], alone.detach())
        wrong_rank, wrong_size = result["clip errors"]
        assert wrong_rank.startswith(f"rank must be that of torch.distributed ({index})")
        expected = "rank" if index else "world_size"
        assert wrong_size.startswith(f"{expected} must be that of torch.distributed")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ntxent_under_ddp_is_the_loss_of_the_global_batch(ranks, case):
    expected_loss, *expected_gradients = loss_and_gradients(
        ContrastiveModel(*case), *images(case[1])
    )
    results = [result["ntxent"][str(case)] for result in ranks]
    losses = torch.stack([loss for loss, *_ in results])
    torch.testing.assert_close(losses.mean(), expected_loss)
    assert losses.unique().numel() == len(ranks)
    for _, *gradients in results:
        assert len(gradients) == 2 + case[2]
        torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("other", ["eager", "compiled"])
def test_ntxent_equals_its_eager_and_its_compiled_form_on_every_rank(ranks, other):
    for result in ranks:
        torch.testing.assert_close(result[other][:3], result[other][3:])


def test_gathered_half_rows_keep_rank_order_and_sum_gradients_in_float32(ranks):
    for result in ranks:
        gathered, gradient = result["half"]
        assert gathered[::2, 0].tolist() == list(range(len(ranks)))
        expected = torch.tensor(256.0 + len(ranks) - 1).bfloat16()
        assert torch.equal(gradient, expected.expand(2, 3))


def test_a_group_gathers_and_sums_among_its_own_ranks(ranks):
    first = len(ranks) - 2
    assert all(result["subgroup"] == [] for result in ranks[:first])
    for index in range(2):
        gathered, gradient = ranks[first + index]["subgroup"]
        assert gathered[:, 0].tolist() == [first, first + 1]
        assert gradient.tolist() == [[2.0 * 10**index] * 2]


def test_bank_takes_in_the_rows_of_all_ranks(ranks):
    torch.manual_seed(3)
    loss = NTXentLoss(0.1, memory_bank_size=(40, 16)).double()
    first, second = images(torch.float64)
    expected = loss(first.requires_grad_(), second)
    for result in ranks:
        _, bank, pointer = result["bank"]
        torch.testing.assert_close(bank, loss.memory_bank.bank)
        assert torch.equal(pointer, loss.memory_bank.bank_ptr)
    values = torch.stack([result["bank"][0] for result in ranks])
    torch.testing.assert_close(values.mean(), expected.detach())


def test_unequal_batches_are_an_error_on_every_rank(ranks):
    shapes = [(2 + index, 4) for index in range(len(ranks))]
    for result in ranks:
        assert f"same shape on every rank, got {shapes}" in result["unequal"]


def test_one_process_is_rank_0_of_1_and_gathers_itself():
    rows = torch.zeros(2, 3)
    assert (rank(), world_size()) == (0, 1)
    assert all_gather_rows(rows) is rows
