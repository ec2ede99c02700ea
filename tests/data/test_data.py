"""The rendered digits, their manifest, and the views drawn from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sslfast.data import (
    DigitsRecipe,
    ImageSet,
    TorchPipeline,
    ViewRecipe,
    digits,
    make_digits,
    read_images,
)
from sslfast.data.augment import affine_maps, draw_view, to_float
from sslfast.data.manifest import MANIFEST, hash_file_list, sha256
from sslfast.data.recipes import view_recipe_from_dict

pytest.importorskip("PIL")
pytest.importorskip("sklearn")

RECIPE = DigitsRecipe(renderings=1)


@pytest.fixture(autouse=True)
def _few_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty real digits instead of 1797: the same code in a tenth of a second."""
    pixels, labels = digits.load_sources()
    monkeypatch.setattr(digits, "load_sources", lambda: (pixels[:60], labels[:60]))


def _manifest(root: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((root / MANIFEST).read_text())
    return content


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    assert make_digits(tmp_path / "a", RECIPE)
    assert make_digits(tmp_path / "b", RECIPE)
    assert make_digits(tmp_path / "c", replace(RECIPE, seed=1))
    first, again, other = (_manifest(tmp_path / name) for name in "abc")
    assert first == again
    assert first["files_sha256"] != other["files_sha256"]
    assert first["recipe_sha256"] != other["recipe_sha256"]


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    make_digits(tmp_path / "a", RECIPE)
    root, manifest = tmp_path / "a", _manifest(tmp_path / "a")
    files = {p.relative_to(root).as_posix(): sha256(p.read_bytes()) for p in root.rglob("*.jpg")}
    assert len(files) == 60
    assert manifest["files"] == files
    assert manifest["files_sha256"] == hash_file_list(files)


def test_no_handwriting_is_in_both_splits(tmp_path: Path) -> None:
    make_digits(tmp_path / "a", replace(RECIPE, renderings=2))
    sources = {
        split: {path.name.split("-")[0] for path in (tmp_path / "a" / split).rglob("*.jpg")}
        for split in ("train", "held_out")
    }
    assert not sources["train"] & sources["held_out"]
    assert len(sources["train"] | sources["held_out"]) == 60
    labels = digits.load_sources()[1]
    split = digits.split_sources(labels, RECIPE)
    assert len(split["held_out"]) == pytest.approx(0.2 * 60, abs=5)
    assert set(labels[split["held_out"]]) == set(labels[split["train"]]) == set(range(10))


def test_a_second_call_writes_nothing_and_another_recipe_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "a"
    assert make_digits(root, RECIPE)
    before = (root / MANIFEST).stat().st_mtime_ns
    assert not make_digits(root, RECIPE)
    assert (root / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="not the data set of this recipe"):
        make_digits(root, replace(RECIPE, seed=9))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="no manifest"):
        make_digits(tmp_path / "mine", RECIPE)


def test_an_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, whole = 0, digits.render

    def interrupted(*arguments: object) -> object:
        nonlocal drawn
        drawn += 1
        if drawn == 20:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(digits, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "a", RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_images_come_back_as_grey_or_colour_and_resized(tmp_path: Path) -> None:
    make_digits(tmp_path / "a", RECIPE)
    grey = read_images(tmp_path / "a", "held_out", ViewRecipe())
    colour = read_images(tmp_path / "a", "held_out", ViewRecipe(channels=3, image_size=16))
    assert grey.images.shape[1:] == (1, 32, 32)
    assert grey.images.dtype == torch.uint8
    assert colour.images.shape[1:] == (3, 16, 16)
    assert grey.classes == tuple("0123456789")
    assert torch.equal(grey.labels, colour.labels)
    assert grey.images.amax() > 100
    assert grey.images.float().mean() < 80


@pytest.mark.parametrize("damage", ["change", "delete", "add"])
def test_a_set_that_differs_from_its_manifest_names_the_file(tmp_path: Path, damage: str) -> None:
    make_digits(tmp_path / "a", RECIPE)
    path = sorted((tmp_path / "a" / "train").rglob("*.jpg"))[3]
    if damage == "change":
        other = sorted((tmp_path / "a" / "train").rglob("*.jpg"))[4]
        path.write_bytes(other.read_bytes())
    elif damage == "delete":
        path.unlink()
    else:
        extra = path.with_name("9999-00.jpg")
        extra.write_bytes(path.read_bytes())
        path = extra
    with pytest.raises(ValueError, match=path.name):
        read_images(tmp_path / "a", "train", ViewRecipe())


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    make_digits(tmp_path / "a", RECIPE)
    manifest = _manifest(tmp_path / "a")
    manifest["files_sha256"] = "0" * 64
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="does not match its files_sha256"):
        read_images(tmp_path / "a", "train", ViewRecipe())
    (tmp_path / "a" / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="not a manifest"):
        read_images(tmp_path / "a", "train", ViewRecipe())


