"""The grid of tiles over an image, for prediction and training alike."""

from __future__ import annotations

import itertools

from rfdetr.geometry.polygons import Crop


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
