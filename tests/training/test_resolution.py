"""`resolution="auto"` on made-up tables of images and objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfdetr.training.resolution import Choice, choose_resolution

HOW = {"square": 384, "patch": 16, "step": 32}


def choose(sizes: list[tuple[int, int]], side: float = 0.2, **how: int) -> Choice:
    """For images of these sizes, whose objects are squares of `side` x the square input's."""
    table = np.array(sizes, np.int32).reshape(-1, 2)
    return choose_resolution(table, np.full((5, 2), side), **{**HOW, **how})


@pytest.mark.parametrize(
    ("sizes", "resolution", "told"),
    [
        ([(500, 500)], 384, "1:1 (height:width); median object 77 px"),
        ([(480, 640)] * 9, (320, 448), "3:4 (height:width); median object 76 px"),
        ([(640, 480)] * 9, (448, 320), "4:3 "),
        ([(1080, 1920)] * 3, (288, 512), "9:16 (height:width); median object 77 px"),
        ([(480, 640)] * 9 + [(9000, 10), (10, 9000)] * 2, (320, 448), "3:4 "),  # a few odd ones
        ([(480, 640)] * 5 + [(640, 480)] * 4, 384, "images are upright and wide; median"),
        ([(10, 1000)], (192, 768), "1:100 (height:width)"),  # four times as wide as high at most
        ([], 384, "1:1 (height:width)"),
    ],
)
def test_the_shape_is_the_images(
    sizes: list[tuple[int, int]], resolution: int | tuple[int, int], told: str
) -> None:
    found = choose(sizes)
    assert found.resolution == resolution
    assert told in found.reason and found.reason.endswith("x the cost of 384x384")


@pytest.mark.parametrize(
    ("pixels", "resolution", "cost"),
    [(17, 384, "1.00"), (16, 384, "1.00"), (14, 448, "1.36"), (12, 512, "1.78"), (2, 544, "2.01")],
)
def test_objects_under_a_patch_get_more_pixels_up_to_a_bound(
    pixels: int, resolution: int, cost: str
) -> None:
    found = choose([(600, 600)], side=pixels / 384)
    assert found.resolution == resolution
    assert f"; {cost}x the cost of 384x384" in found.reason
    told = f", {pixels} at 384x384, less than a patch of 16;"
    assert (told in found.reason) is (pixels < 16)
    assert ("; tiles= and slice= show them larger" in found.reason) is (pixels == 2)


def test_images_without_objects_give_their_shape_alone() -> None:
    sizes = np.array([(480, 640)])
    found = choose_resolution(sizes, np.zeros((0, 2)), **HOW)
    assert found == ((320, 448), "images are 3:4 (height:width); 0.97x the cost of 384x384")


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=9),
    st.floats(1e-4, 1),
    st.sampled_from([(384, 16, 32), (256, 16, 32), (312, 12, 12), (560, 14, 56), (64, 16, 32)]),
)
def test_the_choice_is_whole_windows_of_bounded_cost(
    sizes: list[tuple[int, int]], side: float, grid: tuple[int, int, int]
) -> None:
    square, patch, step = grid
    found = choose(sizes, side, square=square, patch=patch, step=step).resolution
    pair = (found, found) if isinstance(found, int) else found
    assert pair[0] % step == pair[1] % step == 0 < min(pair)
    assert math.prod(pair) <= 2.2 * square**2
    turned = choose([(width, height) for height, width in sizes], side, **HOW | {"step": 32})
    again = choose(sizes, side, **HOW | {"step": 32})
    assert again.resolution == (
        turned.resolution if isinstance(turned.resolution, int) else turned.resolution[::-1]
    )
