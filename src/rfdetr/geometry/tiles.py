"""The grid of tiles over an image, for prediction and training alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from rfdetr.checks import check_count, check_share, shown
from rfdetr.errors import InputError, InputTypeError
from rfdetr.geometry.polygons import Crop

LEAST_SIDE = 32
"""Pixels of a tile's sides at least; a smaller one is a slip, and thousands of network calls."""
MOST_OVERLAP = 0.9
"""Of two neighbours: with more, every pixel would be in a hundred tiles."""


def check_tile(name: str, value: Any) -> tuple[int, int]:
    """A side in pixels, or (height, width), as (height, width)."""
    pair = value if isinstance(value, Sequence) else (value, value)
    if isinstance(value, str) or len(pair) != 2:
        raise InputTypeError(f"{name} is {shown(value)}: expected pixels, or (height, width)")
    height, width = (check_count(name, side, LEAST_SIDE) for side in pair)
    return height, width


def check_overlap(name: str, value: Any) -> float:
    """A share of a tile's side, from 0 to `MOST_OVERLAP`."""
    if (share := check_share(name, value)) > MOST_OVERLAP:
        raise InputError(f"{name} is {value}: expected a number from 0 to {MOST_OVERLAP}")
    return share


def tile_grid(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> list[Crop]:
    """Tiles of (height, width) that cover an image of `size`, row by row; as wide or high as the
    image where that is smaller.

    They stand evenly and share at least `overlap` of their sides with their neighbours, so that
    none hangs over the edge: 1,000 pixels in tiles of 640 start at 0 and 360.
    """
    spans = []
    for length, side in zip(size, tile, strict=True):
        shown_side, step = min(side, length), max(int(side * (1 - overlap)), 1)
        steps = -(-(length - shown_side) // step)
        starts = [(length - shown_side) * at // max(steps, 1) for at in range(steps + 1)]
        spans.append([(start, start + shown_side) for start in starts])
    return [Crop(x[0], y[0], x[1], y[1]) for y, x in itertools.product(*spans)]
