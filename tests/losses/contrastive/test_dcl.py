"""DCL and DCLW: lightly's values and gradients, what the formula promises, every bad argument."""

from __future__ import annotations

import inspect
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import or_skip
from contrastive_inputs import leaves, views
from torch import Tensor

from sslfast.bench.peers import lightly_loss
from sslfast.functional import dcl_loss, dclw_loss, negative_mises_fisher_weights, ntxent_loss
from sslfast.losses import DCLLoss, DCLWLoss
from sslfast.losses.contrastive.dcl import _dcl_eager

MATRIX = torch.ones(3, 4)
LOSSES = (dcl_loss, dclw_loss)


def lightly(name: str):
    with or_skip():
        return lightly_loss("dcl_loss", name)


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(1)


def value_and_gradients(loss, pair: tuple[Tensor, ...]) -> list[Tensor]:
    with warnings.catch_warnings():
        # lightly copies its weights with torch.tensor, which warns.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        value = loss(*pair)
    return [value.detach(), *torch.autograd.grad(value, pair)]


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("num_images", [2, 3, 17, 256])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DCLLoss", {}),
        ("DCLLoss", {"weight_fn": squared_distance}),
        ("DCLWLoss", {}),
        ("DCLWLoss", {"sigma": 0.1}),
    ],
    ids=["DCL", "DCL weighted", "DCLW", "DCLW sharp"],
)
def test_value_and_gradient_of_lightly(name, options, num_images, temperature):
    ours = {"DCLLoss": DCLLoss, "DCLWLoss": DCLWLoss}[name](temperature, **options)
    theirs = lightly(name)(temperature, **options)
    for dtype, rtol, atol in ((torch.float64, 1e-11, 1e-12), (torch.float32, 1e-4, 1e-5)):
        pair = leaves(num_images, 24, dtype=dtype)
        expected = value_and_gradients(theirs, pair)
        for actual, wanted in zip(value_and_gradients(ours, pair), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=rtol, atol=atol / temperature)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_weights_of_lightly(sigma):
    theirs = lightly("negative_mises_fisher_weights")
    first, second = views(9, 4)
    with pytest.warns(UserWarning, match="copy construct"):
        expected = theirs(first, second, sigma)
    torch.testing.assert_close(
        negative_mises_fisher_weights(first, second, sigma), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", ["DCLLoss", "DCLWLoss"])
def test_signature_and_attributes_of_lightly(name):
    ours, theirs = {"DCLLoss": DCLLoss, "DCLWLoss": DCLWLoss}[name], lightly(name)
    for method in ("__init__", "forward"):
        signatures = [
            [(p.name, p.default) for p in inspect.signature(getattr(x, method)).parameters.values()]
            for x in (ours, theirs)
        ]
        assert signatures[0] == signatures[1]
    ours, theirs = ours(0.2), theirs(0.2)
    for attribute in ("temperature", "gather_distributed"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert (ours.weight_fn is None) == (theirs.weight_fn is None)
    assert ours.state_dict() == theirs.state_dict() == {}
    assert issubclass(DCLWLoss, DCLLoss)


def test_both_refuse_to_gather_without_torch_distributed(monkeypatch):
    classes = (DCLLoss, DCLWLoss, lightly("DCLLoss"), lightly("DCLWLoss"))
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for loss_class in classes:
        with pytest.raises(ValueError, match=r"^gather_distributed .*torch"):
            loss_class(gather_distributed=True)


def test_equals_equation_6_written_out():
    first, second = views(num_images=3)
    rows = F.normalize(torch.cat((first, second)))
    terms = []
    for i in range(6):
        powers = [math.exp(float(rows[i] @ rows[j]) / 0.3) for j in range(6)]
        positive = powers[(i + 3) % 6]
        negatives = sum(p for j, p in enumerate(powers) if j not in (i, (i + 3) % 6))
        terms.append(-math.log(positive / negatives))
    assert dcl_loss(first, second, temperature=0.3).item() == pytest.approx(sum(terms) / 6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_known_values_of_collapsed_and_of_orthogonal_embeddings(loss, temperature):
    collapsed = torch.ones(4, 3, dtype=torch.float64)
    orthogonal = torch.eye(4, dtype=torch.float64)
    value = loss(collapsed, collapsed, temperature=temperature)
    assert value.item() == pytest.approx(math.log(6), rel=1e-12)
    value = loss(orthogonal, orthogonal, temperature=temperature)
    assert value.item() == pytest.approx(math.log(6) - 1 / temperature, rel=1e-12)


def test_is_nt_xent_without_the_positive_in_the_denominator():
    """With two images of which each view sees the same negatives, row by row."""
    first = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    decoupled = dcl_loss(first, first, temperature=0.5)
    coupled = ntxent_loss(first, first, temperature=0.5)
    torch.testing.assert_close(coupled, F.softplus(decoupled), rtol=1e-12, atol=0)


def test_positive_pulls_with_full_strength_where_it_has_won():
    first, second = torch.eye(4, 8, dtype=torch.float64), torch.eye(4, 8, dtype=torch.float64)
    second[:, 4:] = 0.1 * torch.eye(4, dtype=torch.float64)
    first.requires_grad_()
    pulls = []
    for loss in (dcl_loss, ntxent_loss):
        (gradient,) = torch.autograd.grad(loss(first, second, temperature=0.05), first)
        pulls.append(-gradient[:, 4:].diagonal())
    sine = 0.1 / math.hypot(1, 0.1)
    # Each row is the positive of one of 4 pairs, in both directions: the mean of 8 rows has 2.
    torch.testing.assert_close(pulls[0], torch.full((4,), 2 / 8 * sine / 0.05).double())
    assert pulls[1].max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_symmetries(loss):
    first, second = views()
    value = loss(first, second)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    rotation, _ = torch.linalg.qr(views(5, 5)[0])
    lengths = torch.linspace(0.01, 100, 6, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(loss(second, first), value)
    torch.testing.assert_close(loss(first[order], second[order]), value)
    torch.testing.assert_close(loss(first @ rotation, second @ rotation), value)
    torch.testing.assert_close(loss(lengths * first, second), value)
    assert loss(first[order], second) != value


def test_weights_have_mean_1_and_no_gradient():
    first, second = leaves(7, 3)
    weights = negative_mises_fisher_weights(first, second, 2.0)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0).double())
    order = (first * second).sum(1).argsort()
    assert (weights[order].diff() < 0).all()
    same = negative_mises_fisher_weights(first, first / first.square().sum(1, keepdim=True))
    torch.testing.assert_close(same, torch.ones(7, dtype=torch.float64))


def test_weights_of_half_rows_are_float32():
    first, second = views(7, 3, dtype=torch.float16)
    weights = negative_mises_fisher_weights(first, second)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(
        weights, negative_mises_fisher_weights(first.float(), second.float()), rtol=0, atol=0
    )


def test_weight_function_sees_unit_rows_in_both_orders():
    first, second = views()
    seen = []

    def note(*pair: Tensor) -> float:
        seen.append(pair)
        return 2.0

    value = dcl_loss(first, second, weight_fn=note)
    unit = F.normalize(first), F.normalize(second)
    torch.testing.assert_close(seen, [unit, unit[::-1]])
    doubled = dcl_loss(first, second, weight_fn=lambda a, b: torch.full((6,), 2.0))
    torch.testing.assert_close(value, doubled)
    torch.testing.assert_close(
        dcl_loss(first, second, weight_fn=lambda a, b: torch.tensor([2.0])), doubled
    )


def test_weight_module_is_trained():
    first, second = views()
    weigh = torch.nn.Sequential(torch.nn.Linear(10, 1), torch.nn.Flatten(0)).double()

    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = weigh

        def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
            return self.layers(torch.cat((out0, out1), dim=1))

    loss = DCLLoss(weight_fn=Weights())
    loss(first, second).backward()
    assert {name for name, _ in loss.named_parameters()} == {
        "weight_fn.layers.0.weight",
        "weight_fn.layers.0.bias",
    }
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


@pytest.mark.parametrize("weight_fn", [None, squared_distance])
def test_gradcheck_of_embeddings_temperature_and_weights(weight_fn):
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(first, second, temperature):
        return dcl_loss(first, second, temperature=temperature, weight_fn=weight_fn)

    assert torch.autograd.gradcheck(loss, (*leaves(3, 4), temperature))


def test_gradient_holds_the_weights_of_dclw_constant():
    pair = leaves(5, 4)
    weights = negative_mises_fisher_weights(*(F.normalize(view) for view in pair))
    fixed = dcl_loss(*pair, weight_fn=lambda first, second: weights)
    torch.testing.assert_close(
        torch.autograd.grad(dclw_loss(*pair), pair), torch.autograd.grad(fixed, pair)
    )


@pytest.mark.parametrize("shape", [(), (1,)])
def test_learnable_temperature_has_the_gradient_of_the_eager_form(shape):
    first, second = views()
    gradients = []
    for loss_function in (dcl_loss, _dcl_eager):
        temperature = torch.full(shape, 0.2, dtype=torch.float64, requires_grad=True)
        loss_function(first, second, temperature=temperature).sum().backward()
        gradients.append(temperature.grad)
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss_class", [DCLLoss, DCLWLoss])
def test_parameter_temperature_is_a_parameter_of_the_module(loss_class):
    loss = loss_class(torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(*views(dtype=torch.float32)).backward()
    assert loss.temperature.grad.abs() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_gives_a_finite_float32_loss_and_half_gradients(loss, temperature, dtype):
    pair = leaves(16, 24, dtype=dtype)
    value = loss(*pair, temperature=temperature)
    exact = loss(*(view.double() for view in pair), temperature=temperature)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0.02, atol=0.01 / temperature)
    for gradient in torch.autograd.grad(value, pair):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_rounds_positives_and_negatives_alike(loss):
    pair = leaves(12, 32, dtype=torch.float32)
    exact = loss(*pair, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*pair, temperature=0.1)
        same = dcl_loss(torch.ones(5, 3), torch.ones(5, 3), temperature=0.001)
    gradient, _ = torch.autograd.grad(value, pair)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.float32)
    assert value != exact
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.05)
    assert same.item() == pytest.approx(math.log(8), abs=1e-3)


