"""Real handwriting as a folder of JPEG files: scikit-learn's 1797 digits, rendered by a seed.

``make_digits`` writes ``train/<class>/<source>-<rendering>.jpg`` and ``held_out/...``. The split is
by *source digit*, so no handwriting is in both. Sources: Alpaydin & Kaynak, "Optical Recognition of
Handwritten Digits", UCI, 1998, as bundled with scikit-learn.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslfast._core.extras import require
from sslfast.data.manifest import read_manifest, sha256, write_manifest
from sslfast.data.recipes import DigitsRecipe

VERSION = 1
SPLITS = ("train", "held_out")


def load_sources() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 1797 source digits as uint8 ``(1797, 8, 8)`` with levels 0..255, and their classes."""
    digits = require("sklearn.datasets", "the bundled handwriting").load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return pixels, digits.target.astype(np.int64)


def split_sources(labels: NDArray[np.int64], recipe: DigitsRecipe) -> dict[str, NDArray[np.int64]]:
    """Indices of the source digits of each split, stratified by class; the two are disjoint."""
    rng = np.random.default_rng([recipe.seed, 1])
    held_out = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out.append(members[: max(1, round(recipe.held_out * len(members)))])
    held = np.sort(np.concatenate(held_out))
    return {"train": np.setdiff1d(np.arange(len(labels)), held), "held_out": held}


def recipe_hash(recipe: DigitsRecipe, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Name of the data set on every machine: source pixels, classes, parameters, version."""
    parameters = json.dumps({"version": VERSION, **recipe.as_dict()}, sort_keys=True)
    return sha256(pixels.tobytes() + labels.astype("<i8").tobytes() + parameters.encode())


def render(source: NDArray[np.uint8], recipe: DigitsRecipe, rng: np.random.Generator) -> Any:
    """One source digit ``(8, 8)`` as a grey Pillow image at random place, size and angle."""
    image_module = require("PIL.Image", "rendering digits")
    size, side = recipe.image_size, rng.uniform(*recipe.digit_size)
    angle = np.deg2rad(rng.uniform(-recipe.degrees, recipe.degrees))
    # The rotated box stays inside the image where it fits; its centre is drawn from what is left.
    reach = min(side * (abs(np.cos(angle)) + abs(np.sin(angle))), size) / 2
    centre = rng.uniform(reach, size - reach, size=2)
    step = source.shape[0] / side
    a, b = step * np.cos(angle), step * np.sin(angle)
    # Pillow maps output (x, y) to source (a x + b y + c, d x + e y + f).
    c = source.shape[1] / 2 - a * centre[0] - b * centre[1]
    f = source.shape[0] / 2 + b * centre[0] - a * centre[1]
    drawn = image_module.fromarray(source).transform(
        (size, size),
        image_module.Transform.AFFINE,
        (a, b, c, -b, a, f),
        resample=image_module.Resampling.BICUBIC,
    )
    levels = np.asarray(drawn, dtype=np.float64) * rng.uniform(*recipe.peak)
    levels += rng.normal(0.0, 255.0 * recipe.noise, size=levels.shape)
    return image_module.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


def _write_files(root: Path, recipe: DigitsRecipe) -> dict[str, str]:
    pixels, labels = load_sources()
    files: dict[str, str] = {}
    for split, sources in split_sources(labels, recipe).items():
        for label in range(int(labels.max()) + 1):
            (root / split / str(label)).mkdir(parents=True)
        for source in sources:
            rng = np.random.default_rng([recipe.seed, 2, int(source)])
            for rendering in range(recipe.renderings):
                name = f"{split}/{labels[source]}/{source:04d}-{rendering:02d}.jpg"
                render(pixels[source], recipe, rng).save(root / name, quality=recipe.quality)
                files[name] = sha256((root / name).read_bytes())
    return files


def make_digits(root: Path, recipe: DigitsRecipe | None = None) -> bool:
    """Write the data set to ``root`` unless it is there already; True if it was written.

    The files are written to a temporary folder beside ``root``, which is renamed when the manifest
    is complete: an interrupted run never leaves a half set that is taken for whole.

    Raises:
        ValueError: ``root`` exists and holds anything but the data set of this recipe.
    """
    recipe = recipe or DigitsRecipe()
    wanted = recipe_hash(recipe, *load_sources())
    if root.exists():
        manifest = read_manifest(root) if root.is_dir() else None
        found = "no manifest" if manifest is None else manifest.get("recipe_sha256")
        if found != wanted:
            raise ValueError(
                f"{root} exists but is not the data set of this recipe "
                f"(expected recipe_sha256 {wanted[:12]}, found {str(found)[:12]}); "
                "name another folder or delete it"
            )
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        files = _write_files(temporary, recipe)
        write_manifest(temporary, {"version": VERSION, **recipe.as_dict()}, wanted, files)
        temporary.chmod(0o755)
        os.rename(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True
