"""Value and gradient of open_clip's `ClipLoss` and of pytorch-metric-learning's `SupConLoss`.

Each where it is installed. open_clip needs torchvision to be imported; its losses do not, so
their file is loaded alone.
"""

from __future__ import annotations

import importlib.util
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import views
from distributed_clip import open_clip_loss
from torch import Tensor

from sslfast.losses import CLIPLoss, SupConLoss


def unit_leaves(*shape: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(F.normalize(view).to(dtype).requires_grad_() for view in views(*shape))


@pytest.mark.skipif(open_clip_loss() is None, reason="open_clip_torch is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_pairs", [1, 2, 17, 128])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_open_clip(scale, num_pairs, dtype):
    for options in product((False, True), repeat=3):
        ours, theirs = CLIPLoss(*options), open_clip_loss()(*options)
        rounding = 8 * torch.finfo(dtype).eps * scale
        leaves = (
            *unit_leaves(num_pairs, 24, dtype=dtype),
            torch.tensor(scale, dtype=dtype, requires_grad=True),
            torch.tensor(-3.0, dtype=dtype, requires_grad=True),
        )
        actual, expected = ours(*leaves), theirs(*leaves)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)
        gradients = (torch.autograd.grad(loss, leaves) for loss in (actual, expected))
        atol = rounding * max(1, scale / num_pairs)
        torch.testing.assert_close(*gradients, rtol=rounding, atol=atol)
        assert ours(*leaves, output_dict=True).keys() == theirs(*leaves, output_dict=True).keys()


@pytest.mark.skipif(open_clip_loss() is None, reason="open_clip_torch is not installed")
def test_open_clip_attributes():
    ours, theirs = CLIPLoss(world_size=1), open_clip_loss()()
    for name in ("local_loss", "gather_with_grad", "cache_labels", "world_size", "use_horovod"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.state_dict() == theirs.state_dict() == {}


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("num_classes", [3, 12, 100])
def test_metric_learning_averages_anchors_with_positives(num_classes, temperature):
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        pytest.skip("pytorch-metric-learning is not installed")
    from pytorch_metric_learning.losses import SupConLoss as TheirLoss

    rows, _ = unit_leaves(24, 16, dtype=torch.float64)
    labels = torch.arange(24) % num_classes
    labels[1] = labels[2]
    ours = SupConLoss(temperature, base_temperature=temperature, only_with_positives=True)
    actual, expected = ours(rows[:, None], labels), TheirLoss(temperature)(rows, labels)
    torch.testing.assert_close(actual, expected)
    ours_gradient, theirs_gradient = (
        torch.autograd.grad(loss, rows)[0] for loss in (actual, expected)
    )
    # Theirs normalises inside, so its gradient has no radial part.
    radial = (ours_gradient * rows).sum(1, keepdim=True) * rows
    torch.testing.assert_close(ours_gradient - radial, theirs_gradient)
