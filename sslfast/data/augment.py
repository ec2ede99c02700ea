"""Views of a batch in plain torch: one affine resampling and one brightness factor per image.

Crop, resize, rotation and shear are one affine map, so a view costs one ``grid_sample`` whatever
the recipe asks for. Every random number is drawn per image, from the generator that is passed in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sslfast.data.recipes import ViewRecipe


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(n).uniform_(low, high, generator=generator)


def affine_maps(n: int, recipe: ViewRecipe, generator: torch.Generator) -> Tensor:
    """``(n, 2, 3)`` maps from view to image coordinates in [-1, 1]: slant, rotate, then crop.

    The crop has a uniform area and a log-uniform aspect ratio, as in Inception-style random resized
    crops, but a side longer than the image's shows black beyond it instead of being clipped.
    Rotation and slant are about the centre of the crop.
    """
    area = _uniform(n, *recipe.crop_scale, generator=generator)
    low, high = (math.log(ratio) for ratio in recipe.crop_ratio)
    ratio = _uniform(n, low, high, generator=generator).exp()
    width = (area * ratio).sqrt()  # (n,) as a share of the image's side
    height = (area / ratio).sqrt()
    x = (1 - width).abs() * _uniform(n, -1.0, 1.0, generator)
    y = (1 - height).abs() * _uniform(n, -1.0, 1.0, generator)
    angle = torch.deg2rad(_uniform(n, -recipe.degrees, recipe.degrees, generator))
    slant = torch.deg2rad(_uniform(n, -recipe.shear, recipe.shear, generator)).tan()
    cos, sin = angle.cos(), angle.sin()
    # diag(width, height) @ rotation(angle) @ [[1, slant], [0, 1]], then the centre of the crop.
    rows = (
        width * cos,
        width * (slant * cos - sin),
        x,
        height * sin,
        height * (slant * sin + cos),
        y,
    )
    return torch.stack(rows, dim=1).view(n, 2, 3)


def draw_view(images: Tensor, recipe: ViewRecipe, generator: torch.Generator) -> Tensor:
    """One view of every image: uint8 ``(B, C, H, W)`` to float32 ``(B, C, S, S)`` in [0, 1]."""
    n, channels = images.shape[:2]
    shape = [n, channels, recipe.image_size, recipe.image_size]
    grid = F.affine_grid(affine_maps(n, recipe, generator), shape, align_corners=False)
    view = F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)
    factor = _uniform(n, 1 - recipe.brightness, 1 + recipe.brightness, generator) / 255
    return view.mul_(factor.view(n, 1, 1, 1)).clamp_(0.0, 1.0)


def to_float(images: Tensor) -> Tensor:
    """Images as the encoder sees them without augmentation: uint8 to float32 in [0, 1]."""
    return images.float() / 255
