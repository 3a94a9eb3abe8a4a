"""A split cut into tiles: an index whose images are windows of files.

A large image becomes a grid of tiles, each with the labels that it shows: boxes are cut here,
outlines when they are read. Of an object that a tile's edge cuts,

    at least `LEAST_SHOWN` of its box is in it    an object of the tile, cut as prediction sees it
    less                                          a sliver: training paints it gray, evaluation
                                                  takes it as a crowd region; it is not judged

Another tile shows such an object better, since tiles overlap. Training keeps every `EMPTY_KEPT`-th
of the tiles without an object, evaluation all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.index import DatasetIndex, Tiles
from rfdetr.geometry.tiles import tile_grid

LEAST_SHOWN = 0.25
"""Share of a box that a tile has to show of an object to be asked for it."""
WHOLE = 0.999
"""Share from which an object is not cut: what float32 leaves of 1."""
EMPTY_KEPT = 5
"""Of so many tiles without an object one is trained on."""


class TileCounts(NamedTuple):
    """What became of a split's images and objects; an object is counted in every tile."""

    images: int
    tiles: int
    left_out: int  # empty tiles
    whole: int
    cut: int
    slivers: int


def cut_tiles(
    index: DatasetIndex, tile: tuple[int, int], overlap: float, *, training: bool
) -> tuple[DatasetIndex, TileCounts]:
    """The tiles of all images of `index`, and what is in them; an image no larger than `tile`
    (height, width) stays whole. The tiles of an image stand together, row by row.
    """
    grids = [tile_grid((height, width), tile, overlap) for height, width in index.sizes.tolist()]
    image = np.repeat(np.arange(len(index)), [len(grid) for grid in grids])
    windows = np.array([crop[:4] for grid in grids for crop in grid], np.int32).reshape(-1, 4)
    in_tile = np.diff(index.offsets)[image]  # objects of its image
    at = np.repeat(np.arange(len(image)), in_tile)
    first = np.repeat(index.offsets[image] - np.cumsum(in_tile) + in_tile, in_tile)
    row = first + np.arange(len(at))
    limits = windows[at].astype(np.float32)
    boxes = np.clip(index.boxes[row], np.tile(limits[:, :2], 2), np.tile(limits[:, 2:], 2))
    shown = _areas(boxes) / _areas(index.boxes[row])
    visible = (shown >= WHOLE) | ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    sliver = visible & (shown < LEAST_SHOWN)
    asked_for = visible & ~sliver & ~index.crowd[row]
    spare = np.bincount(at[asked_for], minlength=len(image)) == 0
    spare &= np.bincount(image)[image] > 1  # a small image without objects was put there by someone
    kept = np.ones(len(image), np.bool_)
    if training:
        kept[spare] = np.arange(spare.sum()) % EMPTY_KEPT == 0
    stays = visible & kept[at]
    at, row, shown, sliver = at[stays], row[stays], shown[stays], sliver[stays]
    boxes = boxes[stays] - np.tile(limits[stays, :2], 2)
    whole, cut = shown >= WHOLE, (shown < WHOLE) & ~sliver
    tiles = Tiles(image[kept], windows[kept], index.sizes, sliver)
    outlines = index.outlines and replace(index.outlines, entries=index.outlines.entries[row])
    in_tiles = replace(
        index,
        image_ids=np.arange(kept.sum()),
        sizes=windows[kept][:, [3, 2]] - windows[kept][:, [1, 0]],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(at, minlength=len(image))[kept])]),
        boxes=boxes,
        labels=index.labels[row],
        crowd=index.crowd[row] | sliver,
        areas=np.where(whole, index.areas[row], _areas(boxes)).astype(np.float32),
        outlines=outlines,
        tiles=tiles,
    )
    numbers = (len(index), kept.sum(), (~kept).sum(), whole.sum(), cut.sum(), sliver.sum())
    return in_tiles, TileCounts(*map(int, numbers))


def _areas(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(min=0)
    areas: NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return areas
