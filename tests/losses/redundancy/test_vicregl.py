"""VICRegL: its matches, the authors' form and its limits, bad arguments."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from vicreg_inputs import covariance_term, normal, variance_term

from sslfast.functional import vicregl_loss
from sslfast.losses import VICRegLLoss
from sslfast.losses.redundancy import _matching
from sslfast.losses.redundancy._matching import match, take_places

SMALL = ("local_embeddings", "local_maps", "local_grids")


def stacks(
    num_images=5, dim=6, channels=4, *, side=3, num_global=2, num_local=0, dtype=torch.float64
):
    """Arguments of the function: large crops, and small ones where asked for."""
    found = {}
    for kind, count, extent, seed in (
        ("global", num_global, side, 1),
        ("local", num_local, side - 1, 2),
    ):
        if count:
            shape = (num_images, count, extent, extent)
            found[f"{kind}_embeddings"] = normal(num_images, count, dim, seed=seed).to(dtype)
            found[f"{kind}_maps"] = normal(*shape, channels, seed=10 * seed).to(dtype)
            found[f"{kind}_grids"] = normal(*shape, 2, seed=20 * seed).to(dtype)
    return {
        name: value.requires_grad_() if "grids" not in name else value
        for name, value in found.items()
    }


def lists(arguments):
    """The same as lightly's arguments."""
    found = []
    for kind in ("global", "local"):
        if f"{kind}_maps" in arguments:
            parts = [arguments[f"{kind}_{part}"].unbind(1) for part in ("embeddings", "maps")]
            found.append(list(zip(*parts, strict=True)))
            found.append(list(arguments[f"{kind}_grids"].unbind(1)))
    return found


def matched_by_hand(where, there, first, second, count, by_position):
    """Nearest places, image by image and place by place."""
    rows, others = [], []
    for image in range(len(where)):
        found = []
        for place, position in enumerate(where[image]):
            distances = [(position - other).norm().item() for other in there[image]]
            neighbour = min(range(len(distances)), key=distances.__getitem__)
            found.append((distances[neighbour], place, neighbour))
        found = sorted(found)[:count]
        if by_position:
            found.sort(key=lambda each: each[1])
        rows.append(torch.stack([first[image][place] for _, place, _ in found]))
        others.append(torch.stack([second[image][neighbour] for *_, neighbour in found]))
    return torch.stack(rows), torch.stack(others)


def matched_loss(a, b):
    """VICReg of maps (N, k, C), the covariances halved as in the authors' code."""
    loss = 25.0 * F.mse_loss(a, b)
    for view in (a, b):
        places = view.unbind(1)
        loss = loss + 12.5 * torch.stack([variance_term(place) for place in places]).mean()
        loss = loss + 0.5 * torch.stack([covariance_term(place) for place in places]).mean()
    return loss


