"""Sliced prediction: tiles, what they show of one object merged, masks, and what stays the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch
from hypothesis import given
from hypothesis import strategies as st
from supervision.detection.utils.iou_and_nms import OverlapMetric
from tests.tiny import TINY

from rfdetr import RFDETRSegMini
from rfdetr.errors import InputError
from rfdetr.geometry.rle import compress, encode_bitmaps, runs_of_part
from rfdetr.geometry.tiles import tile_grid
from rfdetr.inference.masks import compact_masks, union_mask
from rfdetr.inference.slicing import Array, Seen, Slicing, find_in_tiles, merge_tiles
from rfdetr.synthetic import generate

SIZE = (700, 900)
METHODS = ("nms iou", "nms ios", "nmm iou", "nmm ios", "ours")
CLASSES = ("heart", "key")
TILE = Slicing((256, 256), 0.25, True)  # neighbours share 64 pixels


@given(st.tuples(*[st.integers(1, 400)] * 2), st.tuples(*[st.integers(1, 300)] * 2),
       st.floats(0, 0.9))  # fmt: skip
def test_tiles_cover_the_image_and_overlap_enough(
    size: tuple[int, int], tile: tuple[int, int], overlap: float
) -> None:
    crops = tile_grid(size, tile, overlap)
    for axis, (length, side) in enumerate(zip(size, tile, strict=True)):
        spans = sorted({(crop[1 - axis], crop[3 - axis]) for crop in crops})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert {end - start for start, end in spans} == {min(side, length)}
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= min(int(side * overlap), side - 1)
    assert len(crops) == len(set(crops))


def draw_objects(seed: int) -> list[tuple[int, float, list[float]]]:
    """Label, score and box of 40 objects that hardly overlap, of 12 to 300 pixels, many of them
    across the edges of tiles.
    """
    rng = np.random.default_rng(seed)
    objects: list[tuple[int, float, list[float]]] = []
    while len(objects) < 40:
        side = np.exp(rng.uniform(np.log(12), np.log(300), 2))
        low = rng.uniform(0, 1, 2) * (np.array(SIZE[::-1]) - side)
        box = np.array([*low, *(low + side)], np.float32)
        others = np.array([other for *_, other in objects], np.float32).reshape(-1, 4)
        if len(others) == 0 or sv.box_iou_batch(box[None], others).max() < 0.2:
            objects.append((int(rng.integers(2)), float(rng.uniform(0.5, 1)), box.tolist()))
    return objects


def perfect_tiles(
    objects: list[tuple[int, float, list[float]]], rng: np.random.Generator
) -> tuple[Array, Callable[[list[Array]], list[dict[str, Any]]]]:
    """A picture that tells each pixel's place, and what finds the objects of a part of it: boxes of
    what it shows, two pixels off, with scores of their own; nothing of an object that is hardly
    in it or, in the whole picture, smaller than 80 pixels.
    """
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    picture = np.stack([x // 256 * 16 + y // 256, x % 256, y % 256], axis=2).astype(np.uint8)

    def find(parts: list[Array]) -> list[dict[str, Any]]:
        results = []
        for part in parts:
            high, *low = part[0, 0].astype(int)
            left, top = low[0] + high // 16 * 256, low[1] + high % 16 * 256
            height, width = part.shape[:2]
            rows = []
            for label, score, box in objects:
                shown = np.clip(np.array(box) - [left, top] * 2, 0, [width, height] * 2)
                sides, whole = shown[2:] - shown[:2], np.array(box[2:]) - box[:2]
                if sides.min() < 6 or (part.shape[:2] == SIZE and whole.max() < 80):
                    continue
                noisy = shown + rng.uniform(-1, 1, 4) * np.minimum(2, sides.min() / 10)
                score *= rng.uniform(0.7, 1) if (sides < whole - 1).any() else 1
                rows.append((score, label, np.clip(noisy, 0, [width, height] * 2)))
            rows.sort(key=lambda row: -row[0])
            results.append({
                "scores": torch.tensor([row[0] for row in rows]),
                "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
                "boxes": torch.tensor(np.array([row[2] for row in rows])).float().reshape(-1, 4),
            })  # fmt: skip
        return results

    return picture, find


def faults(found: sv.Detections, objects: list[tuple[int, float, list[float]]]) -> tuple[int, int]:
    """Objects without a box of IoU 0.7 and their label, and boxes too many."""
    iou = sv.box_iou_batch(np.array([box for *_, box in objects]), found.xyxy)
    iou *= np.array([label for label, *_ in objects])[:, None] == found.class_id
    hit = int((iou.max(1) >= 0.7).sum())
    return len(objects) - hit, len(found) - hit


def merged_by(method: str, seed: int) -> tuple[int, int]:
    """Faults after the tiles of a scene are merged by one of supervision's ways, or by ours."""
    objects, rng = draw_objects(seed), np.random.default_rng(seed)
    picture, find = perfect_tiles(objects, rng)
    if method == "ours":
        found = find_in_tiles(picture, TILE, find, lambda scores, _: scores >= 0, 4)
        boxes, scores, labels = (found[name].numpy() for name in ("boxes", "scores", "labels"))
        return faults(sv.Detections(boxes, None, scores, labels), objects)
    parts = []
    for crop in TILE.crops(*SIZE):
        (seen,) = find([picture[crop.top : crop.bottom, crop.left : crop.right]])
        boxes = seen["boxes"].numpy() + np.array([crop.left, crop.top] * 2)
        columns = seen["scores"].numpy(), seen["labels"].numpy()
        parts.append(sv.Detections(boxes, None, *columns))
    everything = sv.Detections.merge(parts)
    merge = everything.with_nmm if method.startswith("nmm") else everything.with_nms
    metric = OverlapMetric.IOS if method.endswith("ios") else OverlapMetric.IOU
    return faults(merge(0.5, overlap_metric=metric), objects)


