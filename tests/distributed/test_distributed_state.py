"""What losses and diagnostics keep from step to step, on several processes and on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_processes import needs_gloo, on_ranks
from torch import Tensor

from sslfast.distributed import rank, world_size
from sslfast.evaluation import EmbeddingSpectrum, feature_std, participation_ratio, rankme
from sslfast.functional import singular_value_loss
from sslfast.losses import DirectPredictor, TiCoLoss

STEPS = 3
NUM_ROWS, DIM = 24, 10

pytestmark = needs_gloo


def batch(seed: int, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, dim, generator=generator, dtype=torch.float64)


def own(rows: Tensor) -> Tensor:
    return rows.chunk(world_size())[rank()].clone().requires_grad_()


def tico() -> list[Tensor]:
    """Losses, gradients of own rows and the covariance, step after step."""
    loss = TiCoLoss(beta=0.6, gather_distributed=True)
    found = []
    for step in range(STEPS):
        for update in (False, True):
            pair = own(batch(step)), own(batch(100 + step))
            value = loss(*pair, update_covariance_matrix=update)
            found += [value.detach(), *torch.autograd.grad(value, pair)]
    return [*found, loss.C]


def predictor() -> dict[str, Tensor]:
    module = DirectPredictor(DIM, center=True, gather_distributed=True)
    for step in range(STEPS):
        module(own(batch(step)))
    return module.state_dict()


def spread(dim: int, grad_scale: Any) -> list[Tensor]:
    rows = own(batch(0, dim))
    value = singular_value_loss(rows, gather_distributed=True, grad_scale=grad_scale)
    return [value.detach(), *torch.autograd.grad(value, rows)]


def uneven(rows: Tensor) -> tuple[Tensor, ...]:
    """Parts of the ranks: the first has one row, the last the rest."""
    sizes = [1 + index for index in range(world_size() - 1)]
    return rows.split([*sizes, len(rows) - sum(sizes)])


def spectra() -> dict[int, dict[str, Any]]:
    found = {}
    for dim in (4, DIM, 50):
        spectrum = EmbeddingSpectrum()
        for step in range(STEPS):
            spectrum.update(uneven(batch(step, dim))[rank()])
        spectrum.all_reduce()
        found[dim] = diagnostics(spectrum)
    return found


def diagnostics(spectrum: EmbeddingSpectrum) -> dict[str, Any]:
    return {
        "rows": spectrum.num_rows,
        "rankme": spectrum.rankme(),
        "ratio": spectrum.participation_ratio(),
        "centred": spectrum.participation_ratio(center=True),
        "std": spectrum.feature_std(),
    }


def message(*batches: Tensor) -> str:
    spectrum = EmbeddingSpectrum()
    for rows in batches:
        spectrum.update(rows)
    try:
        spectrum.all_reduce()
    except ValueError as error:
        return str(error)
    return "no error"


def find() -> dict[str, Any]:
    return {
        "tico": tico(),
        "predictor": predictor(),
        "exact": [spread(dim, "exact") for dim in (DIM, 50)],
        "reference": [spread(dim, "reference") for dim in (DIM, 50)],
        "spectra": spectra(),
        "empty": message(*([torch.ones(2, 3)] if rank() else [])),
        "other dim": message(torch.ones(2, 3 + (rank() == 0))),
    }


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank found, in rank order."""
    return on_ranks(find, request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


def test_tico_of_ranks_is_that_of_the_whole_step_after_step(ranks):
    whole = tico()
    for index, expected in enumerate(whole):
        parts = [result["tico"][index] for result in ranks]
        if expected.shape == (NUM_ROWS, DIM):
            torch.testing.assert_close(torch.cat(parts) / len(ranks), expected)
        else:
            for part in parts:
                torch.testing.assert_close(part, expected)


def test_predictor_is_the_same_on_every_rank_and_that_of_the_whole(ranks):
    whole = predictor()
    for result in ranks:
        torch.testing.assert_close(result["predictor"], whole)
        assert torch.equal(result["predictor"]["weight"], ranks[0]["predictor"]["weight"])


@pytest.mark.parametrize("case", [0, 1], ids=["by features", "by rows"])
def test_spread_of_singular_values_in_both_scales(ranks, case):
    value, gradient = spread((DIM, 50)[case], "exact")
    for scale, factor in (("exact", len(ranks)), ("reference", 1)):
        parts = [result[scale][case] for result in ranks]
        for part in parts:
            torch.testing.assert_close(part[0], value)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), factor * gradient)


@pytest.mark.parametrize("dim", [4, DIM, 50])
def test_spectrum_of_ranks_is_that_of_all_rows(ranks, dim):
    rows = torch.cat([batch(step, dim) for step in range(STEPS)])
    expected = {
        "rows": len(rows),
        "rankme": rankme(rows),
        "ratio": participation_ratio(rows),
        "centred": participation_ratio(rows, center=True),
        "std": feature_std(rows),
    }
    for result in ranks:
        torch.testing.assert_close(result["spectra"][dim], expected)


def test_a_rank_without_rows_or_with_other_features_is_an_error_on_every_rank(ranks):
    for result in ranks:
        assert "(N, D) = [(0, 0), (2, 3)" in result["empty"]
        assert "(N, D) = [(2, 4), (2, 3)" in result["other dim"]
