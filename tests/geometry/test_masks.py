"""Segmentations against obvious references: pycocotools, and pixels looked at one by one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from rfdetr.geometry.polygons import Crop, Segmentation
from rfdetr.geometry.rle import compress, encode_bitmaps, rle_of_box, run_lengths, runs_of_bitmap

HEIGHT, WIDTH = 40, 60
WHOLE = Crop(0, 0, WIDTH, HEIGHT)


def blobs(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A bitmap of a few discs, some cut out of others."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    bitmap = np.zeros((height, width), bool)
    for _ in range(4):
        inside = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height)) < rng.uniform(
            2, height / 2
        )
        bitmap = bitmap & ~inside if rng.random() < 0.3 else bitmap | inside
    return bitmap


def star(seed: int) -> np.ndarray:
    """A polygon without crossings, partly outside the image."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
    radius = rng.uniform(4, 25, len(angle))
    centre = rng.uniform(0, 1, 2) * (WIDTH, HEIGHT)
    return (centre + np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None]).astype(
        np.float32
    )


def of_bitmap(bitmap: np.ndarray) -> Segmentation:
    return Segmentation((), compress(runs_of_bitmap(bitmap)), *bitmap.shape)


def of_polygons(*polygons: np.ndarray) -> Segmentation:
    return Segmentation(tuple(polygons), b"", HEIGHT, WIDTH)


def random_crop(seed: int) -> Crop:
    rng = np.random.default_rng(seed)
    left, right = np.sort(rng.choice(WIDTH + 1, 2, replace=False)).tolist()
    top, bottom = np.sort(rng.choice(HEIGHT + 1, 2, replace=False)).tolist()
    return Crop(left, top, right, bottom, bool(rng.random() < 0.5))


def covers(polygon: np.ndarray, x: float, y: float) -> bool:
    """Whether a point is inside, one edge after the other."""
    inside = False
    for (x0, y0), (x1, y1) in zip(
        polygon.tolist(), np.roll(polygon, -1, axis=0).tolist(), strict=True
    ):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x:
            inside = not inside
    return inside


def distance_to_edges(polygon: np.ndarray, x: float, y: float) -> float:
    start, step = polygon.astype(float), np.roll(polygon, -1, axis=0).astype(float) - polygon
    share = np.clip((((x, y) - start) * step).sum(1) / np.maximum((step**2).sum(1), 1e-9), 0, 1)
    return float(np.linalg.norm(start + step * share[:, None] - (x, y), axis=1).min())


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_run_lengths_are_those_of_pycocotools(seed: int, height: int, width: int) -> None:
    bitmap = np.random.default_rng(seed).random((height, width)) < 0.5
    expected = mask_api.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"]
    assert compress(runs_of_bitmap(bitmap)) == expected
    assert run_lengths(expected).tolist() == runs_of_bitmap(bitmap)


@pytest.mark.parametrize(
    "lengths", [[5], [0, 5], [0, 1, 2**40, 3, 1], [100, 40, 3, 1, 90000, 2, 4]]
)
def test_lengths_of_any_size_come_back(lengths: list[int]) -> None:
    assert run_lengths(compress(lengths)).tolist() == lengths


@pytest.mark.parametrize("damaged", [b"", b"abc\xff", b" ", b"P" * 20, b"1\n"])
def test_what_is_no_run_length_string_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        run_lengths(damaged)


def test_run_lengths_need_no_package_of_the_train_extra() -> None:
    program = """
import sys
sys.modules["hotcoco"] = None
from rfdetr.geometry.polygons import Segmentation
from rfdetr.geometry.rle import compress, run_lengths
assert run_lengths(compress([1, 3])).tolist() == [1, 3]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_batch_of_bitmaps_is_encoded_as_each_of_them() -> None:
    bitmaps = np.stack(
        [blobs(0), np.zeros((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH), bool), blobs(1)]
    )
    expected = [
        mask_api.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"] for bitmap in bitmaps
    ]
    assert encode_bitmaps(torch.from_numpy(bitmaps)) == expected
    assert encode_bitmaps(torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool)) == []


def test_run_lengths_of_a_box() -> None:
    box = mask_api.decode(
        {"size": [HEIGHT, WIDTH], "counts": rle_of_box(np.array([10.0, 5, 20, 8]), HEIGHT, WIDTH)}
    )
    assert box[5:13, 10:30].all() and box.sum() == 160


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_polygons_over_the_whole_image_are_those_of_pycocotools(seed: int) -> None:
    polygons = [star(seed), star(seed + 1)]
    parts = mask_api.frPyObjects(
        [polygon.ravel().astype(float).tolist() for polygon in polygons], HEIGHT, WIDTH
    )
    assert of_polygons(*polygons).to_rle() == mask_api.merge(parts)["counts"]


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_a_polygons_bitmap_has_the_pixels_whose_centres_it_covers(seed: int) -> None:
    """Save for those within a pixel of its border, where COCO's rule may round either way."""
    polygon, crop, size = star(seed), random_crop(seed), (24, 36)
    bitmap = of_polygons(polygon).bitmap(crop, size)
    # Image pixels to one of ours.
    scale = np.array((crop.right - crop.left, crop.bottom - crop.top)) / size[::-1]
    ours = (polygon - crop[:2]) / scale
    if crop.flipped:
        ours = ours * (-1, 1) + (size[1], 0)
    for row in range(0, size[0], 3):
        for column in range(0, size[1], 3):
            x, y = column + 0.5, row + 0.5
            if distance_to_edges(ours, x, y) > 1:
                assert bitmap[row, column] == covers(ours, x, y)