def test_objects_across_tiles_are_found_once_and_whole() -> None:
    """Where suppression leaves pieces, or prefers a piece to the whole, as supervision's does."""
    counted = {m: np.sum([merged_by(m, seed) for seed in range(3)], 0) for m in METHODS}
    assert counted.pop("ours").tolist() == [0, 0]  # of 120 objects
    assert all(count.sum() > 10 for count in counted.values())


def test_a_threshold_shows_what_is_above_it_of_all_that_is_found() -> None:
    picture, _ = perfect_tiles(draw_objects(7), np.random.default_rng(7))

    def found_above(least: float) -> dict[str, Any]:
        _, find = perfect_tiles(draw_objects(7), np.random.default_rng(7))
        return find_in_tiles(picture, TILE, find, lambda scores, _: scores >= least, 4)

    everything, some = found_above(0), found_above(0.35)
    above = everything["scores"] >= 0.7
    assert 0 < above.sum() < len(above)
    assert torch.equal(everything["boxes"][above], some["boxes"][some["scores"] >= 0.7])


@pytest.fixture(scope="module")
def model() -> RFDETRSegMini:
    torch.manual_seed(0)
    return RFDETRSegMini(
        **{**TINY, "num_queries": 20, "num_select": 20, "num_classes": 2, "amp": False}
    )


def equal(one: sv.Detections, other: sv.Detections, off: float = 0) -> bool:
    masks = np.array_equal(np.asarray(one.mask), np.asarray(other.mask))
    ids = np.array_equal(one.class_id, other.class_id)
    pairs = [(one.xyxy, other.xyxy), (one.confidence, other.confidence)]
    return masks and ids and all(np.allclose(*pair, rtol=0, atol=off) for pair in pairs)


def test_images_no_larger_than_a_tile_are_predicted_as_without(model: RFDETRSegMini) -> None:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((64, 64), (40, 64), (9, 7))]
    large = rng.integers(0, 256, (130, 150, 3), np.uint8)
    plain = model.predict(small, 0.0)
    for how in (True, 64, (64, 64)):
        found = model.predict([small[0], large, *small[1:]], 0.0, slice=how)
        sliced = found.pop(1)
        assert all(map(equal, plain, found)) and not equal(sliced, model.predict(large, 0.0))
        assert (np.diff(sliced.confidence) <= 0).all() and len(sliced) > 20
        assert sliced.mask.shape == (len(sliced), 130, 150)
        streamed = [one.detections for one in model.predict_stream([large], 0.0, slice=how)]
        assert equal(streamed[0], sliced)


def test_what_tiles_show_has_its_place_in_the_image(model: RFDETRSegMini) -> None:
    """An image of four different quarters in four tiles that share nothing."""
    quarters = np.random.default_rng(1).integers(0, 256, (2, 2, 64, 64, 3), np.uint8)

    image = np.concatenate([np.concatenate(list(row), 1) for row in quarters])
    found = model.predict(image, 0.0, slice=64, slice_overlap=0, slice_whole=False)
    own = [
        sv.Detections(
            one.xyxy + np.array([x, y] * 2) * 64,
            np.pad(one.mask, ((0, 0), (64 * y, 64 - 64 * y), (64 * x, 64 - 64 * x))),
            one.confidence,
            one.class_id,
        )
        for (y, x) in itertools.product(range(2), repeat=2)
        for one in [model.predict(quarters[y, x], 0.0)]
    ]
    expected = sv.Detections.merge(own)
    expected = expected[np.argsort(-expected.confidence, kind="stable")]
    assert equal(found, expected, 1e-5)
    least = {"1": float(np.median(found.confidence[found.class_id == 1]))}
    rarer = model.predict(
        image, 0.0, slice=64, slice_overlap=0, slice_whole=False, thresholds=least
    )
    assert equal(rarer, found[(found.class_id == 0) | (found.confidence >= least["1"])])