@pytest.mark.parametrize(
    "loss", [DCLLoss(0.2), DCLLoss(0.2, squared_distance), DCLWLoss(0.2)], ids=["", "fn", "w"]
)
def test_compiles_without_a_graph_break_for_any_batch_size(loss):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_images in (4, 7, 9):
        pair = leaves(num_images)
        actual, expected = (value_and_gradients(each, pair) for each in (compiled, loss))
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (MATRIX, torch.ones(2, 4), ValueError, r"1 must have the shape of .*\(3, 4\), got \(2, 4"),
        (torch.ones(3), torch.ones(3), ValueError, r"0 must be a matrix .* got shape \(3,\)"),
        (
            torch.ones(1, 4),
            torch.ones(1, 4),
            ValueError,
            r"0 must have at least two rows: .*no negatives, got shape \(1, 4\)",
        ),
        (MATRIX.long(), MATRIX, TypeError, r"0 must be floating point .* got torch.int64"),
        (MATRIX, [[1.0]], TypeError, r"1 must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r"1 must be on the device of .*\(cpu\), got meta"),
    ],
)
def test_errors_name_the_embeddings(first, second, error, message):
    for loss in LOSSES:
        with pytest.raises(error, match="^embeddings" + message):
            loss(first, second)
    for loss in (DCLLoss(), DCLWLoss()):
        with pytest.raises(error, match="^out" + message):
            loss(first, second)
    if "negatives" not in message:
        with pytest.raises(error, match="^out" + message):
            negative_mises_fisher_weights(first, second)


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_errors_name_temperature_and_sigma(value):
    for loss_class, loss in ((DCLLoss, dcl_loss), (DCLWLoss, dclw_loss)):
        with pytest.raises(ValueError, match=rf"^temperature must be .*, got {value}"):
            loss_class(value)
        with pytest.raises(ValueError, match=rf"^temperature must be .*, got {value}"):
            loss(MATRIX, MATRIX, temperature=value)
        module = loss_class()
        module.temperature = value
        with pytest.raises(ValueError, match=rf"^temperature must be .*, got {value}"):
            module(MATRIX, MATRIX)
    message = rf"^sigma must be finite and above 0, got {value}"
    for function in (DCLWLoss, partial(dclw_loss, MATRIX, MATRIX)):
        with pytest.raises(ValueError, match=message):
            function(sigma=value)
    with pytest.raises(ValueError, match=message):
        negative_mises_fisher_weights(MATRIX, MATRIX, value)
    with pytest.raises(TypeError, match=r"^sigma must be a number, got str"):
        DCLWLoss(sigma="0.5")


def test_errors_name_the_weight_function():
    with pytest.raises(TypeError, match=r"^weight_fn must be callable or None, got float"):
        DCLLoss(weight_fn=0.5)
    with pytest.raises(TypeError, match=r"^weight_fn must be callable or None, got str"):
        dcl_loss(MATRIX, MATRIX, weight_fn="mises")
    with pytest.raises(TypeError, match=r"^weight_fn must return a tensor or a number, got list"):
        dcl_loss(MATRIX, MATRIX, weight_fn=lambda a, b: [1.0])
    for shape in ((2,), (3, 1), (3, 3)):
        with pytest.raises(
            ValueError, match=r"^weight_fn must return .*\(N,\) = \(3,\), got shape"
        ):
            dcl_loss(MATRIX, MATRIX, weight_fn=lambda a, b, shape=shape: torch.ones(shape))
