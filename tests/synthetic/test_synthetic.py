"""The synthetic generator: scenes whose labels are true, and COCO folders that the readers read."""

from __future__ import annotations

import itertools
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
from rfdetr.synthetic import DEMO_CLASSES, DEMO_DISTRACTORS, generate
from rfdetr.synthetic.generate import coco_annotations
from rfdetr.synthetic.scenes import MIN_VISIBLE_SHARE, PLAIN_MIN_SIDE, Scene, render_scene
from rfdetr.synthetic.shapes import (
    CLUTTER_KINDS,
    DEMO_KINDS,
    DISTRACTOR_KINDS,
    Kind,
    Rings,
    random_rings,
)

SIZE = (200, 240)


def scene_of(seed: int, plain: bool = False) -> Scene:
    kinds, distractors = list(DEMO_KINDS.values()), list(DISTRACTOR_KINDS.values())
    return render_scene(np.random.default_rng(seed), kinds, SIZE, distractors, plain)


def solid(rings: Rings) -> NDArray[np.float64]:
    """Points (n, 2) of all that is filled."""
    return np.concatenate([points for points, filled in rings if filled])


def bitmap(rings: Rings, size: tuple[int, int] = SIZE, least: int = 128) -> NDArray[np.bool_]:
    """Pixels covered by at least `least` / 255, by other means than the generator's: all of it,
    eight times as fine.
    """
    canvas = Image.new("L", (size[1] * 8, size[0] * 8))
    draw = ImageDraw.Draw(canvas)
    for points, filled in rings:
        draw.polygon([(x * 8, y * 8) for x, y in points], fill=255 * filled)
    return np.asarray(canvas.reduce(8)) >= least


def test_the_class_sets_are_disjoint() -> None:
    assert not set(DEMO_CLASSES) & set(DEMO_DISTRACTORS)
    assert len(DEMO_CLASSES) >= 5


@pytest.mark.parametrize("kinds", [DEMO_KINDS, DISTRACTOR_KINDS, CLUTTER_KINDS])
def test_every_kind_draws_an_object_of_the_size_asked_for(kinds: dict[str, Kind]) -> None:
    for name, seed in itertools.product(kinds, range(3)):
        rings = random_rings(np.random.default_rng(seed), kinds[name], 50.0)
        np.testing.assert_allclose(solid(rings).min(axis=0), 0, atol=1e-9, err_msg=name)
        assert solid(rings).max() == pytest.approx(50.0), name
        assert bitmap(rings, (52, 52)).mean() > 0.01, name


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
            left_top, right_bottom = scene.boxes_xyxy[index].reshape(2, 2)
            shown, points = bitmap(scene.rings[index]), solid(scene.rings[index])
            ys, xs = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            assert (points.min(axis=0) - 1 <= left_top).all()
            assert (left_top <= (xs[0] + 1, ys[0] + 1)).all()
            assert (points.max(axis=0) + 1 >= right_bottom).all()
            assert (right_bottom >= (xs[-1], ys[-1])).all()
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
        for index, rings in enumerate(scene.rings):
            touched = Image.fromarray(bitmap(rings, least=1)).convert("L")
            near = np.asarray(touched.filter(ImageFilter.MaxFilter(3)))  # or next to it
            assert near[scene.owner == index].all()


def test_boxes_and_areas_never_exceed_the_image_or_the_outline() -> None:
    for seed in range(40):
        scene = scene_of(seed)
        low, high = scene.boxes_xyxy[:, :2], scene.boxes_xyxy[:, 2:]
        assert (low >= 0).all() and (high <= SIZE[::-1]).all() and (high > low).all()
        assert (scene.areas <= (high - low).prod(axis=1)).all()
        for left_top, right_bottom, rings in zip(low, high, scene.rings, strict=True):
            assert (left_top >= solid(rings).min(axis=0) - 1).all()
            assert (right_bottom <= solid(rings).max(axis=0) + 1).all()


def test_boxes_shrink_to_what_is_visible_and_hidden_objects_are_left_out() -> None:
    smaller = 0
    for seed in range(30):
        scene = scene_of(seed)
        objects = zip(scene.boxes_xyxy, scene.areas, scene.rings, scene.whole, strict=True)
        for box, area, rings, whole in objects:
            inside = solid(rings).clip(0, SIZE[::-1])
            hidden = np.ptp(inside, axis=0) - (box[2:] - box[:2])
            smaller += not whole and (hidden > 3).any()
            full = bitmap(rings, (SIZE[0] * 2, SIZE[1] * 2)).sum()  # with what overhangs below
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
        scene = scene_of(seed, plain=True)
        for rings in scene.rings:
            assert np.ptp(solid(rings), axis=0).max() >= PLAIN_MIN_SIDE - 1e-6
        steps = np.abs(np.diff(scene.image.astype(np.int64), axis=1)).max(axis=2)
        assert np.median(steps) <= 1


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synthetic") / "shapes", num_images=20, seed=3)


def test_generated_folders_load_with_all_images_and_classes(shapes: Path) -> None:
    layout = find_splits(shapes)
    indexes = {split: load_index(layout, split) for split in layout.splits}
    assert {split: len(index) for split, index in indexes.items()} == dict(
        train=14, valid=3, test=3
    )
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
    with_holes = sum(isinstance(entry["segmentation"], dict) for entry in document["annotations"])
    assert several and 0 < with_holes < len(document["annotations"])


def test_outlines_are_the_pixels_that_show_the_object() -> None:
    scene = scene_of(0)
    for index, entry in enumerate(coco_annotations(scene, 0, 1)):
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


def test_the_earlier_import_path_stays() -> None:
    from rfdetr.data import synthetic as alias

    assert (alias.generate, alias.DEMO_CLASSES) == (generate, DEMO_CLASSES)
    assert alias.DEMO_DISTRACTORS == DEMO_DISTRACTORS


def test_a_set_made_through_the_earlier_path_is_known_again(shapes: Path) -> None:
    record = json.loads((shapes / "synthetic.json").read_text())
    assert record["generator"] == "rfdetr.data.synthetic"
