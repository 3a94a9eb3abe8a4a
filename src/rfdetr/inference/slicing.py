"""Sliced prediction: a large image in overlapping tiles, and what they show of one object merged.

Two tiles are compared by what both of them see. Where the edge of a tile cuts an object, its box is
a piece; the other tile's box is clipped to that tile before the IoU is taken. So a piece matches
the whole object, whatever share of it it is, and two pieces match where their tiles overlap, while
two neighbours of one class stay two. Of what matches,

    whole  the best box that no tile's edge cuts is the object's, else the box around the pieces
    score  is the best one's

Plain suppression does one of two wrongs here. By IoU, a piece differs from its object and stays
beside it; by the share of the smaller box, a sure piece removes the less sure whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rfdetr.checks import check_kind, check_overlap, check_tile
from rfdetr.geometry.boxes import elementwise_iou
from rfdetr.geometry.polygons import Crop
from rfdetr.geometry.tiles import tile_grid
from rfdetr.inference.masks import compact_masks, union_mask

if TYPE_CHECKING:
    from supervision import CompactMask

Array: TypeAlias = NDArray[Any]
Find: TypeAlias = Callable[[list[Array]], list[dict[str, Any]]]

SAME_OBJECT = 0.5
"""IoU from which two tiles' detections of a class are one object."""
CUT_WITHIN = 0.01
"""Of a tile's side: a box that ends so near to an edge is cut by it."""
HAS_A_SAY = 0.5
"""Of the best score of an object: what is found with less neither moves nor joins boxes. So the
detections above a threshold are the same, whatever was looked at below half of it."""


class Slicing(NamedTuple):
    """How an image is sliced."""

    tile: tuple[int, int]  # height, width
    overlap: float
    whole: bool  # look at the whole image too

    def fits(self, image: Array) -> bool:
        """Whether an image (H, W, 3) is no larger than a tile, and is not sliced."""
        return bool(image.shape[0] <= self.tile[0] and image.shape[1] <= self.tile[1])

    def crops(self, height: int, width: int) -> list[Crop]:
        """The tiles of an image and, if asked for, the whole."""
        whole = [Crop(0, 0, width, height)] * self.whole
        return [*tile_grid((height, width), self.tile, self.overlap), *whole]


def check_slicing(slice: Any, overlap: Any, whole: Any, own: tuple[int, int]) -> Slicing:
    """`slice` as `predict` takes it: True for the network's `own` size, pixels, (height, width)."""
    tile = own if slice is True else check_tile("slice", slice)
    check_kind("slice_whole", whole, bool)
    return Slicing(tile, check_overlap("slice_overlap", overlap), whole)


class Seen(NamedTuple):
    """N detections of an image's tiles."""

    scores: Array  # (N,) float32
    labels: Array  # (N,) int64
    boxes: Array  # (N, 4) xyxy in pixels of the image
    tiles: Array  # (N,) number of its tile
    masks: CompactMask | None  # N in the image


@dataclass
class _Object:
    """Detections of one object: the best, the best whole one, and the best piece of each tile."""

    best: int
    whole: int | None = None
    pieces: dict[int, int] = field(default_factory=dict)

    @property
    def shown_by(self) -> list[int]:
        return list(self.pieces.values()) if self.whole is None else [self.whole]


def find_in_tiles(
    image: Array,
    slicing: Slicing,
    find: Find,
    reported: Callable[[Array, Array], Array],
    batch_size: int,
) -> dict[str, Any]:
    """What the tiles of an image (H, W, 3) show, merged as `merge_tiles` says.

    `find` takes images and gives what `postprocess` does of each; `reported` says which scores
    (n,) and labels (n,) count. Beside the image, no more is in memory than a batch of tiles and
    what was found.
    """
    height, width = image.shape[:2]
    crops = slicing.crops(height, width)
    columns: dict[str, list[Any]] = {name: [] for name in Seen._fields}
    for start in range(0, len(crops), batch_size):
        windows = crops[start : start + batch_size]
        parts = [image[top:bottom, left:right] for left, top, right, bottom, _ in windows]
        for number, found in enumerate(find(parts), start):
            left, top = crops[number][:2]
            scores, labels, boxes = (found[name].cpu().numpy() for name in Seen._fields[:3])
            keep = reported(scores, labels)
            moved = boxes[keep] + np.array([left, top] * 2, np.float32)
            kept: list[Any] = [scores[keep], labels[keep], moved, np.full(keep.sum(), number)]
            if (logits := found.get("mask_logits")) is not None:
                masks = compact_masks(
                    logits[torch.from_numpy(keep)], parts[number - start].shape[:2]
                )
                kept.append(masks.with_offset(left, top, (height, width)))
            for column, values in zip(columns.values(), kept, strict=False):
                column.append(values)
    of_tiles = columns.pop("masks")
    all_masks = type(of_tiles[0]).merge(of_tiles) if of_tiles else None
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return merge_tiles(Seen(**arrays, masks=all_masks), crops, (height, width))


