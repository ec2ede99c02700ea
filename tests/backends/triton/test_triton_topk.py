"""What the enumerated tests do not know of the Triton `similarity_topk`: passes, splits, grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast._core.devices import INTERPRETED
from sslfast._core.similarity.topk import Arguments
from sslfast._registry import PRIMITIVES
from sslfast.triton._launch import TARGETS, Launch, recording
from sslfast.triton.similarity import topk as launcher

pytest.importorskip("triton")
PRIMITIVE = PRIMITIVES["similarity_topk"]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 runs the kernels")


def record(queries: Tensor, keys: Tensor, k: int, arch: str = "sm_90") -> list[Launch]:
    with recording(TARGETS[arch]) as recorded:
        PRIMITIVE.implementations["triton"].forward(Arguments(queries, keys, None, None, k))
    return recorded


def check(queries: Tensor, keys: Tensor, k: int, **ids: Tensor) -> None:
    expected = PRIMITIVE.reference(queries, keys, k, **ids)
    with sslfast.backend("triton"):
        actual = sslfast.similarity_topk(queries, keys, k, **ids)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@interpreted
@pytest.mark.parametrize("k", [16, 17, 32, 33, 70])
def test_several_passes(
    k: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Each pass goes on below the last neighbour of the one before, ties included."""
    monkeypatch.setattr(launcher, "most_slots", lambda chip: 16)
    queries = torch.randint(-2, 3, (5, 3), generator=generator).float()
    keys = torch.randint(-2, 3, (90, 3), generator=generator).float()
    check(queries, keys, k)


@interpreted
@pytest.mark.parametrize("processors", [1, 3, 50])
def test_any_number_of_splits(
    processors: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    chip = replace(TARGETS["sm_90"], processors=processors)
    monkeypatch.setattr(launcher, "target", lambda tensor: chip)
    queries = torch.randint(-3, 4, (6, 4), generator=generator).float()
    keys = torch.randint(-3, 4, (700, 4), generator=generator).float()
    ids = {"query_ids": torch.arange(6) % 2, "key_ids": torch.arange(700) % 3}
    check(queries, keys, 21, **ids)


@interpreted
def test_minus_zero_and_negative_similarities() -> None:
    queries = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    keys = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [-2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    check(queries, keys, 5)


@interpreted
def test_missing_and_nan_where_values_are_not_read() -> None:
    """As on a GPU: -inf and -1 where no key is left, and NaN is the largest."""
    forward = PRIMITIVE.implementations["triton"].forward
    queries, keys = torch.ones(2, 1), torch.tensor([[2.0], [3.0], [1.0]])
    ids = torch.tensor([0, 1]), torch.tensor([0, 0, 1])
    values, indices = forward(Arguments(queries, keys, *ids, 2))
    assert values.tolist() == [[1.0, -torch.inf], [3.0, 2.0]]
    assert indices.tolist() == [[2, -1], [1, 0]]
    keys[2] = torch.nan
    values, indices = forward(Arguments(queries, keys, None, None, 2))
    assert indices.tolist() == [[2, 1]] * 2
    assert values[:, 0].isnan().all()
    assert values[:, 1].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize(
    ("num_rows", "num_keys", "dim", "k"),
    [(4096, 65536, 256, 20), (1, 1 << 20, 64, 1), (100_000, 1000, 128, 200), (7, 5000, 33, 2000)],
)
def test_the_grid_covers_every_pair(
    arch: str, num_rows: int, num_keys: int, dim: int, k: int
) -> None:
    queries = torch.empty(num_rows, dim, device="meta", dtype=torch.bfloat16)
    keys = torch.empty(num_keys, dim, device="meta", dtype=torch.bfloat16)
    launches = record(queries, keys, k, arch)
    passes = [each for each in launches if "fwd" in each.kernel.__name__]
    merges = [each for each in launches if "merge" in each.kernel.__name__]
    assert sum(each.arguments[each.kernel.arg_names.index("k")] for each in passes) == k
    assert [each.constants["CONTINUED"] for each in passes] == [n > 0 for n in range(len(passes))]
    for each, merge in zip(passes, merges, strict=True):
        named = dict(zip(each.kernel.arg_names, each.arguments, strict=False))
        (programs,) = each.grid
        splits, left = divmod(programs, named["row_blocks"])
        assert left == 0
        assert named["row_blocks"] * each.constants["BLOCK_M"] >= num_rows
        assert splits * named["split_blocks"] * each.constants["BLOCK_N"] >= num_keys
        assert named["k"] <= each.constants["SLOTS"]
        assert named["parts"].shape == (splits, num_rows, each.constants["SLOTS"])
        named = dict(zip(merge.kernel.arg_names, merge.arguments, strict=False))
        assert named["splits"] == splits
        merged = named["chunks"] * merge.constants["BLOCK"]
        assert merged == splits * each.constants["SLOTS"]
        assert merge.grid == (num_rows * named["chunks"],)
        assert splits == 1 or merged <= 2 * launcher.MERGED


def test_more_keys_than_an_index_holds_are_refused() -> None:
    reject = PRIMITIVE.implementations["triton"].reject
    queries = torch.empty(3, 2, device="meta")
    keys = torch.empty(1 << 30, 2, device="meta")
    assert reject(queries, keys[1:]) is None
    assert reject(queries) is None
    assert "1073741824 keys do not fit" in str(reject(queries, keys))
