"""Mixtures of the two views of a batch, for the regularisation of Mixed Barlow Twins."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_floating


def mixup(
    images0: Tensor, images1: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each image of one view with a random image of the other (Bandara et al. 2023, section 3).

    Args:
        images0: (N, ...) images of the first view; float16, bfloat16, float32 or float64.
        images1: (N, ...) images of the second view, of the same shape and dtype.
        generator: that one lam ~ Beta(1, 1), which is uniform, and a permutation are drawn from,
            on its device; default: torch's own on the CPU. Ranks that are to draw different ones
            need different seeds.

    Returns:
        mixed: (N, ...) images lam images0 + (1 - lam) images1[permutation].
        lam: 0-dim float32 tensor in [0, 1) on the device of the images.
        permutation: (N,) int64 tensor on the device of the images.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: shapes, dtypes or devices differ, or there is no image.

    Differs from others: the authors draw lam from NumPy's global state and the permutation from
    torch's.
    """
    for name, images in (("images0", images0), ("images1", images1)):
        check_floating(name, images)
        if images.ndim == 0 or len(images) == 0:
            raise ValueError(f"{name} must hold at least one image, got {tuple(images.shape)}")
    check_device("images1", images1, "images0", images0)
    if (images1.shape, images1.dtype) != (images0.shape, images0.dtype):
        raise ValueError(
            f"images1 must have shape and dtype of images0 ({tuple(images0.shape)}, "
            f"{images0.dtype}), got {tuple(images1.shape)}, {images1.dtype}"
        )
    place = generator.device if generator is not None else torch.device("cpu")
    lam = torch.rand((), generator=generator, device=place)
    permutation = torch.randperm(len(images0), generator=generator, device=place)
    lam, permutation = lam.to(images0.device), permutation.to(images0.device)
    return images1[permutation].lerp_(images0, lam.to(images0.dtype)), lam, permutation
