"""CLIP: the formula, its scale and bias, the interface of open_clip's `ClipLoss`, its errors."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import views

from sslfast.functional import clip_loss
from sslfast.losses import CLIPLoss
from sslfast.losses.contrastive.clip import _clip_eager

MATRIX = torch.ones(2, 3)


def towers(*shape, **options):
    """Unit rows of images and texts that require gradients."""
    options.setdefault("dtype", torch.float64)
    pair = (F.normalize(view).to(**options) for view in views(*shape))
    return tuple(view.requires_grad_() for view in pair)


def test_equals_figure_3_written_out():
    images, texts = (tower.detach() for tower in towers(4))
    exps = [[math.exp(7.0 * float(x @ y)) for y in texts] for x in images]
    per_image = [-math.log(exps[i][i] / sum(exps[i])) for i in range(4)]
    per_text = [-math.log(exps[i][i] / sum(row[i] for row in exps)) for i in range(4)]
    expected = (sum(per_image) + sum(per_text)) / 8
    assert clip_loss(images, texts, logit_scale=7.0).item() == pytest.approx(expected)
    assert clip_loss(texts, images, logit_scale=7.0).item() == pytest.approx(expected)


def test_takes_features_as_they_are():
    images, texts = towers()
    loss = clip_loss(images, texts, logit_scale=6.0)
    torch.testing.assert_close(clip_loss(2 * images, texts / 3, logit_scale=9.0), loss)
    assert clip_loss(2 * images, texts, logit_scale=6.0) != loss


@pytest.mark.parametrize("shape", [(), (1,)])
def test_learnable_scale_has_the_gradient_of_the_eager_form(shape):
    results = []
    for function in (clip_loss, _clip_eager):
        images, texts = towers()
        exponent = torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
        loss = function(images, texts, logit_scale=exponent.exp())
        results.append(torch.autograd.grad(loss.sum(), (images, texts, exponent)))
    assert all(gradient.abs().max() > 1e-3 for gradient in results[0])
    torch.testing.assert_close(*results)


def test_gradcheck():
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, y, s: clip_loss(x, y, logit_scale=s), (*towers(3), scale)
    )


@pytest.mark.parametrize("bias", [-10.0, torch.tensor([-10.0])])
def test_bias_cancels_and_its_gradient_is_exactly_zero(bias):
    images, texts = towers()
    if isinstance(bias, torch.Tensor):
        bias.requires_grad_()
    loss = CLIPLoss()(images, texts, 8.0, bias)
    assert torch.equal(loss, clip_loss(images, texts, logit_scale=8.0))
    torch.testing.assert_close(loss, _clip_eager(images, texts, logit_scale=8.0, logit_bias=bias))
    loss.backward()
    if isinstance(bias, torch.Tensor):
        assert torch.equal(bias.grad, torch.zeros(1))


def test_one_pair_has_no_negative_so_loss_and_gradient_are_zero():
    images, texts = towers(1)
    scale = torch.tensor(14.0, requires_grad=True)
    loss = clip_loss(images, texts, logit_scale=scale)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (images, texts, scale)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_known_values_and_their_digits(scale):
    basis = torch.eye(8, dtype=torch.float64)
    expected = math.log1p(7 * math.exp(-scale))
    loss = clip_loss(basis, basis, logit_scale=scale)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert clip_loss(-basis, basis, logit_scale=scale).item() == pytest.approx(
        math.log1p(7 * math.exp(scale)), rel=1e-12
    )
    assert clip_loss(basis, basis, logit_scale=0.0).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_half_precision_gives_a_finite_float32_loss_and_half_gradients(scale, dtype):
    images, texts = towers(16, 24, dtype=dtype)
    loss = clip_loss(images, texts, logit_scale=torch.tensor(scale, dtype=dtype))
    wide = clip_loss(images.double(), texts.double(), logit_scale=scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wide, rtol=1e-4, atol=1e-5)
    for gradient in torch.autograd.grad(loss, (images, texts)):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_autocast_rounds_positives_and_negatives_alike():
    images, texts = towers(12, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = clip_loss(images, texts, logit_scale=50.0)
        same = clip_loss(images, images, logit_scale=1000.0)
    exact = clip_loss(images, texts, logit_scale=50.0)
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)
    assert torch.autograd.grad(loss, images)[0].dtype == torch.float32
    assert same >= 0


def test_dictionary_options_and_attributes():
    images, texts = towers()
    expected = clip_loss(images, texts, logit_scale=5.0)
    for local_loss in (False, True):
        for with_grad in (False, True):
            loss = CLIPLoss(local_loss, with_grad, True, 0, 1)
            assert torch.equal(loss(images, texts, 5.0), expected)
            assert (loss.local_loss, loss.gather_with_grad) == (local_loss, with_grad)
    result = loss(images, texts, 5.0, output_dict=True)
    assert list(result) == ["contrastive_loss"]
    assert torch.equal(result["contrastive_loss"], expected)
    assert (loss.cache_labels, loss.rank, loss.world_size, loss.use_horovod) == (True, 0, 1, False)
    assert list(inspect.signature(CLIPLoss).parameters) == [
        *("local_loss", "gather_with_grad", "cache_labels"),
        *("rank", "world_size", "use_horovod"),
    ]
    assert "local_loss=True, gather_with_grad=True, rank=0, world_size=1" in str(loss)


def test_module_compiles_without_a_graph_break():
    torch.compiler.reset()
    compiled = torch.compile(CLIPLoss(), fullgraph=True)
    scale = torch.tensor(9.0, requires_grad=True)
    bias = torch.tensor(-1.0, requires_grad=True)
    leaves = (*towers(7, dtype=torch.float32), scale, bias)
    actual, expected = (function(*leaves) for function in (compiled, CLIPLoss()))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in (actual, expected)))


@pytest.mark.parametrize(
    ("images", "texts", "error", "message"),
    [
        (MATRIX, torch.ones(3, 3), ValueError, r"text_features must have the shape of .*\(3, 3\)"),
        (MATRIX[0], MATRIX, ValueError, r"image_features must be a matrix .* got shape \(3,\)"),
        (torch.ones(0, 3), MATRIX[:0], ValueError, r"image_features must have at least one row"),
        (MATRIX, MATRIX.int(), TypeError, r"text_features must be floating .* got torch.int32"),
        (MATRIX, MATRIX.to("meta"), ValueError, r"text_features must be on .* got meta"),
    ],
)
def test_errors_name_the_features(images, texts, error, message):
    with pytest.raises(error, match="^" + message):
        clip_loss(images, texts, logit_scale=1.0)
    with pytest.raises(error, match="^" + message):
        CLIPLoss()(images, texts, 1.0)


@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (math.inf, ValueError, "must be finite, got inf"),
        (torch.tensor(math.nan), ValueError, "must be finite, got nan"),
        ("1", TypeError, "must be a number, got str"),
        (torch.ones(2), ValueError, r"must have one element, got shape \(2,\)"),
        (torch.tensor(1), TypeError, r"must be floating point .* got torch.int64"),
        (torch.ones(1, device="meta"), ValueError, r"must be on the device of .* got meta"),
    ],
)
def test_errors_name_the_scalars(name, value, error, message):
    given = {"logit_scale": 1.0, name: value}
    for function in (clip_loss, CLIPLoss()):
        with pytest.raises(error, match=f"^{name} {message}"):
            function(MATRIX, MATRIX, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_horovod": True}, "use_horovod must be False, got True"),
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to world_size - 1, got 2 of 2"),
        ({"rank": -1}, "rank must be from 0"),
    ],
)
def test_errors_name_the_ranks(options, message):
    with pytest.raises(ValueError, match="^" + message):
        CLIPLoss(**options)


def test_ranks_that_do_not_exist_are_an_error():
    with pytest.raises(ValueError, match=r"^world_size must be that of .*distributed \(1\), got 2"):
        CLIPLoss(rank=0, world_size=2)(MATRIX, MATRIX, 1.0)
    with pytest.raises(ValueError, match=r"^rank must be that of torch.distributed \(0\), got 1"):
        CLIPLoss(rank=1, world_size=2)(MATRIX, MATRIX, 1.0)
