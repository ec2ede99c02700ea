"""What a run's images are and how its views are drawn: plain dataclasses, checked when made.

A recipe says *what*; a pipeline (``sslfast.data.pipeline``) says *how*. Whoever adds a faster
pipeline reads the same recipe and draws the same kind of views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

Range = tuple[float, float]


def _check_range(owner: str, name: str, value: Range, low: float, high: float) -> None:
    ordered = len(value) == 2 and all(map(math.isfinite, value)) and value[0] <= value[1]
    if not ordered or value[0] < low or value[1] > high:
        raise ValueError(
            f"{owner}.{name} must be (low, high) within [{low}, {high}], got {value!r}"
        )


@dataclass(frozen=True)
class DigitsRecipe:
    """How a rendered-handwriting image is drawn from an 8 x 8 source digit.

    Args:
        image_size: side of the square image in pixels, default 32.
        renderings: images drawn from each source digit, default 6.
        digit_size: side of the digit's box in pixels, drawn uniformly, default (14, 22).
        degrees: rotation to either side in degrees, drawn uniformly, default 25.
        peak: grey level of the digit's brightest stroke, drawn uniformly, default (0.6, 1).
        noise: standard deviation of the pixel noise as a share of full white, default 0.04.
        held_out: share of the *source digits* of every class kept out of training, default 0.2.
        quality: JPEG quality, default 90.
        seed: of the generator, default 0.

    The digit is light on black on purpose: textured or randomly coloured backgrounds are shared by
    both views of an image, and an encoder then learns the background instead of the handwriting.
    """

    image_size: int = 32
    renderings: int = 6
    digit_size: Range = (14.0, 22.0)
    degrees: float = 25.0
    peak: Range = (0.6, 1.0)
    noise: float = 0.04
    held_out: float = 0.2
    quality: int = 90
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise ValueError(f"DigitsRecipe.image_size must be at least 8, got {self.image_size}")
        if self.renderings < 1:
            raise ValueError(f"DigitsRecipe.renderings must be at least 1, got {self.renderings}")
        _check_range("DigitsRecipe", "digit_size", self.digit_size, 4.0, float(self.image_size))
        _check_range("DigitsRecipe", "degrees", (0.0, self.degrees), 0.0, 180.0)
        _check_range("DigitsRecipe", "peak", self.peak, 0.0, 1.0)
        _check_range("DigitsRecipe", "noise", (0.0, self.noise), 0.0, 1.0)
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"DigitsRecipe.held_out must lie in (0, 1), got {self.held_out}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"DigitsRecipe.quality must lie in [1, 100], got {self.quality}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ViewRecipe:
    """How a view is drawn from an image; every value is drawn anew per image and per view.

    Args:
        num_views: views per image, default 2.
        image_size: side of a view in pixels, default 32.
        channels: 1 (grey) or 3 (RGB), default 1.
        crop_scale: area of the random crop as a share of the image, default (0.6, 1.4); above 1 the
            view shows the whole image smaller, on black.
        crop_ratio: aspect ratio of the crop, drawn log-uniformly, default (3/4, 4/3).
        degrees: rotation to either side in degrees, default 30.
        shear: slant to either side in degrees, default 0.
        brightness: factor 1 +- brightness on the grey levels, clamped to [0, 1], default 0.6.
    """

    num_views: int = 2
    image_size: int = 32
    channels: int = 1
    crop_scale: Range = (0.6, 1.4)
    crop_ratio: Range = (3 / 4, 4 / 3)
    degrees: float = 30.0
    shear: float = 0.0
    brightness: float = 0.6

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"ViewRecipe.num_views must be at least 1, got {self.num_views}")
        if self.image_size < 1:
            raise ValueError(f"ViewRecipe.image_size must be at least 1, got {self.image_size}")
        if self.channels not in (1, 3):
            raise ValueError(f"ViewRecipe.channels must be 1 or 3, got {self.channels}")
        _check_range("ViewRecipe", "crop_scale", self.crop_scale, 1e-3, 4.0)
        _check_range("ViewRecipe", "crop_ratio", self.crop_ratio, 0.1, 10.0)
        _check_range("ViewRecipe", "degrees", (0.0, self.degrees), 0.0, 180.0)
        _check_range("ViewRecipe", "shear", (0.0, self.shear), 0.0, 80.0)
        _check_range("ViewRecipe", "brightness", (0.0, self.brightness), 0.0, 1.0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def view_recipe_from_dict(fields: Mapping[str, Any]) -> ViewRecipe:
    """Inverse of :meth:`ViewRecipe.as_dict`, also after a journey through JSON.

    Raises:
        ValueError: other fields than a recipe of this version has.
    """
    odd = sorted(fields.keys() ^ {field.name for field in dataclass_fields(ViewRecipe)})
    if odd:
        raise ValueError(f"no recipe of views of this version: see the fields {', '.join(odd)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ViewRecipe(**values)
