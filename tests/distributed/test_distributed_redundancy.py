"""Redundancy losses on several gloo processes against the formula on one with the whole batch."""

from __future__ import annotations

import distributed_redundancy as cases
import pytest
import torch
from rank_processes import needs_gloo, on_ranks

from sslfast import cross_frobenius
from sslfast.distributed import (
    column_moments_of_ranks,
    cross_frobenius_of_ranks,
    sum_over_ranks,
)
from sslfast.distributed.frobenius import cheaper_route
from sslfast.functional import barlow_twins_loss

pytestmark = needs_gloo


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[dict]:
    """What each rank found, in rank order."""
    return on_ranks(cases.run, request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


@pytest.mark.parametrize("case", cases.PRODUCTS, ids=str)
def test_product_of_ranks_is_that_of_all_rows(ranks, case):
    whole = case.whole()
    parts = [result["products"][case] for result in ranks]
    num_outputs = 2 if case.split_diagonal else 1
    for index, expected in enumerate(whole):
        found = [part[index] for part in parts]
        if index < num_outputs:
            assert all(torch.equal(each, found[0]) for each in found)
            assert found[0].dtype == torch.promote_types(case.dtype, torch.float32)
            torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=1e-6)
            continue
        gradient = torch.cat(found)  # of one value: no rank has a factor W
        assert gradient.dtype == case.dtype
        if case.dtype == torch.float64:
            torch.testing.assert_close(gradient, expected)
        else:  # one rounding, of the result
            eps = torch.finfo(case.dtype).eps
            torch.testing.assert_close(gradient.double(), expected, rtol=eps, atol=1e-3 * eps)


@pytest.mark.parametrize("case", cases.TWINS, ids=str)
def test_barlow_twins_of_ranks_are_those_of_the_whole_batch(ranks, case):
    whole = case.whole(len(ranks))
    for result in ranks:
        part = result["twins"][case]
        assert whole["parameters"].abs().max() > 1e-3
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_are_those_of_all_rows(ranks, ddof):
    rows = cases.moments_rows().double().requires_grad_()
    variance, mean = torch.var_mean(rows, 0, correction=ddof)
    num_ranks = len(ranks)
    value = (mean * torch.arange(1.0, 6) + variance.square()).sum()
    (expected,) = torch.autograd.grad(num_ranks * (num_ranks + 1) / 2 * value, rows)
    results = [result["moments"][ddof] for result in ranks]
    for found_mean, found_variance, _ in results:
        assert torch.equal(found_mean, results[0][0])
        assert torch.equal(found_variance, results[0][1])
        assert found_variance[2] == 0
        torch.testing.assert_close(found_mean.double(), mean.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found_variance.double(), variance.detach(), rtol=1e-4, atol=0)
    gradient = torch.cat([gradient for *_, gradient in results])
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-3)


def test_local_statistics_are_lightlys(ranks):
    if ranks[0]["lightly"] is None:
        pytest.skip("lightly is not installed")
    for result in ranks:
        theirs, ours = result["lightly"][:3], result["lightly"][3:]
        torch.testing.assert_close(ours, theirs)
        assert all(gradient.abs().max() > 1e-3 for gradient in ours[1:])


def test_reference_scale_is_that_of_a_raw_all_reduce(ranks):
    for result in ranks:
        theirs, ours = result["raw"][:3], result["raw"][3:]
        torch.testing.assert_close(ours, theirs)
        assert all(gradient.abs().max() > 1e-4 for gradient in ours[1:])


def test_without_rows_the_sum_is_0(ranks):
    assert all(value == 0 for result in ranks for value in result["no rows"])


def test_backward_pass_of_the_product_communicates_nothing(ranks):
    gram, direct = ranks[0]["lonely"]
    torch.testing.assert_close(gram, direct)
    assert gram.abs().max() > 0


