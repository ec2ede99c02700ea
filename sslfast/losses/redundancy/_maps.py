"""A crop as VICRegL sees it: a pooled embedding, and features with positions at every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_floating, check_rows
from sslfast.losses.redundancy._variance_covariance import check_batch

# What lightly passes for a crop: pooled embeddings (N, D) and feature maps (N, H, W, C).
Features = tuple[Tensor, Tensor]


class Crop(NamedTuple):
    """One crop of N images.

    Args:
        embedding: (N, D).
        features: (N, H, W, C), or (N, P, C) once flattened.
        grid: (N, H, W, 2) position of every place in the image; or (N, P, 2).
    """

    embedding: Tensor
    features: Tensor
    grid: Tensor

    def flat(self) -> Crop:
        """With P = H W places in a row, positions in floating point."""
        grid = self.grid if self.grid.is_floating_point() else self.grid.double()
        return Crop(self.embedding, self.features.flatten(1, 2), grid.flatten(1, 2))


class CropNames(NamedTuple):
    """What error messages call the tensors of a crop."""

    embedding: str
    features: str
    grid: str


def unstack(kind: str, *given: Tensor | None) -> tuple[list[Crop], list[CropNames]]:
    """Crops from stacks (N, V, D), (N, V, H, W, C) and (N, V, H, W, 2), without a copy.

    Without any stack there are no crops.

    Raises:
        TypeError: one of them is not a tensor.
        ValueError: only some are given, a stack has another number of dimensions, or the numbers
            of crops V differ.
    """
    names = [f"{kind}_{part}" for part in ("embeddings", "maps", "grids")]
    stacks = [stack for stack in given if stack is not None]
    if not stacks:
        return [], []
    if len(stacks) < len(names):
        raise ValueError(f"{', '.join(names)} must be given together, got {len(stacks)} of them")
    shapes = ("(N, V, D)", "(N, V, H, W, C)", "(N, V, H, W, 2)")
    for name, stack, shape, ndim in zip(names, stacks, shapes, (3, 5, 5), strict=True):
        if not isinstance(stack, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(stack).__name__}")
        if stack.ndim != ndim or stack.shape[1] != stacks[0].shape[1]:
            raise ValueError(
                f"{name} must have shape {shape}, with the V = {stacks[0].shape[1]} crops of "
                f"{names[0]}, got shape {tuple(stack.shape)}"
            )
    crops = [Crop(*parts) for parts in zip(*(stack.unbind(1) for stack in stacks), strict=True)]
    return crops, [
        CropNames(*(f"{name}[:, {index}]" for name in names)) for index in range(len(crops))
    ]


def crops_of(
    kind: str, features: Sequence[Features], grids: Sequence[Tensor]
) -> tuple[list[Crop], list[CropNames]]:
    """Crops from lightly's arguments.

    Raises:
        ValueError: there are not as many grids as features.
    """
    name = f"{kind}_view_features"
    if len(features) != len(grids):
        raise ValueError(
            f"{kind}_view_grids must be as many as {name} ({len(features)}), got {len(grids)}"
        )
    crops = [Crop(*pair, grid) for pair, grid in zip(features, grids, strict=True)]
    return crops, [
        CropNames(f"{name}[{i}][0]", f"{name}[{i}][1]", f"{kind}_view_grids[{i}]")
        for i in range(len(crops))
    ]


def check_crops(
    crops: Sequence[Crop], names: Sequence[CropNames], num_global: int, gather_distributed: bool
) -> None:
    """Crops of the same images, in one feature space and on one device, the large ones first.

    Raises:
        TypeError: an embedding or feature map is not a floating tensor, or a grid no tensor of
            numbers.
        ValueError: there is no pair of crops or of images, shapes or devices differ, or a tensor
            is empty.
    """
    if num_global == 0 or len(crops) < 2:
        raise ValueError(
            "there must be a large crop and another crop to compare it with, "
            f"got {num_global} large of {len(crops)}"
        )
    for crop, name in zip(crops, names, strict=True):
        check_rows(name.embedding, crop.embedding, "(N, D)")
        check_floating(name.features, crop.features)
        if not isinstance(crop.grid, Tensor):
            raise TypeError(f"{name.grid} must be a tensor, got {type(crop.grid).__name__}")
        if crop.grid.is_complex() or crop.grid.dtype == torch.bool:
            raise TypeError(f"{name.grid} must hold numbers, got {crop.grid.dtype}")
        num_rows = len(crops[0].embedding)
        _check_shape(name.embedding, crop.embedding, crops[0].embedding.shape)
        channels = crops[0].features.shape[-1] if crops[0].features.ndim else 0
        places = crop.features.shape[1:3]
        if crop.features.ndim != 4 or crop.features.numel() == 0:
            raise ValueError(
                f"{name.features} must have shape (N, H, W, C) with at least one place and "
                f"feature, got shape {tuple(crop.features.shape)}"
            )
        _check_shape(name.features, crop.features, (num_rows, *places, channels))
        _check_shape(name.grid, crop.grid, (num_rows, *places, 2))
        for part in name._fields:
            tensor: Tensor = getattr(crop, part)
            check_device(getattr(name, part), tensor, names[0].embedding, crops[0].embedding)
    check_batch(names[0].embedding, crops[0].embedding, gather_distributed)


def _check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