def test_several_polygons_cover_what_any_of_them_covers() -> None:
    left, right = (
        np.array([[x, 10], [x + 30, 10], [x + 30, 30], [x, 30]], np.float32) for x in (5, 20)
    )
    bitmap = of_polygons(left, right).bitmap(Crop(0, 0, 60, 60), (60, 60))
    assert bitmap[10:30, 5:50].all() and bitmap.sum() == 20 * 45


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_a_run_length_bitmap_has_the_pixels_under_the_centres(seed: int) -> None:
    bitmap, crop, size = blobs(seed), random_crop(seed), (17, 11)
    found = of_bitmap(bitmap).bitmap(crop, size)
    height, width = size
    for row in range(height):
        for column in range(width):
            across = width - 1 - column if crop.flipped else column
            x = crop.left + int((across + 0.5) * (crop.right - crop.left) / width)
            y = crop.top + int((row + 0.5) * (crop.bottom - crop.top) / height)
            assert found[row, column] == bitmap[y, x]


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_bounds_of_run_lengths_are_those_of_the_visible_pixels(seed: int) -> None:
    bitmap, crop = blobs(seed), random_crop(seed)
    shown = np.zeros_like(bitmap)
    shown[crop.top : crop.bottom, crop.left : crop.right] = True
    ys, xs = np.nonzero(bitmap & shown)
    expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None
    bounds = of_bitmap(bitmap).bounds(crop)
    assert (None if bounds is None else bounds.tolist()) == expected


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_bounds_of_a_polygon_are_those_of_the_points_it_covers_in_the_window(seed: int) -> None:
    polygon, crop = star(seed), random_crop(seed)
    xs = np.linspace(crop.left, crop.right, 60)
    ys = np.linspace(crop.top, crop.bottom, 60)
    seen = np.array([(x, y) for x in xs[1:-1] for y in ys[1:-1] if covers(polygon, x, y)])
    bounds = of_polygons(polygon).bounds(crop)
    if not len(seen):
        return  # what is narrower than the grid's step may be anywhere
    assert bounds is not None
    assert (bounds[:2] <= seen.min(0) + 1e-4).all() and (bounds[2:] >= seen.max(0) - 1e-4).all()
    low, high = np.maximum(polygon.min(0), crop[:2]), np.minimum(polygon.max(0), crop[2:4])
    assert (bounds[:2] >= low - 1e-4).all() and (bounds[2:] <= high + 1e-4).all()


def test_bounds_around_a_window_that_the_polygon_surrounds() -> None:
    polygon = np.array([[0, 0], [60, 0], [60, 40], [0, 40]], np.float32)
    assert of_polygons(polygon).bounds(Crop(10, 10, 20, 30)).tolist() == [10, 10, 20, 30]


def test_bounds_of_a_polygon_that_winds_around_the_window() -> None:
    """A horseshoe whose one end alone enters the crop: its corners and the far side are not
    bounds.
    """
    horseshoe = np.array(
        [
            [5, 18],
            [14, 18],
            [14, 22],
            [9, 22],
            [9, 36],
            [51, 36],
            [51, 4],
            [5, 4],
            [5, 0],
            [55, 0],
            [55, 40],
            [5, 40],
        ],
        np.float32,
    )
    np.testing.assert_allclose(of_polygons(horseshoe).bounds(Crop(10, 8, 50, 32)), [10, 18, 14, 22])


def test_nothing_visible_has_no_bounds_and_an_empty_bitmap() -> None:
    corner = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    bitmap = np.zeros((HEIGHT, WIDTH), bool)
    bitmap[:9, :9] = True
    for outline in (of_polygons(corner), of_bitmap(bitmap)):
        assert outline.bounds(Crop(20, 20, 40, 40)) is None
        assert not outline.bitmap(Crop(20, 20, 40, 40), (8, 8)).any()
        assert outline.bounds(WHOLE) is not None