def test_blocks_are_all_that_is_reduced(ranks):
    for result in ranks:
        assert result["traffic"] == {
            "gram False": [1],
            "gram True": [1],
            "direct False": [18, 18, 18, 18, 9],
            "direct True": [18, 14, 10, 6, 1],
        }


def test_a_group_adds_up_among_its_own_ranks(ranks):
    first = len(ranks) - 2
    assert all(result["subgroup"] == [] for result in ranks[:first])
    entry = 2.0 * (first**2 + (first + 1) ** 2)
    for result in ranks[first:]:
        gram, direct, mean, variance, total = result["subgroup"]
        assert gram.item() == direct.item() == 9 * entry**2
        assert mean.tolist() == [first + 0.5] * 3
        assert variance.tolist() == [0.25] * 3
        assert total.item() == 6.0 * (2 * first + 1)


@pytest.mark.parametrize("index", range(len(cases.ROUTES)), ids=cases.ROUTES)
def test_compiles_to_one_graph_on_every_rank(ranks, index):
    for result in ranks:
        found = result["compiled"][index]
        torch.testing.assert_close(found[3:], found[:3])


def test_one_row_on_each_rank_needs_global_statistics(ranks):
    rows = [view[: len(ranks)] for view in cases.views()[:2]]
    for result in ranks:
        value, message = result["one row"]
        torch.testing.assert_close(value, barlow_twins_loss(*rows))
        assert message.startswith("embeddings0 must have at least two rows")


def test_unequal_batches_are_an_error_on_every_rank(ranks):
    shapes = [(2 + index, 4) for index in range(len(ranks))]
    for result in ranks:
        assert len(result["unequal"]) == 3
        assert all(f"every rank, got {shapes}" in message for message in result["unequal"])


@pytest.mark.parametrize("route", ["auto", "gram", "direct"])
def test_on_one_process_it_is_the_primitive(route):
    a, b = cases.draw(6, 9), cases.draw(6, 9, seed=1)
    expected = cross_frobenius(a, b, split_diagonal=True, route=route)
    found = cross_frobenius_of_ranks(a, b, split_diagonal=True, route=route)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(cross_frobenius_of_ranks(a, route=route), cross_frobenius(a, route=route))


def test_moments_and_sums_on_one_process():
    rows = cases.moments_rows().requires_grad_()
    mean, variance = column_moments_of_ranks(rows, ddof=1)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(variance, rows.var(0), rtol=1e-4, atol=0)
    assert sum_over_ranks(rows) is rows
    with pytest.raises(ValueError, match=r"more than ddof=1 over all ranks, got shape \(1, 5\)"):
        column_moments_of_ranks(rows[:1], ddof=1)


@pytest.mark.parametrize(
    ("num_ranks", "rows", "dim", "width", "dtype", "route"),
    [
        # 8 x 256 rows of 2 x 8192 features against twice 8192^2: a quarter
        (8, 256, 8192, 8192, torch.float32, "gram"),
        (8, 1024, 8192, 8192, torch.float32, "gram"),  # as many bytes on either side
        (8, 1025, 8192, 8192, torch.float32, "direct"),
        (8, 2048, 8192, 8192, torch.bfloat16, "gram"),  # rows at half the width, sums not
        (8, 2049, 8192, 8192, torch.bfloat16, "direct"),
        (8, 256, 2048, 2048, torch.float64, "gram"),
        (8, 257, 2048, 2048, torch.float64, "direct"),
        (8, 256, 1024, 4096, torch.float32, "direct"),
        (64, 32, 8192, None, torch.float32, "gram"),
        (8, 1152, 8192, None, torch.float32, "gram"),  # 8 blocks: 9/16 of D^2, twice
        (8, 1153, 8192, None, torch.float32, "direct"),
    ],
)
def test_auto_moves_fewer_bytes(num_ranks, rows, dim, width, dtype, route):
    a = torch.empty(rows, dim, dtype=dtype, device="meta")
    b = None if width is None else torch.empty(rows, width, dtype=dtype, device="meta")
    assert cheaper_route(a, b, num_ranks) == route