def merge_tiles(seen: Seen, crops: list[Crop], size: tuple[int, int]) -> dict[str, Any]:
    """What an image of `size` (height, width) holds, best first, as `detect` has it: "scores",
    "labels", "boxes" and, in place of logits, "masks" as a `CompactMask`.
    """
    order = np.argsort(-seen.scores, kind="stable")
    scores, labels, boxes, tiles = (values[order] for values in seen[:4])
    windows = np.array([crop[:4] for crop in crops], np.float32)
    own, limits = windows[tiles], np.array([0, 0, size[1], size[0]], np.float32)
    margin = CUT_WITHIN * np.tile(own[:, 2:] - own[:, :2], 2)
    cut = ((np.abs(boxes - own) <= margin) & (own != limits)).any(1)
    pairs = _same_objects(boxes, labels, tiles, windows, cut)
    objects = _gather(scores, tiles, cut, pairs)
    parts = [one.shown_by for one in objects]
    best = np.array([one.best for one in objects], np.int64)
    around = [[*boxes[rows, :2].min(0), *boxes[rows, 2:].max(0)] for rows in parts]
    found: dict[str, Any] = {
        "scores": torch.from_numpy(scores[best]),
        "labels": torch.from_numpy(labels[best]),
        "boxes": torch.tensor(np.array(around, np.float32).reshape(-1, 4)),
    }
    if seen.masks is not None:
        joined = [seen.masks[:0], *(union_mask(seen.masks, order[rows].tolist()) for rows in parts)]
        found["masks"] = type(seen.masks).merge(joined)
    return found


def _same_objects(
    boxes: Array,
    labels: Array,
    tiles: Array,
    windows: Array,
    cut: Array,
) -> list[list[int]]:
    """For each of N detections those before it, best first, that other tiles have of its object."""
    before: list[list[int]] = [[] for _ in boxes]
    by_tile = np.argsort(tiles, kind="stable")
    held, starts = np.unique(tiles[by_tile], return_index=True)
    rows, windows = np.split(by_tile, starts[1:]), windows[held]  # of tiles with detections
    for a, b in _meeting(windows):
        at_a, at_b = np.nonzero(labels[rows[a]][:, None] == labels[rows[b]])
        first, second = rows[a][at_a], rows[b][at_b]
        of_first = _clipped(boxes[first], windows[b], cut[second])
        of_second = _clipped(boxes[second], windows[a], cut[first])
        iou, _ = elementwise_iou(torch.from_numpy(of_first), torch.from_numpy(of_second))
        same = iou.numpy() >= SAME_OBJECT
        for one, other in np.sort(np.stack((first[same], second[same]), 1)).tolist():
            before[other].append(one)
    return [sorted(others) for others in before]


def _meeting(windows: Array) -> Iterator[tuple[int, int]]:
    """Pairs a < b of windows (n, 4) that have pixels in common."""
    for a, window in enumerate(windows):
        others = windows[a + 1 :]
        low = np.maximum(window[:2], others[:, :2])
        meet = (np.minimum(window[2:], others[:, 2:]) > low).all(1)
        yield from ((a, b) for b in (a + 1 + np.flatnonzero(meet)).tolist())


def _clipped(boxes: Array, window: Array, where: Array) -> Array:
    """Boxes (n, 4) cut to what `window` (4,) shows of them, `where` (n,) says so."""
    inside = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
    return np.where(where[:, None], inside, boxes)


def _gather(
    scores: Array,
    tiles: Array,
    cut: Array,
    before: list[list[int]],
) -> list[_Object]:
    """The objects of detections that stand best first; `before` has those that match each.

    A whole one follows the best of an object alone, as in non-maximum suppression; a piece any of
    its detections, so that a long object is followed from tile to tile. One that matches several
    objects joins them where not more than one of them was seen whole.
    """
    objects: dict[int, _Object] = {}  # by the best one's number
    best_of: dict[int, int] = {}
    for number, others in enumerate(before):
        bests = sorted({best_of[n] for n in others if cut[number] or best_of[n] == n})
        first, *more = bests or [number]
        one = objects.setdefault(first, _Object(first))
        best_of[number] = first
        if scores[number] < HAS_A_SAY * scores[first]:
            continue
        if cut[number]:
            one.pieces.setdefault(int(tiles[number]), number)
        elif one.whole is None:
            one.whole = number
        for other in (objects[best] for best in more):
            if one.whole is None or other.whole is None:
                one.whole = other.whole if one.whole is None else one.whole
                one.pieces = other.pieces | one.pieces
                best_of |= {n: first for n, best in best_of.items() if best == other.best}
                del objects[other.best]
    return list(objects.values())
