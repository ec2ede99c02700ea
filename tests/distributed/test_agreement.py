"""Ranks that hold different batches: one error, the same on every rank, in place of a wait.

Every loss that gathers, and the modules that look at their batch first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributed_cases import CASES, GatherCase, encodable, split_names
from rank_processes import needs_gloo, on_ranks
from torch import Tensor

from sslfast.distributed import (
    all_gather_rows,
    column_moments_of_ranks,
    cross_frobenius_of_ranks,
    rank,
)
from sslfast.losses import CLIPLoss, DirectPredictor, InfoNCELoss, NTXentLoss, TiCoLoss

pytestmark = needs_gloo

Change = Callable[[Tensor], Tensor]
CHANGES: dict[str, Change] = {
    "fewer rows": lambda rows: rows[:-1],
    "no rows": lambda rows: rows[:0],
    "other width": lambda rows: rows[..., :-1],
    "other dtype": lambda rows: rows.float(),
    "other dimensions": lambda rows: rows[None],
}
MODULES: dict[str, Callable[[], Any]] = {
    "NTXentLoss": lambda: NTXentLoss(gather_distributed=True),
    "NTXentLoss with a bank": lambda: NTXentLoss(0.1, (8, 3), gather_distributed=True),
    "InfoNCELoss": lambda: InfoNCELoss(gather_distributed=True),
    "TiCoLoss": lambda: TiCoLoss(gather_distributed=True),
    "CLIPLoss": lambda: lambda a, b: CLIPLoss()(a, b, 10.0),
    "DirectPredictor": lambda: lambda a, b: DirectPredictor(3, gather_distributed=True)(a),
    "all_gather_rows": lambda: lambda a, b: all_gather_rows(a),
    "column_moments_of_ranks": lambda: lambda a, b: column_moments_of_ranks(a),
    "cross_frobenius_of_ranks": lambda: lambda a, b: cross_frobenius_of_ranks(a),
}


def error(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def first_samples() -> dict[str, GatherCase]:
    found: dict[str, GatherCase] = {}
    for case in CASES:
        found.setdefault(case.loss.name, case)
    return found


def find() -> dict[str, str]:
    """What each of two ranks is told; the second holds what is changed."""
    found = {}
    for name, case in first_samples().items():
        for change in CHANGES:
            arguments = case.arguments()
            for each in split_names(arguments):
                if encodable(case.loss, each, arguments[each]) and rank() == 1:
                    arguments[each] = CHANGES[change](arguments[each])
            found[f"{name}: {change}"] = error(lambda: case.loss.functional(**arguments))  # noqa: B023
    for name, make in MODULES.items():
        for change in CHANGES:
            if change == "other width" and name == "NTXentLoss with a bank":
                continue  # the bank's own features, which every rank compares with
            rows = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
            pair = [CHANGES[change](rows) if rank() == 1 else rows for _ in range(2)]
            found[f"{name}: {change}"] = error(lambda: make()(*pair))  # noqa: B023
    rows = torch.ones(4, 3)
    torch.testing.assert_close(all_gather_rows(rows), torch.ones(8, 3))  # still in step
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return on_ranks(find, 2, tmp_path_factory.mktemp("agreement"))


def test_every_rank_is_told_the_same(ranks: list[dict[str, str]]) -> None:
    assert len(first_samples()) == 20
    silent = {}
    for name, message in ranks[0].items():
        same = ranks[1][name] == message
        if not (same and "must have the same shape and dtype on every rank, got [" in message):
            silent[name] = (message, ranks[1][name])
    assert not silent


def test_the_error_names_the_argument_and_what_each_rank_holds(ranks: list[dict[str, str]]) -> None:
    message = ranks[1]["TiCoLoss: fewer rows"]
    assert message.startswith("z_a must have the same shape and dtype on every rank, got ")
    assert "[(4, 3) float64, (3, 3) float64] in rank order" in message
    assert "[(4, 3) float64, (4, 3) float32]" in ranks[0]["NTXentLoss: other dtype"]
