"""Images as people have them: more than 8 bits, transparent, turned, and what is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslfast.data import ViewRecipe, read_images
from sslfast.data.manifest import MANIFEST

image_module = pytest.importorskip("PIL.Image")

SIDE = 32
RAMP = np.linspace(0, 65535, SIDE * SIDE).round().reshape(SIDE, SIDE)


def saved(root: Path, image: Any, name: str = "a.png", **options: Any) -> Path:
    folder = root / "train" / "class"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)
    return root


def read(root: Path, channels: int = 1) -> torch.Tensor:
    return read_images(root, "train", ViewRecipe(channels=channels)).images[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_cut_off(tmp_path: Path, channels: int) -> None:
    root = saved(tmp_path, image_module.fromarray(RAMP.astype(np.uint16)))
    with image_module.open(root / "train" / "class" / "a.png") as image:
        assert image.mode.startswith("I")
    expected = torch.from_numpy(np.rint(RAMP / 257).astype(np.uint8))
    assert torch.equal(read(root, channels), expected.expand(channels, SIDE, SIDE))


def test_32_bits_within_16_are_scaled_and_beyond_are_refused(tmp_path: Path) -> None:
    # No format that is read here stores mode I; Pillow 9 and older opens 16-bit files in it.
    from sslfast.data.folder import _eight_bits

    image = image_module.fromarray(RAMP.astype(np.int32))
    assert image.mode == "I"
    levels = np.asarray(_eight_bits(image, image_module))
    assert np.array_equal(levels, np.rint(RAMP / 257).astype(np.uint8))
    for wrong in (2 * RAMP, -RAMP):
        with pytest.raises(ValueError, match="levels must lie between 0 and 65535"):
            _eight_bits(image_module.fromarray(wrong.astype(np.int32)), image_module)
    with pytest.raises(ValueError, match="floating-point pixels"):
        _eight_bits(image_module.fromarray(RAMP.astype(np.float32)), image_module)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "CMYK", "YCbCr"])
def test_8_bits_are_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = image_module.fromarray(pixels).convert(mode)
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    root = saved(tmp_path, image, name)
    with image_module.open(root / "train" / "class" / name) as again:
        expected = np.asarray(again.convert("L"))
    assert np.array_equal(read(root)[0].numpy(), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_black(tmp_path: Path, mode: str) -> None:
    pixels = np.full((SIDE, SIDE, 4), 255, dtype=np.uint8)
    pixels[: SIDE // 2, :, 3] = 0  # white, hidden
    image = image_module.fromarray(pixels, "RGBA")
    options = {}
    if mode == "P":
        image = image_module.fromarray(pixels[..., 3], "L").convert("P")
        options["transparency"] = 0
    root = saved(tmp_path, image.convert(mode), **options)
    levels = read(root)[0]
    assert not levels[: SIDE // 2].any()
    assert (levels[SIDE // 2 :] == 255).all()


def test_a_picture_stands_upright(tmp_path: Path) -> None:
    pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels[:, : SIDE // 2] = 255
    image = image_module.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    levels = read(saved(tmp_path, image, exif=exif))[0]
    assert (levels[: SIDE // 2] > 200).all()
    assert (levels[SIDE // 2 :] < 50).all()


def test_what_is_no_image_is_left_out_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = saved(tmp_path, image_module.fromarray(RAMP.astype(np.uint16)))
    folder = root / "train" / "class"
    (folder / "._a.png").write_bytes(b"resource fork")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.png").mkdir()
    assert len(read_images(root, "train", ViewRecipe())) == 1
    monkeypatch.setattr(image_module, "MAX_IMAGE_PIXELS", SIDE)
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded as an image: .*bomb"):
        read(root)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '{"files": {"a": "b"}}', "no JSON", '{"recipe_sha256": 1}', "null"]
)
def test_a_manifest_of_somebody_else_is_none_of_ours(tmp_path: Path, content: str) -> None:
    root = saved(tmp_path, image_module.fromarray(RAMP.astype(np.uint16)))
    (root / MANIFEST).write_text(content)
    assert len(read_images(root, "train", ViewRecipe())) == 1


def test_nobody_is_told_to_delete_a_folder(tmp_path: Path) -> None:
    root = saved(tmp_path, image_module.fromarray(RAMP.astype(np.uint16)))
    for files in ({}, {"train/class/a.png": "0"}, {"train/class/b.png": "0"}):
        from sslfast.data.manifest import write_manifest

        write_manifest(root, {}, "hash", files)
        with pytest.raises(ValueError, match="manifest") as refusal:
            read(root)
        assert "; delete " not in str(refusal.value)
        text = (root / MANIFEST).read_text()
        (root / MANIFEST).write_text(text[: len(text) // 2 + 40])
        if '"files_sha256"' in (root / MANIFEST).read_text():
            with pytest.raises(ValueError, match="damaged manifest of sslfast") as refusal:
                read(root)
            assert "; delete " not in str(refusal.value)
