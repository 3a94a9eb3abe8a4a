"""The recipes: crops, moved boxes, pixels that follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdetr.data.images import resize
from rfdetr.data.transforms import (
    EvalTransform,
    TrainTransform,
    draw_crop,
    jitter_color,
    move_boxes,
)
from rfdetr.geometry.polygons import Crop, Segmentation

sides = st.integers(1, 3000)


def boxes_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


@pytest.mark.parametrize(
    ("box", "crop", "expected"),
    [
        ([10, 20, 30, 60], Crop(0, 0, 100, 200), [0.2, 0.2, 0.2, 0.2]),
        ([10, 20, 30, 60], Crop(0, 0, 100, 200, flipped=True), [0.8, 0.2, 0.2, 0.2]),
        ([10, 20, 30, 60], Crop(20, 40, 120, 140), [0.05, 0.1, 0.1, 0.2]),
        ([0, 0, 100, 100], Crop(25, 25, 75, 75, flipped=True), [0.5, 0.5, 1, 1]),
        ([10, 10, 10.5, 10.5], Crop(0, 0, 100, 100), [0.1025, 0.1025, 0.005, 0.005]),
    ],
)
def test_boxes_move_with_the_crop(box: list[float], crop: Crop, expected: list[float]) -> None:
    moved, kept = move_boxes(boxes_of(box), crop)
    assert kept.tolist() == [True] and moved.dtype == np.float32
    np.testing.assert_allclose(moved[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "box", [[0, 0, 10, 10], [5, 30, 20.5, 40], [30, 50, 40, 60], [200, 30, 300, 40]]
)
def test_boxes_that_do_not_show_a_pixel_are_dropped(box: list[float]) -> None:
    moved, kept = move_boxes(boxes_of(box), Crop(20, 20, 50, 50))
    assert moved.shape == (0, 4) and kept.tolist() == [False]


def test_no_boxes_keep_their_shape() -> None:
    moved, kept = move_boxes(boxes_of(), Crop(0, 0, 5, 5, flipped=True))
    assert moved.shape == (0, 4) and kept.shape == (0,)


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.integers(0, 2**32))
def test_crops_lie_in_the_image_and_have_the_published_size(
    height: int, width: int, seed: int
) -> None:
    crop = draw_crop(height, width, np.random.default_rng(seed))
    assert 0 <= crop.left < crop.right <= width and 0 <= crop.top < crop.bottom <= height
    if (crop.bottom - crop.top, crop.right - crop.left) != (height, width):
        short = min(height, width)
        for side in (crop.bottom - crop.top, crop.right - crop.left):
            assert short * 384 / 600 - 2 <= side <= short * 600 / 400 + 2


def test_a_seed_draws_the_crops_it_always_drew() -> None:
    """So that a run can be repeated by another version."""
    drawn = [tuple(draw_crop(480, 640, np.random.default_rng(seed))) for seed in range(5)]
    assert drawn == [
        (0, 0, 640, 480, False),
        (1, 14, 632, 478, False),
        (0, 0, 640, 480, True),
        (0, 0, 640, 480, True),
        (145, 4, 466, 480, False),
    ]
    assert draw_crop(100, 37, np.random.default_rng(5)) == (6, 40, 37, 77, False)


def test_the_odds_of_the_recipe() -> None:
    crops = [draw_crop(480, 640, np.random.default_rng(seed)) for seed in range(2000)]
    assert abs(sum(crop.flipped for crop in crops) / 2000 - 0.5) < 0.05
    whole = sum(crop[:4] == (0, 0, 640, 480) for crop in crops) / 2000
    assert 0.45 < whole < 0.57  # half, and a few crops that are the whole image


@pytest.mark.parametrize("seed", range(12))
def test_pixels_follow_boxes(seed: int) -> None:
    """A white rectangle on black stays under its box, through flip, crop and resize."""
    image = np.zeros((240, 320, 3), np.uint8)
    image[100:150, 140:220] = 255
    shown = TrainTransform(96)(image, boxes_of([140, 100, 220, 150]), np.random.default_rng(seed))
    assert shown.image.shape == (3, 96, 96) and shown.image.dtype == torch.uint8
    rows, columns = np.nonzero(shown.image[0].numpy() > 127)
    cx, cy, w, h = shown.boxes_cxcywh[0] * 96
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(edges, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], atol=1)


def test_the_evaluation_transform_is_the_one_resize_and_all_boxes() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), np.uint8)
    shown = EvalTransform(32)(image, boxes_of([7, 5, 21, 25], [0, 0, 0.2, 0.2]), rng)
    assert torch.equal(shown.image, resize(image, (32, 32)))
    np.testing.assert_allclose(shown.boxes_cxcywh[0], [0.2, 0.3, 0.2, 0.4], atol=1e-6)
    assert shown.kept.all()
    wide = EvalTransform(32)(image, boxes_of([7, 5, 21, 25], [0, 0, 0.2, 0.2]), rng, size=(16, 48))
    assert torch.equal(wide.image, resize(image, (16, 48)))
    assert np.array_equal(wide.boxes_cxcywh, shown.boxes_cxcywh)  # shares of the image


def test_jitter_is_brightness_contrast_and_saturation() -> None:
    image = torch.randint(60, 180, (3, 8, 9), dtype=torch.uint8)
    brightness, contrast, saturation = np.random.default_rng(3).uniform(0.8, 1.2, 3)
    x = image.double()
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.double).view(3, 1, 1)
    gray = (x * luma).sum(0)
    mean = gray[::4].mean()
    expected = brightness * (
        contrast * (saturation * x + (1 - saturation) * gray) + (1 - contrast) * mean
    )
    jittered = jitter_color(image, 0.2, np.random.default_rng(3))
    assert jittered.dtype == torch.uint8
    assert (jittered.double() - expected).abs().max() <= 0.501


def test_without_jitter_colours_stay() -> None:
    image = np.full((40, 40, 3), (10, 200, 90), np.uint8)
    plain = TrainTransform(16)(image, boxes_of(), np.random.default_rng(1)).image
    assert (plain == torch.tensor([10, 200, 90], dtype=torch.uint8).view(3, 1, 1)).all()
    assert not torch.equal(
        TrainTransform(16, color_jitter=0.3)(image, boxes_of(), np.random.default_rng(1)).image,
        plain,
    )


def corner_piece() -> Segmentation:
    """An L whose box is 60 x 60: a bar of 10 pixels down its left side and one along its bottom."""
    points = [[20, 20], [30, 20], [30, 70], [80, 70], [80, 80], [20, 80]]
    return Segmentation((np.array(points, np.float32),), b"", 100, 100)


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (Crop(0, 0, 100, 100), [20, 20, 80, 80]),
        (Crop(0, 0, 100, 60), [20, 20, 30, 60]),  # of the lower bar nothing shows
        (Crop(50, 0, 100, 100), [50, 70, 80, 80]),
        (Crop(25, 30, 60, 75), [25, 30, 60, 75]),
        (Crop(40, 30, 90, 60), None),  # inside the box, but none of the object
        (Crop(29, 0, 90, 60), [29, 20, 30, 60]),  # one pixel
        (Crop(40, 0, 90, 71), [40, 70, 80, 71]),
    ],
)
def test_a_cropped_box_follows_what_shows_of_the_outline(
    crop: Crop, expected: list[float] | None
) -> None:
    moved, kept = move_boxes(boxes_of([20, 20, 80, 80]), crop, [corner_piece()])
    assert kept.tolist() == [expected is not None]
    if expected is not None:
        side = np.array([crop.right - crop.left, crop.bottom - crop.top] * 2)
        centre, half = moved[:, :2], moved[:, 2:] / 2
        corners = np.concatenate((centre - half, centre + half), axis=1) * side
        corners += [crop.left, crop.top, crop.left, crop.top]
        np.testing.assert_allclose(corners, [expected], atol=1e-4)


def test_remains_of_less_than_a_pixel_go_but_a_tiny_whole_object_stays() -> None:
    sliver = Segmentation(
        (np.array([[0, 0], [20.5, 0], [20.5, 40], [0, 40]], np.float32),), b"", 50, 50
    )
    tiny = Segmentation((np.array([[30, 30], [30.5, 30], [30.5, 30.5]], np.float32),), b"", 50, 50)
    boxes = boxes_of([0, 0, 20.5, 40], [30, 30, 30.5, 30.5])
    assert move_boxes(boxes, Crop(20, 0, 50, 50), [sliver, tiny])[1].tolist() == [False, True]


def test_objects_without_an_outline_are_cropped_by_their_box() -> None:
    boxes = boxes_of([20, 20, 80, 80], [20, 20, 80, 80])
    moved, kept = move_boxes(boxes, Crop(0, 0, 100, 60), [None, corner_piece()])
    assert kept.all() and moved[0, 2] == pytest.approx(0.6) and moved[1, 2] == pytest.approx(0.1)
