"""The synthetic generator: scenes that say truly what they show, and COCO folders that the data
room reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as mask_api

from rfdetr.data.layout import find_splits, load_index
from rfdetr.synthetic.generate import (
    DEMO_CLASSES,
    DEMO_DISTRACTORS,
    PRETRAIN_CLASSES,
    _annotations,
    generate,
)
from rfdetr.synthetic.kinds import ALL_KINDS, random_outline
from rfdetr.synthetic.outlines import Outline
from rfdetr.synthetic.scenes import MIN_VISIBLE_SHARE, Scene, render_scene

SIZE = (200, 240)


def scene_of(seed: int, kinds: tuple[str, ...] = DEMO_CLASSES) -> Scene:
    return render_scene(np.random.default_rng(seed), kinds, SIZE, DEMO_DISTRACTORS)


def bitmap(outline: Outline, size: tuple[int, int] = SIZE, least: int = 128) -> NDArray[np.bool_]:
    """Pixels covered by at least `least` / 255, by other means than the generator's: all of it,
    eight times as fine.
    """
    canvas = Image.new("L", (size[1] * 8, size[0] * 8))
    draw = ImageDraw.Draw(canvas)
    for ring in outline:
        draw.polygon([(x * 8, y * 8) for x, y in ring.points], fill=255 * ring.filled)
    return np.asarray(canvas.reduce(8)) >= least


def test_the_class_sets_are_disjoint_and_broad() -> None:
    assert not set(DEMO_CLASSES) & set(PRETRAIN_CLASSES)
    assert len(PRETRAIN_CLASSES) >= 60
    assert len(DEMO_CLASSES) >= 5
    assert set(DEMO_DISTRACTORS) <= set(PRETRAIN_CLASSES)


@pytest.mark.parametrize("name", ALL_KINDS)
def test_every_kind_draws_an_outline_of_the_size_asked_for(name: str) -> None:
    for seed in range(3):
        outline = random_outline(np.random.default_rng(seed), ALL_KINDS[name], 50.0)
        solid = np.concatenate([ring.points for ring in outline if ring.filled])
        np.testing.assert_allclose(solid.min(axis=0), 0, atol=1e-9)
        assert solid.max() == pytest.approx(50.0)
        assert bitmap(outline, (52, 52)).mean() > 0.01


@pytest.mark.parametrize(("character", "holes"), [("A", 1), ("8", 2), ("Z", 0), ("B", 2)])
def test_a_character_has_the_holes_it_is_known_for(character: str, holes: int) -> None:
    outline = random_outline(np.random.default_rng(0), ALL_KINDS[character], 50.0)
    assert sum(not ring.filled for ring in outline) == holes


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_scene_is_a_function_of_its_seed(seed: int) -> None:
    first, second = scene_of(seed), scene_of(seed)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
    assert first.image.shape == (*SIZE, 3) and first.image.dtype == np.uint8
    assert not np.array_equal(first.image, scene_of(seed + 1).image)


def test_boxes_of_wholly_visible_objects_fit_their_outlines_within_a_pixel() -> None:
    """Between the pixels that are at least half covered and the outline itself: a thin tip may be
    drawn or not.
    """
    checked = 0
    for seed in range(40):
        scene = scene_of(seed)
        for index in np.flatnonzero(scene.whole):
            box, shown = scene.boxes_xyxy[index], bitmap(scene.outlines[index])
            solid = np.concatenate([ring.points for ring in scene.outlines[index] if ring.filled])
            ys, xs = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            assert (solid.min(axis=0) - 1 <= box[:2]).all() and (
                box[:2] <= (xs[0] + 1, ys[0] + 1)
            ).all()
            assert (solid.max(axis=0) + 1 >= box[2:]).all() and (box[2:] >= (xs[-1], ys[-1])).all()
            checked += 1
    assert checked > 100


def test_boxes_and_areas_are_those_of_the_pixels_that_show_the_object() -> None:
    for seed in range(30):
        scene = scene_of(seed)
        assert scene.owner.shape == SIZE and scene.owner.max(initial=-1) == len(scene.labels) - 1
        for index, (box, area) in enumerate(zip(scene.boxes_xyxy, scene.areas, strict=True)):
            ys, xs = np.nonzero(scene.owner == index)
            np.testing.assert_array_equal(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert area == len(xs)


def test_a_pixel_shows_the_object_whose_outline_covers_it() -> None:
    for seed in range(10):
        scene = scene_of(seed)
        for index, outline in enumerate(scene.outlines):
            near = (
                Image.fromarray(bitmap(outline, least=1))
                .convert("L")
                .filter(ImageFilter.MaxFilter(3))
            )
            assert np.asarray(near)[
                scene.owner == index
            ].all()  # touched by the outline, or next to what is


def test_boxes_and_areas_never_exceed_the_image_or_the_outline() -> None:
    for seed in range(40):
        scene = scene_of(seed)
        boxes = scene.boxes_xyxy
        assert (
            (boxes[:, :2] >= 0).all()
            and (boxes[:, 2:] <= SIZE[::-1]).all()
            and (boxes[:, 2:] > boxes[:, :2]).all()
        )
        for box, area, outline in zip(boxes, scene.areas, scene.outlines, strict=True):
            solid = np.concatenate([ring.points for ring in outline if ring.filled])
            assert (box[:2] >= solid.min(axis=0) - 1).all() and (
                box[2:] <= solid.max(axis=0) + 1
            ).all()
            assert area <= (box[2:] - box[:2]).prod()


def test_boxes_shrink_to_what_is_visible_and_hidden_objects_are_left_out() -> None:
    smaller = 0
    for seed in range(30):
        scene = scene_of(seed)
        for box, area, outline, whole in zip(
            scene.boxes_xyxy, scene.areas, scene.outlines, scene.whole, strict=True
        ):
            solid = np.concatenate([ring.points for ring in outline if ring.filled])
            inside = solid.clip(0, SIZE[::-1])
            smaller += (
                not whole
                and ((inside.max(axis=0) - inside.min(axis=0)) - (box[2:] - box[:2]) > 3).any()
            )
            full = bitmap(
                outline, (SIZE[0] * 2, SIZE[1] * 2)
            ).sum()  # right and lower overhang included
            assert area > MIN_VISIBLE_SHARE * full * 0.8 - 8
    assert smaller > 5


def test_every_class_appears_small_and_large() -> None:
    scenes = [scene_of(seed) for seed in range(150)]
    labels = np.concatenate([scene.labels for scene in scenes])
    boxes = np.concatenate([scene.boxes_xyxy for scene in scenes])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    for label in range(len(DEMO_CLASSES)):
        assert sides[labels == label].min() < 25 and sides[labels == label].max() > 60


def test_plain_scenes_have_no_small_objects_and_no_noise() -> None:
    for seed in range(10):
        scene = render_scene(np.random.default_rng(seed), DEMO_CLASSES, SIZE, plain=True)
        for outline in scene.outlines:
            solid = np.concatenate([ring.points for ring in outline if ring.filled])
            assert np.ptp(solid, axis=0).max() >= 24 - 1e-6
        steps = np.abs(np.diff(scene.image.astype(np.int64), axis=1)).max(axis=2)
        assert np.median(steps) <= 1


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synthetic") / "shapes", num_images=20, seed=3)


def test_generated_folders_load_with_all_images_and_classes(shapes: Path) -> None:
    layout = find_splits(shapes)
    indexes = {split: load_index(layout, split) for split in layout.splits}
    assert {split: len(index) for split, index in indexes.items()} == {
        "train": 14,
        "valid": 3,
        "test": 3,
    }
    for split, index in indexes.items():
        assert index.class_names == DEMO_CLASSES, split
        width, height = Image.open(index.path(0)).size
        assert tuple(index.sizes[0]) == (height, width)
        assert 160 <= min(width, height) <= max(width, height) <= 320


def test_generation_is_reproducible_to_the_byte(shapes: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", num_images=20, seed=3)
    files = sorted(path.relative_to(shapes) for path in shapes.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (shapes / file).read_bytes() == (again / file).read_bytes(), file
    other = generate(tmp_path / "other", num_images=20, seed=4)
    assert (shapes / "train/000000.jpg").read_bytes() != (other / "train/000000.jpg").read_bytes()


def test_outlines_are_polygons_or_where_there_are_holes_run_lengths(shapes: Path) -> None:
    document = json.loads((shapes / "train/_annotations.coco.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    several = 0
    for entry in document["annotations"]:
        outline = entry["segmentation"]
        rle = mask_api.frPyObjects(outline, *sizes[entry["image_id"]])
        rle = mask_api.merge(rle) if isinstance(outline, list) else rle
        assert mask_api.area(rle) == entry["area"]
        assert mask_api.toBbox(rle).tolist() == entry["bbox"]
        several += len(outline) > 1 and isinstance(outline, list)
    with_holes = [
        entry for entry in document["annotations"] if isinstance(entry["segmentation"], dict)
    ]
    assert several and 0 < len(with_holes) < len(document["annotations"])


def test_outlines_are_the_pixels_that_show_the_object() -> None:
    scene = scene_of(0)
    for index, entry in enumerate(_annotations(scene, 0, 1)):
        rle = mask_api.frPyObjects(entry["segmentation"], *SIZE)
        shown = mask_api.decode(mask_api.merge(rle) if isinstance(rle, list) else rle)
        np.testing.assert_array_equal(shown, scene.owner == index)


def test_the_same_request_leaves_the_folder_alone(shapes: Path) -> None:
    file = shapes / "train/000000.jpg"
    before = file.stat().st_mtime_ns
    assert generate(shapes, num_images=20, seed=3) == shapes
    assert file.stat().st_mtime_ns == before


def test_nothing_is_written_into_a_folder_of_something_else(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not empty"):
        generate(tmp_path, num_images=20)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match="seed"):
        generate(shapes, num_images=20, seed=5)


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="high"):
        generate(tmp_path / "shapes", num_images=20, sides=(320, 160))
    assert list(tmp_path.iterdir()) == []


def test_unknown_kinds_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dodo"):
        generate(tmp_path / "shapes", classes=("fish", "dodo"))
