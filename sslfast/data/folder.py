"""A folder of class folders of images, decoded once into a uint8 tensor."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast._core.extras import require
from sslfast.data.manifest import hash_file_list, read_manifest, sha256
from sslfast.data.recipes import ViewRecipe

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one split.

    Attributes:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``, index into ``classes``; used for evaluation only.
        classes: names of the class folders, sorted.
        digest: sha256 that names the files this was read from.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)


def _decode(path: Path, data: bytes, recipe: ViewRecipe) -> Any:
    image_module = require("PIL.Image", "reading images")
    try:
        with image_module.open(BytesIO(data)) as image:
            image = image.convert("L" if recipe.channels == 1 else "RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded as an image: {error}") from error
    side = recipe.image_size
    if image.size != (side, side):
        resampling = image_module.Resampling.BICUBIC
        image = require("PIL.ImageOps", "reading images").fit(image, (side, side), resampling)
    return np.asarray(image)


def _list_images(folder: Path) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected {folder.name}/<class>/<image>.jpg")
    found = [
        (path, entry.name)
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
        for path in sorted(entry.rglob("*"))
        if path.suffix.lower() in EXTENSIONS
    ]
    if not found:
        raise ValueError(
            f"{folder} holds no images; expected {folder.name}/<class>/<image> "
            f"ending in one of {', '.join(sorted(EXTENSIONS))}"
        )
    return found


def read_images(root: Path, split: str, recipe: ViewRecipe) -> ImageSet:
    """Read and decode every image of ``root/split/<class>/``.

    Every file is read once; where ``root`` has a manifest its sha256 is compared on the way.
    Decoding once pays: see ``sslfast/data/pipeline.py``.

    Raises:
        ValueError: no such folder, no images in it, a file that cannot be decoded, or a file that
            is missing from, or differs from, the manifest. The file is named.
    """
    listed = _list_images(root / split)
    manifest = read_manifest(root)
    classes = tuple(sorted({name for _, name in listed}))
    pixels, labels, hashes = [], [], {}
    for path, name in listed:
        data = path.read_bytes()
        hashes[path.relative_to(root).as_posix()] = sha256(data)
        pixels.append(_decode(path, data, recipe))
        labels.append(classes.index(name))
    if manifest is not None:
        _verify(root, split, manifest["files"], hashes)
    stacked = torch.from_numpy(np.stack(pixels))  # (N, H, W) or (N, H, W, 3)
    images = stacked.unsqueeze(1) if recipe.channels == 1 else stacked.permute(0, 3, 1, 2)
    digest = manifest["recipe_sha256"] if manifest is not None else hash_file_list(hashes)
    return ImageSet(images.contiguous(), torch.tensor(labels), classes, digest)


def _verify(root: Path, split: str, files: dict[str, str], hashes: dict[str, str]) -> None:
    expected = {name: digest for name, digest in files.items() if name.startswith(f"{split}/")}
    for name in sorted(expected.keys() | hashes.keys()):
        if expected.get(name) != hashes.get(name):
            fault = (
                "is missing"
                if name not in hashes
                else "is not in the manifest"
                if name not in expected
                else "differs from its sha256 in the manifest"
            )
            raise ValueError(f"{root / name} {fault}; delete {root} to have it made again")
