"""Images, recipes for their views, and the pipelines that draw them."""

from __future__ import annotations

from sslfast.data.digits import DIGITS, make_digits
from sslfast.data.folder import ImageSet, read_images
from sslfast.data.pipeline import Pipeline, TorchPipeline, build_pipeline
from sslfast.data.recipes import DigitsRecipe, ViewRecipe

__all__ = [
    "DIGITS",
    "DigitsRecipe",
    "ImageSet",
    "Pipeline",
    "TorchPipeline",
    "ViewRecipe",
    "build_pipeline",
    "make_digits",
    "read_images",
]