def test_folders_without_images_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train is not a folder"):
        read_images(tmp_path, "train", ViewRecipe())
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        read_images(tmp_path, "train", ViewRecipe())
    (tmp_path / "train" / "cat" / "broken.jpg").write_bytes(b"not a JPEG")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be decoded"):
        read_images(tmp_path, "train", ViewRecipe())


def _images(n: int = 40) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 10, tuple("0123456789"), "digest")


def test_a_recipe_without_change_gives_the_image_back() -> None:
    images = _images().images
    still = ViewRecipe(crop_scale=(1, 1), crop_ratio=(1, 1), degrees=0.0, shear=0.0, brightness=0.0)
    view = draw_view(images, still, torch.Generator().manual_seed(0))
    torch.testing.assert_close(view, to_float(images), atol=1e-4, rtol=0)


def test_maps_crop_and_rotate_as_the_recipe_says() -> None:
    recipe = ViewRecipe(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0), degrees=0.0, shear=0.0)
    maps = affine_maps(500, recipe, torch.Generator().manual_seed(0))
    width, height = maps[:, 0, 0], maps[:, 1, 1]
    area = width * height
    assert 0.25 <= area.min() < 0.27
    assert 0.48 < area.max() <= 0.5 + 1e-6
    assert (maps[:, 0, 2].abs() <= (1 - width).abs() + 1e-6).all()
    still = ViewRecipe(crop_scale=(1, 1), crop_ratio=(1, 1), degrees=30.0, shear=0.0)
    turned = affine_maps(500, still, torch.Generator().manual_seed(0))
    angle = torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert 28 < angle.max() <= 30.001
    torch.testing.assert_close(torch.linalg.det(turned[:, :, :2]), torch.ones(500))


def test_every_image_is_seen_once_an_epoch_in_a_new_order() -> None:
    pipeline = TorchPipeline(_images(), ViewRecipe(), batch_size=8, seed=0)
    epochs = [torch.cat([pipeline.next_indices() for _ in range(5)]) for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(40))
    assert not torch.equal(*epochs)


def test_a_restored_pipeline_draws_the_same_views() -> None:
    pipeline = TorchPipeline(_images(), ViewRecipe(), batch_size=16, seed=3)
    for _ in range(3):
        pipeline.next_views()
    state = pipeline.state_dict()
    expected = [pipeline.next_views() for _ in range(3)]
    other = TorchPipeline(_images(), ViewRecipe(), batch_size=16, seed=3)
    other.load_state_dict(state)
    for views in expected:
        for one, two in zip(views, other.next_views(), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(expected[0][0], expected[0][1])


def test_bad_recipes_and_batch_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size must lie between 1 and the 40"):
        TorchPipeline(_images(), ViewRecipe(), batch_size=41, seed=0)
    with pytest.raises(ValueError, match=r"ViewRecipe\.crop_scale"):
        ViewRecipe(crop_scale=(0.9, 0.2))
    with pytest.raises(ValueError, match=r"ViewRecipe\.channels must be 1 or 3, got 2"):
        ViewRecipe(channels=2)
    with pytest.raises(ValueError, match=r"DigitsRecipe\.held_out"):
        DigitsRecipe(held_out=1.0)
    with pytest.raises(ValueError, match=r"DigitsRecipe\.quality"):
        DigitsRecipe(quality=0)


def test_recipes_survive_json() -> None:
    recipe = ViewRecipe(crop_scale=(0.3, 0.9))
    assert view_recipe_from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_rendering_is_light_on_black_and_stays_inside() -> None:
    pixels, _ = digits.load_sources()
    recipe = replace(RECIPE, noise=0.0)
    for source in pixels[:20]:
        image = np.asarray(digits.render(source, recipe, np.random.default_rng(0)))
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert image.max() > 100
        assert border.max() < 128
