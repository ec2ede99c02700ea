"""SupCon: the formula for labels, masks and neither, its rare cases, its errors."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.functional import ntxent_loss, supcon_loss
from sslfast.losses import SupConLoss
from sslfast.losses.contrastive._positives import class_sums, dense_classes
from sslfast.losses.contrastive.supcon import _supcon_eager
from sslfast.testing import threads

LABELS = torch.tensor([4, -1, 4, 7, 1 << 40, -1, 4])
CUBE = torch.ones(3, 2, 4)


def features(num_samples: int = 7, num_views: int = 2, dim: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_samples, num_views, dim, generator=generator, dtype=torch.float64)
    return F.normalize(rows, dim=-1).requires_grad_()


def random_mask(num_samples: int = 7, share: float = 0.3, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_samples, num_samples, generator=generator) < share


def written_out(rows: Tensor, chosen: Tensor, temperature: float, mode: str) -> list[float]:
    """Equation 2, anchor by anchor, for the weights `chosen` (B, B) of samples; 0 without one."""
    rows = rows.detach()
    every = [(b, v) for b in range(rows.shape[0]) for v in range(rows.shape[1])]
    terms = []
    for b, v in every:
        if mode == "one" and v > 0:
            continue
        others = [(c, w) for c, w in every if (c, w) != (b, v)]
        logits = [float(rows[b, v] @ rows[c, w]) / temperature for c, w in others]
        total = sum(math.exp(logit) for logit in logits)
        weights = [float(chosen[b, c]) for c, _ in others]
        logs = [w * (logit - math.log(total)) for w, logit in zip(weights, logits, strict=True)]
        terms.append(-sum(logs) / sum(weights) if sum(weights) > 0 else 0.0)
    return terms


def cases() -> list[tuple[str, int, str]]:
    kinds = ("labels", "mask", "weights", "neither")
    return [
        case for case in product(kinds, (1, 2, 3), ("all", "one")) if case[:2] != ("neither", 1)
    ]


@pytest.mark.parametrize(("kind", "num_views", "mode"), cases())
def test_value_and_gradient_are_those_of_equation_2(kind, num_views, mode):
    rows = features(num_views=num_views)
    given = {
        "labels": {"labels": LABELS},
        "mask": {"mask": random_mask()},
        "weights": {"mask": random_mask() * torch.linspace(0.1, 3, 49).view(7, 7)},
        "neither": {},
    }[kind]
    chosen = torch.eye(7) if kind == "neither" else given.get("mask", LABELS[:, None] == LABELS)
    terms = written_out(rows, chosen, 0.3, mode)
    assert len(terms) == 7 * (num_views if mode == "all" else 1)
    loss = supcon_loss(rows, **given, temperature=0.3, contrast_mode=mode)
    assert loss.item() == pytest.approx(0.3 / 0.07 * sum(terms) / len(terms))
    eager = _supcon_eager(rows, **given, temperature=0.3, contrast_mode=mode)
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(torch.autograd.grad(loss, rows), torch.autograd.grad(eager, rows))


def test_anchors_without_a_positive_are_zero_and_stay_in_the_mean_unless_told_otherwise():
    rows = features(num_views=1)
    terms = written_out(rows, LABELS[:, None] == LABELS, 0.2, "all")
    assert terms.count(0.0) == 2
    options = {"temperature": 0.2, "base_temperature": 0.2}
    assert supcon_loss(rows, LABELS, **options).item() == pytest.approx(sum(terms) / 7)
    loss = supcon_loss(rows, LABELS, **options, only_with_positives=True)
    assert loss.item() == pytest.approx(sum(terms) / 5)


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("num_samples", [1, 5])
def test_nothing_but_anchors_without_a_positive_gives_zero_and_no_gradient(num_samples, only):
    rows = features(num_samples, 1)
    for given in (
        {"labels": torch.arange(num_samples)},
        {"mask": torch.eye(num_samples)},
        {"mask": torch.zeros(num_samples, num_samples)},
    ):
        loss = supcon_loss(rows, **given, only_with_positives=only)
        (gradient,) = torch.autograd.grad(loss, rows)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(rows))


@pytest.mark.parametrize("mode", ["all", "one"])
def test_one_sample_alone_has_no_negative(mode):
    rows = features(1, 2)
    for given in ({}, {"labels": torch.tensor([3])}, {"mask": torch.ones(1, 1)}):
        loss = supcon_loss(rows, **given, contrast_mode=mode)
        (gradient,) = torch.autograd.grad(loss, rows)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(rows))


def test_two_views_without_labels_are_nt_xent():
    rows = features()
    unit = F.normalize(rows, dim=-1)  # so that both gradients leave out the radial part
    loss = supcon_loss(unit, temperature=0.2, base_temperature=0.1)
    expected = 2 * ntxent_loss(rows[:, 0], rows[:, 1], temperature=0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, rows), torch.autograd.grad(expected, rows))


@pytest.mark.parametrize("num_views", [1, 2, 3])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_labels_and_the_mask_that_they_make_agree(num_views, mode):
    rows = features(num_views=num_views)
    for temperature in (0.2, 0.01):
        options = {"temperature": temperature, "contrast_mode": mode}
        mask = LABELS[:, None] == LABELS
        expected = supcon_loss(rows, LABELS, **options)
        torch.testing.assert_close(supcon_loss(rows, mask=mask, **options), expected)
        torch.testing.assert_close(supcon_loss(rows, mask=5 * mask, **options), expected)


def test_any_integer_labels_in_a_row_or_a_column_and_any_shape_of_features():
    rows = features(dim=6)
    expected = supcon_loss(rows, LABELS)
    _, small = LABELS.unique(return_inverse=True)
    for labels in (LABELS[:, None], small, small.to(torch.uint8), small.int()):
        torch.testing.assert_close(supcon_loss(rows, labels), expected)
    assert torch.equal(supcon_loss(rows.view(7, 2, 2, 3), LABELS), expected)


@pytest.mark.parametrize(
    ("kind", "num_views"),
    [("labels", 1), ("labels", 2), ("mask", 1), ("mask", 2), ("neither", 2)],
)
def test_a_lone_positive_keeps_the_digits_of_a_small_loss(kind, num_views):
    basis = torch.eye(8).repeat_interleave(3 - num_views, 0).unsqueeze(1).repeat(1, num_views, 1)
    labels = torch.arange(8).repeat_interleave(3 - num_views)
    given = {"labels": {"labels": labels}, "mask": {"mask": labels[:, None] == labels}}
    options = {"temperature": 0.04, "base_temperature": 0.04, **given.get(kind, {})}
    expected = math.log1p(14 * math.exp(-1 / 0.04))
    assert _supcon_eager(basis, **options).item() == 0.0
    assert supcon_loss(basis, **options).item() == pytest.approx(expected, rel=1e-5)


def test_a_mask_that_is_not_symmetric_excludes_mutual_positives_only():
    rows = features(4, 1)
    mask = torch.zeros(4, 4)
    mask[0, 1] = mask[1, 0] = mask[2, 1] = 1  # 2 chooses 1, which chooses 0
    for temperature in (0.3, 0.01):
        terms = written_out(rows, mask, temperature, "all")
        loss = supcon_loss(rows, mask=mask, temperature=temperature, base_temperature=temperature)
        assert loss.item() == pytest.approx(sum(terms) / 4)


def test_rotation_and_order_of_samples_change_nothing():
    rows = features()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    order = torch.tensor([3, 0, 5, 1, 4, 6, 2])
    loss = supcon_loss(rows, LABELS)
    torch.testing.assert_close(supcon_loss(rows @ rotation, LABELS), loss)
    torch.testing.assert_close(supcon_loss(rows[order], LABELS[order]), loss)
    torch.testing.assert_close(supcon_loss(rows.flip(1), LABELS), loss)


@pytest.mark.parametrize("given", [{}, {"labels": LABELS}, {"mask": random_mask()}])
def test_gradcheck_of_features_and_temperature(given):
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def function(rows, temperature):
        return supcon_loss(rows, **given, temperature=temperature)

    assert torch.autograd.gradcheck(function, (features(), temperature))


@pytest.mark.parametrize("given", [{}, {"labels": LABELS}, {"mask": random_mask()}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_finite_float32_loss_and_half_gradients(given, dtype):
    rows = features().detach().to(dtype).requires_grad_()
    for temperature in (1.0, 0.01):
        loss = supcon_loss(rows, **given, temperature=temperature)
        wide = supcon_loss(rows.double(), **given, temperature=temperature)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), wide, rtol=1e-4, atol=1e-4)
        (gradient,) = torch.autograd.grad(loss, rows)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("given", [{}, {"labels": LABELS}, {"mask": random_mask()}])
def test_autocast_rounds_positives_and_negatives_alike(given):
    rows = features().detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon_loss(rows, **given)
    rounded = supcon_loss(rows.bfloat16(), **given)
    assert loss != supcon_loss(rows, **given)
    torch.testing.assert_close(loss, rounded, rtol=1e-6, atol=0)
    assert torch.autograd.grad(loss, rows)[0].dtype == torch.float32


@pytest.mark.parametrize("given", [{}, {"labels": LABELS}, {"mask": random_mask().float()}])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_module_hands_its_options_on_and_compiles(given, mode):
    torch.compiler.reset()
    loss = SupConLoss(0.2, mode, 0.1, only_with_positives=True)
    rows = features()
    expected = supcon_loss(
        rows,
        **given,
        temperature=0.2,
        contrast_mode=mode,
        base_temperature=0.1,
        only_with_positives=True,
    )
    assert torch.equal(loss(rows, **given), expected)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(rows, **given)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, rows) for each in (compiled, expected)))
    assert "temperature=0.2" in str(loss)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_learnable_temperature_is_a_parameter_of_the_module(shape):
    loss = SupConLoss(torch.nn.Parameter(torch.full(shape, 0.2)))
    value = loss(features(), LABELS)
    value.backward()
    assert value.shape == ()
    expected = torch.full((), 0.2, requires_grad=True)
    _supcon_eager(features(), LABELS, temperature=expected).backward()
    assert loss.temperature.grad.shape == shape
    torch.testing.assert_close(loss.temperature.grad.reshape(()), expected.grad)


def test_sums_of_classes_and_their_gradient():
    labels = torch.tensor([5, -3, 5, 9, -3, 5])
    classes = dense_classes(labels)
    assert classes.tolist() == [1, 0, 1, 2, 0, 1]
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    wanted = classes[2:]
    table = (wanted[:, None] == classes).double()
    torch.testing.assert_close(class_sums(rows, classes, wanted), table @ rows)
    assert torch.autograd.gradcheck(lambda r: class_sums(r, classes, wanted), (rows,))


def test_same_bits_with_any_number_of_threads():
    rows = features(700, 2, 130).detach().float().requires_grad_()
    labels = torch.arange(700) % 90
    results = []
    for count in (1, 2):
        with threads(count):
            loss = supcon_loss(rows, labels)
            results.append([loss, *torch.autograd.grad(loss, rows)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((torch.ones(3, 4),), ValueError, r"features must have shape \(B, V, .*got shape \(3, 4\)"),
        ((torch.ones(0, 2, 4),), ValueError, r"features must have .* got shape \(0, 2, 4\)"),
        ((torch.ones(3, 2, 0),), ValueError, r"features must have .* got shape \(3, 2, 0\)"),
        ((CUBE.int(),), TypeError, r"features must be floating point .* got torch.int32"),
        ((CUBE[:, :1],), ValueError, r"features must have at least two views .* \(3, 1, 4\)"),
        (
            (CUBE, torch.arange(2)),
            ValueError,
            r"labels must have shape \(B,\) = \(3,\), got .*\(2,",
        ),
        ((CUBE, torch.ones(3, 2).int()), ValueError, r"labels must have shape .* got shape \(3, 2"),
        ((CUBE, torch.ones(3)), TypeError, r"labels must hold integers .* got torch.float32"),
        ((CUBE, [0, 1, 2]), TypeError, r"labels must be a tensor, got list"),
        ((CUBE, torch.ones(3, device="meta").int()), ValueError, r"labels must be on .* got meta"),
        ((CUBE, torch.arange(3), torch.eye(3)), ValueError, r"labels must be None when a mask"),
        (
            (CUBE, None, torch.eye(2)),
            ValueError,
            r"mask must have shape .*\(3, 3\), got .*\(2, 2\)",
        ),
        ((CUBE, None, -torch.eye(3)), ValueError, r"mask must be at least 0 everywhere, got -1.0"),
        (
            (CUBE, None, torch.eye(3).cfloat()),
            TypeError,
            r"mask must be bool or real, got torch.com",
        ),
        ((CUBE, None, [[1]]), TypeError, r"mask must be a tensor, got list"),
        ((CUBE, None, torch.eye(3, device="meta")), ValueError, r"mask must be on .* got meta"),
    ],
)
def test_errors_name_features_labels_and_mask(given, error, message):
    for function in (supcon_loss, SupConLoss()):
        with pytest.raises(error, match="^" + message):
            function(*given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, r"temperature must be finite and at least 1e-8, got 0"),
        ({"temperature": "1"}, TypeError, r"temperature must be a number or a tensor, got str"),
        ({"contrast_mode": "both"}, ValueError, r"contrast_mode must be one of .* got 'both'"),
        ({"base_temperature": 0.0}, ValueError, r"base_temperature must be .* above 0, got 0.0"),
        ({"base_temperature": None}, TypeError, r"base_temperature must be a number, got NoneType"),
    ],
)
def test_errors_name_the_options(options, error, message):
    with pytest.raises(error, match="^" + message):
        supcon_loss(CUBE, **options)
    with pytest.raises(error, match="^" + message):
        SupConLoss(**options)


def test_a_mask_does_not_go_with_gathering():
    with pytest.raises(ValueError, match=r"^mask must be None with gather_distributed"):
        supcon_loss(CUBE, mask=torch.eye(3), gather_distributed=True)


def test_distributed_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        SupConLoss(gather_distributed=True)