def by_hand(arguments, num_matches=(20, 4), alpha=0.75, by_position=False, all_l2=False):
    crops = [
        (arguments[f"{kind}_embeddings"][:, v], *maps)
        for kind in ("global", "local")
        if f"{kind}_maps" in arguments
        for v, maps in enumerate(
            zip(
                arguments[f"{kind}_maps"].flatten(2, 3).unbind(1),
                arguments[f"{kind}_grids"].flatten(2, 3).unbind(1),
                strict=True,
            )
        )
    ]
    num_global = arguments["global_maps"].shape[1]
    pairs = [(i, j) for i in range(num_global) for j in range(len(crops)) if i != j]
    similarity = sum(F.mse_loss(crops[i][0], crops[j][0]) for i, j in pairs) / len(pairs)
    rest = sum(25 * variance_term(crop[0]) + covariance_term(crop[0]) for crop in crops)
    local = 0.0
    for i, j in pairs:
        (_, first, grid), (_, second, other_grid) = crops[i], crops[j]
        for kind, there, back in (("l2", first, second), ("grid", grid, other_grid)):
            counts = (None, None) if kind == "l2" and all_l2 else num_matches
            a = matched_by_hand(there, back, first, second, counts[0], by_position)
            b = matched_by_hand(back, there, second, first, counts[1], by_position)
            local = local + (matched_loss(*a) + matched_loss(*b)) / 2
    return alpha * (25 * similarity + rest / len(crops)) + (1 - alpha) * local / len(pairs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_matches": (3, 2), "alpha": 0.2},
        {"num_matches": (3, 2), "match_order": "position"},
        {"num_matches": (2, 1), "all_l2_matches": True, "alpha": 0.0},
        {"num_matches": (None, -1)},
        {"alpha": 1.0, "route": "direct"},
        {"alpha": 0.0, "route": "gram", "num_matches": (4, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "crops", [{}, {"num_local": 2}, {"num_global": 1, "num_local": 1}, {"num_global": 3}], ids=str
)
def test_value_and_gradient_of_the_form_written_out(crops, options):
    arguments = stacks(**crops)
    plain = {
        "alpha": options.get("alpha", 0.75),
        "by_position": options.get("match_order") == "position",
        "all_l2": options.get("all_l2_matches", False),
        "num_matches": [None if n == -1 else n for n in options.get("num_matches", (20, 4))],
    }
    leaves = [value for value in arguments.values() if value.requires_grad]
    found, expected = vicregl_loss(**arguments, **options), by_hand(arguments, **plain)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for gradient, truth in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(gradient, truth, rtol=1e-8, atol=1e-12)


def test_module_takes_the_same_crops_as_lists():
    arguments = stacks(num_local=1)
    value = VICRegLLoss(num_matches=(3, 2))(*lists(arguments))
    assert value.shape == (1,)
    torch.testing.assert_close(value[0], vicregl_loss(**arguments, num_matches=(3, 2)))
    assert "nu_param=1.0" in repr(VICRegLLoss())


def test_crops_may_differ_in_height_and_width():
    features = [(normal(4, 6, seed=s), normal(4, s, s + 1, 3, seed=s)) for s in (2, 3)]
    grids = [normal(4, s, s + 1, 2, seed=9 + s) for s in (2, 3)]
    turned = [(e, maps.transpose(1, 2)) for e, maps in features]
    value = VICRegLLoss(num_matches=(3, 2))(features, grids)
    same = VICRegLLoss(num_matches=(3, 2))(turned, [grid.transpose(1, 2) for grid in grids])
    torch.testing.assert_close(value, same)


def test_global_loss_under_lightlys_name():
    arguments = stacks(num_local=1)
    features, _, small, _ = lists(arguments)
    value = VICRegLLoss()._global_loss(features, small)
    assert value.shape == (1,)
    torch.testing.assert_close(value[0], vicregl_loss(**arguments, alpha=1.0), rtol=1e-12, atol=0)
    alone = VICRegLLoss()._global_loss(global_view_features=features)
    large = {name: value for name, value in arguments.items() if name not in SMALL}
    torch.testing.assert_close(alone[0], vicregl_loss(**large, alpha=1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 22])
def test_matches_are_nearest_and_in_order(chunk, monkeypatch):
    monkeypatch.setattr(_matching, "DISTANCES_AT_A_TIME", chunk)
    first, second = normal(6, 5, 3), normal(6, 7, 3, seed=1)
    distances = torch.cdist(first, second)
    for found, each in zip(match(first, second), (distances, distances.mT), strict=True):
        nearest, neighbours = each.min(dim=2)
        order = nearest.argsort(dim=1)
        assert torch.equal(found.places, order)
        assert torch.equal(found.neighbours, neighbours.gather(1, order))
        best = found.best(2, by_position=True)
        assert torch.equal(best.places, order[:, :2].sort(dim=1).values)
        assert torch.equal(best.neighbours, neighbours.gather(1, best.places))


def test_of_equal_distances_the_first_comes_first():
    same = torch.zeros(1, 4, 2)
    for found in match(same, same):
        assert found.places.tolist() == [[0, 1, 2, 3]]
        assert found.neighbours.tolist() == [[0, 0, 0, 0]]
    grid = torch.arange(4.0).view(1, 4, 1).expand(1, 4, 2)
    for found in match(grid, grid):
        assert found.places.tolist() == found.neighbours.tolist() == [[0, 1, 2, 3]]


def test_close_places_are_matched_by_their_distance_and_not_by_its_rounding():
    """Through products, distances of 1e-4 at a position of 1 are lost in float32."""
    generator = torch.Generator().manual_seed(0)
    first = 1 + 1e-4 * torch.rand(8, 49, 2, generator=generator)
    second = 1 + 1e-4 * torch.rand(8, 49, 2, generator=generator)
    by_products = torch.cdist(first, second, compute_mode="use_mm_for_euclid_dist")
    exact = match(first.double(), second.double())
    assert not torch.equal(by_products.min(2).values.argsort(1), exact[0].places)
    for found, truth in zip(match(first, second), exact, strict=True):
        assert torch.equal(found.places, truth.places)
        assert torch.equal(found.neighbours, truth.neighbours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_taken_places_add_up_their_gradients(dtype):
    maps = normal(3, 4, 5, dtype=dtype).requires_grad_()
    index = torch.tensor([[0, 0, 3], [1, 2, 1], [3, 3, 3]])
    taken = take_places(maps, index)
    weights = normal(3, 3, 5, seed=1, dtype=dtype)
    (gradient,) = torch.autograd.grad(taken, maps, weights)
    images = torch.arange(3).unsqueeze(1)
    assert torch.equal(taken, maps[images, index])
    expected = torch.zeros(3, 4, 5, dtype=torch.float64)
    expected.index_put_((images, index), weights.double(), accumulate=True)
    torch.testing.assert_close(gradient, expected.to(dtype))


def test_matches_are_constants_for_the_gradient():
    arguments = stacks(3, 3, 2, side=2, num_local=1)
    names = [name for name, value in arguments.items() if value.requires_grad]
    rest = {name: value for name, value in arguments.items() if name not in names}

    def loss(*leaves):
        return vicregl_loss(**rest, **dict(zip(names, leaves, strict=True)), num_matches=(3, 2))

    assert torch.autograd.gradcheck(loss, [arguments[name] for name in names])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss_and_half_gradients(dtype):
    arguments = stacks(8, 12, 6, dtype=dtype)
    leaves = [value for value in arguments.values() if value.requires_grad]
    value = vicregl_loss(**arguments)
    exact = vicregl_loss(**{name: value.double() for name, value in arguments.items()})
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=0)
    for gradient in torch.autograd.grad(value, leaves):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_grids_may_hold_integers():
    arguments = stacks()
    grids = (1000 * arguments["global_grids"]).round()
    found, expected = (
        vicregl_loss(**{**arguments, "global_grids": each}, num_matches=(3, 2))
        for each in (grids.long(), grids)
    )
    assert torch.equal(found, expected)


def error_cases():
    good = stacks()
    embeddings, maps, grids = (good[f"global_{part}"] for part in ("embeddings", "maps", "grids"))
    yield {"global_embeddings": embeddings[:, 0]}, ValueError, r"global_embeddings must have shape"
    yield {"global_maps": maps[:, :1]}, ValueError, r"global_maps must .* V = 2 crops of global_emb"
    yield {"global_maps": None}, ValueError, r"global_embeddings, .*global_grids must be given tog"
    yield {"global_maps": [1.0]}, TypeError, r"global_maps must be a tensor, got list"
    yield {"global_maps": maps.int()}, TypeError, r"global_maps\[:, 0\] must be floating point"
    yield {"global_maps": maps[:4]}, ValueError, r"global_maps\[:, 0\] must have shape \(5, 3, 3, 4"
    yield {"global_grids": grids[..., :1]}, ValueError, r"global_grids\[:, 0\] must have shape \(5"
    yield {"global_grids": grids > 0}, TypeError, r"global_grids\[:, 0\] must hold numbers, got tor"
    yield {"global_grids": grids.to("meta")}, ValueError, r"global_grids\[:, 0\] must be on the dev"
    yield {"local_maps": maps}, ValueError, r"local_embeddings, .* must be given together, got 1 of"
    yield (
        {"local_embeddings": embeddings, "local_maps": maps[..., :3], "local_grids": grids},
        ValueError,
        r"local_maps\[:, 0\] must have shape \(5, 3, 3, 4\), got \(5, 3, 3, 3\)",
    )
    one = {name: value[:, :1] for name, value in good.items()}
    yield one, ValueError, r"there must be a large crop and another crop .* got 1 large of 1"
    single = {name: value[:1] for name, value in good.items()}
    yield single, ValueError, r"global_embeddings\[:, 0\] must have at least two rows"
    empty = {"global_maps": maps[:, :, :0], "global_grids": grids[:, :, :0]}
    yield empty, ValueError, r"global_maps\[:, 0\] must .* at least one place and feature"


@pytest.mark.parametrize(("changes", "error", "message"), list(error_cases()))
def test_errors_name_the_tensor(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        vicregl_loss(**{**stacks(), **changes})


def test_errors_name_lightlys_arguments():
    features, grids, small, small_grids = lists(stacks(num_local=1))
    loss = VICRegLLoss()
    with pytest.raises(ValueError, match=r"^global_view_grids must be as many .* \(2\), got 1"):
        loss(features, grids[:1])
    with pytest.raises(ValueError, match=r"^local_view_grids must be as many .* \(1\), got 0"):
        loss(features, grids, small, [])
    for pair in ((small, None), (None, small_grids)):
        with pytest.raises(ValueError, match=r"^local_view_features and local_view_grids must"):
            loss(features, grids, *pair)
    with pytest.raises(ValueError, match=r"^global_view_features\[1\]\[1\] must have shape"):
        loss([features[0], (features[1][0], features[1][1][..., :2])], grids)
    with pytest.raises(ValueError, match=r"^global_view_features\[1\]\[0\] must have shape"):
        loss([features[0], (features[1][0][:, :2], features[1][1])], grids)
    with pytest.raises(TypeError, match=r"^local_view_grids\[0\] must be a tensor, got float"):
        loss(features, grids, small, [1.0])
    with pytest.raises(ValueError, match=r"^there must be a large crop .* got 0 large of 1"):
        loss([], [], small, small_grids)


@pytest.mark.parametrize("name", ["lambda_param", "mu_param", "nu_param", "alpha", "eps"])
def test_errors_name_the_number(name, monkeypatch):
    for loss in (VICRegLLoss, partial(vicregl_loss, **stacks())):
        for value in (-1.0, math.inf):
            message = rf"^{name} must be finite and at least 0, got {value}"
            with pytest.raises(ValueError, match=message):
                loss(**{name: value})
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        VICRegLLoss(gather_distributed=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be at most 1, got 1.5"),
        ({"num_matches": (20,)}, r"num_matches must be two numbers above 0 .* got \(20,\)"),
        ({"num_matches": (20, 0)}, r"num_matches must be two numbers above 0 .* got \(20, 0\)"),
        ({"num_matches": (-2, 4)}, r"num_matches must be two numbers above 0 .* got \(-2, 4\)"),
        ({"match_order": "best"}, r"match_order must be one of \(.*\), got 'best'"),
        ({"grad_scale": "best"}, r"grad_scale must be one of \(.*\), got 'best'"),
        ({"route": "best"}, r"route must be one of \(.*\), got 'best'"),
    ],
)
def test_errors_name_the_option(options, message):
    for loss in (VICRegLLoss, partial(vicregl_loss, **stacks())):
        with pytest.raises(ValueError, match=f"^{message}"):
            loss(**options)