def test_pieces_of_a_mask_are_joined_in_their_box(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((3, 8, 8), -1.0)
    logits[0, 2:6, 4:], logits[1, 2:6, :3], logits[2, 3, 3] = 1.0, 1.0, 1.0
    left, right = compact_masks(logits[:1], (32, 32)), compact_masks(logits[1:], (32, 32))
    placed = type(left).merge(
        [left.with_offset(0, 10, (50, 60)), right.with_offset(28, 10, (50, 60))]
    )
    joined = union_mask(placed, [0, 1])
    assert np.array_equal(joined.to_dense()[0], placed.to_dense()[:2].any(0))
    for number, dense in enumerate(placed.to_dense()):
        x, y = placed.offsets[number].tolist()
        lengths = runs_of_part(placed.crop(number), x, y, 50)
        encoded = compress([*lengths, 50 * 60 - sum(lengths)])
        assert [encoded] == encode_bitmaps(torch.from_numpy(dense[None]))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"slice": 8}, "slice is 8: expected 32 or more"),
        ({"slice": "640"}, "expected pixels, or"),
        ({"slice": (64,)}, "expected pixels, or"),
        ({"slice": 64, "slice_overlap": 0.95}, "slice_overlap is 0.95: expected .* from 0 to 0.9"),
        ({"slice": 64, "slice_overlap": 1.5}, "slice_overlap is 1.5: expected .* from 0 to 0.9"),
        ({"slice": 64, "slice_whole": "no"}, "slice_whole is 'no' .*: expected bool"),
    ],
)
def test_slices_that_cannot_be(model: RFDETRSegMini, how: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        model.predict(np.zeros((9, 9, 3), np.uint8), **how)


def test_memory_does_not_grow_with_the_square_of_the_tiles() -> None:
    slicing, size = Slicing((64, 64), 0.5, False), (8000, 8000)
    crops = slicing.crops(*size)  # 62,001: a table of their pairs has 60 GB
    rng = np.random.default_rng(0)
    tiles = rng.choice(len(crops), 300, replace=False)
    corners = np.array([crops[tile][:2] for tile in tiles], np.float32)
    boxes = np.concatenate((corners + 20, corners + 44), 1)
    seen = Seen(rng.random(300, np.float32), np.zeros(300, np.int64), boxes, tiles, None)
    tracemalloc.start()
    found = merge_tiles(seen, crops, size)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert len(found["scores"]) == 300


def test_evaluation_in_tiles_judges_whole_images(model: RFDETRSegMini, tmp_path: Path) -> None:
    data = generate(tmp_path / "data", 3, CLASSES, sides=(100, 140))
    plain, sliced = (model.evaluate(data, num_workers=0, slice=how) for how in (512, 64))
    own = model.evaluate(data, num_workers=0)
    for one, other in ((plain, own), (plain.masks, own.masks)):
        np.testing.assert_equal(one.overall, other.overall)
    (found,), (whole,) = sliced.found.values(), own.found.values()
    assert sliced.num_boxes == own.num_boxes and len(found.scores) > len(whole.scores)
    path = next((data / "test").glob("*.jpg"))
    predicted = model.predict(path, 0.05, slice=64)
    np.testing.assert_allclose(predicted.confidence, found.scores, atol=1e-6)


@pytest.mark.scheduled
@pytest.mark.parametrize(("name", "whole"), [("RFDETRMini", True), ("RFDETRSegMini", False)])
def test_a_hundred_megapixels_need_the_memory_of_one_batch_of_tiles(name: str, whole: bool) -> None:
    """Beside the picture itself, and what a picture of a hundredth of its pixels has needed. The
    untrained network's masks are noise: of the whole picture, one alone would be 100 MB.
    """
    script = f"""
import resource, warnings
import numpy as np, rfdetr
warnings.filterwarnings("ignore")
model = rfdetr.{name}(**{ {**TINY, "num_queries": 9, "num_select": 9, "num_classes": 2} })
rng = np.random.default_rng(0)
def peak(side):
    image = np.tile(rng.integers(0, 256, (500, 500, 3), np.uint8), (side // 500, side // 500, 1))
    (found,) = [d for _, _, d, _ in model.predict_stream([image], 0.0, slice=500, slice_whole={whole})]
    return image.nbytes, len(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, few, before = peak(1000)
large, many, after = peak(10000)
print(many, few, (after - before - large) / 2**20)
"""  # noqa: E501
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    many, few, more_mib = map(float, run.stdout.split())
    assert many > few > 0 and more_mib < 60, run.stdout
