"""VICReg and its descendants on two gloo processes: gradient scales, routes, lightly's gather."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from rank_processes import needs_gloo, on_ranks
from torch import Tensor
from vicreg_inputs import normal

from sslfast import functional
from sslfast.bench.peers import lightly_loss
from sslfast.distributed import rank, world_size
from sslfast.losses import VICRegLLoss, VICRegLoss

NUM_RANKS = 2
NUM_ROWS = 8
CASES = list(
    product(
        ("vicreg", "places", "vibcreg", "sie", "vicregl"),
        ("exact", "reference"),
        ("gram", "direct"),
    )
)

pytestmark = needs_gloo


def own(batch: Tensor) -> Tensor:
    return batch.chunk(world_size())[rank()]


def tensors(name: str) -> list[Tensor]:
    """Arguments of the whole batch; offsets that every rank would estimate differently."""
    if name == "vicregl":
        maps = normal(NUM_ROWS, 2, 2, 2, 3, seed=1)
        grids = (1000 * normal(NUM_ROWS, 2, 2, 2, 2, seed=2)).long()
        return [normal(NUM_ROWS, 2, 5), maps, grids]
    shape = (NUM_ROWS, 2, 5) if name == "places" else (NUM_ROWS, 5)
    found = [0.7 * normal(*shape, seed=seed) + torch.arange(5.0) for seed in (0, 1)]
    found[0][0] += 3
    return [*found, normal(NUM_ROWS, 2, seed=2)] if name == "sie" else found


def loss_of(name: str, *given: Tensor, **options: object) -> Tensor:
    function = "vicreg" if name == "places" else name
    return getattr(functional, f"{function}_loss")(*given, gather_distributed=True, **options)


def value_and_gradients(loss: object, given: list[Tensor]) -> list[Tensor]:
    """The value, and what the rows of floating tensors receive."""
    given = [own(each).clone() for each in given]
    leaves = [each.requires_grad_() for each in given if each.is_floating_point()]
    value = loss(*given)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def one_case(name: str, grad_scale: str, route: str) -> list[Tensor]:
    loss = partial(loss_of, name, grad_scale=grad_scale, route=route)
    return value_and_gradients(loss, tensors(name))


def as_lists(loss: torch.nn.Module, embeddings: Tensor, maps: Tensor, grids: Tensor) -> Tensor:
    features = list(zip(embeddings.unbind(1), maps.unbind(1), strict=True))
    return loss(features, list(grids.double().unbind(1)))


def with_lightly() -> dict[str, list[list[Tensor]]]:
    """By name, lightly's results and sslfast's."""
    try:
        theirs = lightly_loss("vicreg_loss", "VICRegLoss")(gather_distributed=True)
        theirs_of_places = lightly_loss("vicregl_loss", "VICRegLLoss")(gather_distributed=True)
    except ImportError:
        return {}
    ours = VICRegLoss(gather_distributed=True)
    found = {
        name: [value_and_gradients(loss, tensors(name)) for loss in (theirs, ours)]
        for name in ("vicreg", "places")
    }
    found["vicregl"] = [
        value_and_gradients(partial(as_lists, loss), tensors("vicregl"))
        for loss in (theirs_of_places, VICRegLLoss(gather_distributed=True))
    ]
    return found


def lonely_row() -> list[Tensor]:
    """One row on each rank: the batch has two."""
    return value_and_gradients(partial(loss_of, "vicreg"), [row[:NUM_RANKS] for row in rows()])


def rows() -> list[Tensor]:
    return tensors("vicreg")


def find() -> dict[str, Any]:
    cases = {str(case): one_case(*case) for case in CASES}
    return {**cases, "lightly": with_lightly(), "lonely": lonely_row()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each rank found, in rank order."""
    return on_ranks(find, NUM_RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_batch_by_either_route_and_scale(ranks, case):
    name, grad_scale, route = case
    value, *gradients = one_case(name, "exact", route)
    scale = NUM_RANKS if grad_scale == "exact" else 1
    parts = [result[str(case)] for result in ranks]
    for part in parts:
        torch.testing.assert_close(part[0], value)
    for index, gradient in enumerate(gradients, start=1):
        received = torch.cat([part[index] for part in parts])
        assert gradient.abs().max() > 0
        torch.testing.assert_close(received, scale * gradient)


@pytest.mark.parametrize("name", ["vicreg", "places", "vicregl"])
def test_the_gradient_of_lightlys_gather(ranks, name):
    """Its value keeps a rank's own invariance: the mean over ranks is the value here."""
    found = [result["lightly"].get(name) for result in ranks]
    if found[0] is None:
        pytest.skip("lightly is not installed")
    values = torch.stack([theirs[0].reshape(()) for theirs, _ in found])
    for theirs, ours in found:
        torch.testing.assert_close(ours[0].reshape(()), values.mean())
        torch.testing.assert_close(ours[1:], theirs[1:])
    assert values.unique().numel() == NUM_RANKS


def test_one_row_on_each_rank_is_a_batch(ranks):
    whole = [each[:NUM_RANKS].clone().requires_grad_() for each in rows()]
    value = functional.vicreg_loss(*whole)
    gradients = torch.autograd.grad(value, whole)
    for index, result in enumerate(ranks):
        found, *received = result["lonely"]
        torch.testing.assert_close(found, value.detach())
        for gradient, part in zip(gradients, received, strict=True):
            torch.testing.assert_close(part, NUM_RANKS * gradient[index : index + 1])
