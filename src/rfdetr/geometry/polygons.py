"""An object's outline, polygons or COCO's run lengths, and what a crop of its image shows of it.

Which pixels a polygon covers is COCO's own rule, as hotcoco has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.geometry.homography import Matrix, moved_points
from rfdetr.geometry.rle import coco_masks, rle_dict


class Crop(NamedTuple):
    """A part of an image in whole pixels, mirrored left to right or not."""

    left: int
    top: int
    right: int
    bottom: int
    flipped: bool = False


class Segmentation(NamedTuple):
    """One object's outline in pixels of its image of `height` x `width`.

    Either `polygons`, each (k, 2) x y, or `rle`, compressed run lengths over the whole image.
    """

    polygons: tuple[NDArray[np.float32], ...]
    rle: bytes
    height: int
    width: int

    def bounds(self, crop: Crop) -> NDArray[np.float32] | None:
        """The box (4,) xyxy of what `crop` shows of the object, in image pixels; None: nothing."""
        if self.rle:
            shown = self._pixels()[crop.top : crop.bottom, crop.left : crop.right]
            x, y = np.flatnonzero(shown.any(0)) + crop.left, np.flatnonzero(shown.any(1)) + crop.top
            box = [x[0], y[0], x[-1] + 1, y[-1] + 1] if len(x) else None
        else:
            points = np.concatenate(self.polygons)
            if (points < crop[:2]).any() or (points > crop[2:4]).any():
                parts = [_corner_points(polygon, crop) for polygon in self.polygons]
                points = np.concatenate(parts)
            box = [*points.min(0), *points.max(0)] if len(points) else None
        return None if box is None else np.array(box, np.float32)

    def bitmap(self, crop: Crop, size: tuple[int, int]) -> NDArray[np.bool_]:
        """What `crop` shows of the object, stretched to `size` (height, width), mirrored if it says
        so.
        """
        (height, width), low, extent = size, np.array(crop[:2]), np.array(crop[2:4]) - crop[:2]
        if self.rle:  # the pixel under the centre of each one of the bitmap
            y, x = (
                low[axis] + ((np.arange(side) + 0.5) * extent[axis] / side).astype(np.int64)
                for axis, side in ((1, height), (0, width))
            )
            found = self._pixels()[np.ix_(y, x[::-1] if crop.flipped else x)]
            return found.astype(np.bool_, order="C")
        moved = [(polygon - low) * ((width, height) / extent) for polygon in self.polygons]
        if crop.flipped:
            moved = [polygon * (-1, 1) + (width, 0) for polygon in moved]
        return np.asarray(coco_masks().decode(_drawn(moved, height, width)), np.bool_, order="C")

    def cut(self, window: Crop) -> Segmentation | None:
        """What `window` shows of the object, as the outline in an image that is this window; None
        for nothing.
        """
        height, width = window.bottom - window.top, window.right - window.left
        if self.rle:
            shown = self._pixels()[window.top : window.bottom, window.left : window.right]
            encoded = bytes(coco_masks().encode(np.asfortranarray(shown))["counts"])
            return Segmentation((), encoded, height, width) if shown.any() else None
        clipped = (
            _clipped_polygon(polygon - window[:2], width, height) for polygon in self.polygons
        )
        kept = tuple(polygon for polygon in clipped if len(polygon) > 2)
        return Segmentation(kept, b"", height, width) if kept else None

    def moved(self, matrix: Matrix, size: tuple[int, int], limits: Crop) -> Segmentation | None:
        """The outline in a view of `size` (height, width) to which `matrix` takes the image; None
        where nothing of it is inside `limits`, within which `matrix` has no horizon.
        """
        if self.rle:
            shown = self._seen(matrix, size)
            encoded = bytes(coco_masks().encode(np.asfortranarray(shown))["counts"])
            return Segmentation((), encoded, *size) if shown.any() else None
        here, points = self.polygons, np.concatenate(self.polygons)
        if (points < limits[:2]).any() or (points > limits[2:4]).any():
            part = self.cut(limits)
            here = tuple(polygon + limits[:2] for polygon in part.polygons) if part else ()
        moved = tuple(moved_points(matrix, polygon).astype(np.float32) for polygon in here)
        return Segmentation(moved, b"", *size) if moved else None

    def _seen(self, matrix: Matrix, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The pixels of a view (height, width) whose centre is on one of the object's."""
        pixels = self._pixels()
        height, width = pixels.shape
        back = np.linalg.inv(matrix)
        y, x = np.mgrid[: size[0], : size[1]] + 0.5
        there = moved_points(back, np.stack((x.ravel(), y.ravel()), axis=1))
        column, row = np.floor(there).astype(np.int64).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen = np.zeros(size[0] * size[1], np.uint8)
        seen[inside] = pixels[row[inside], column[inside]]
        return seen.reshape(size)

    def to_rle(self) -> bytes:
        """Compressed run lengths over the whole image, as COCO's tools make them of polygons."""
        return self.rle or bytes(_drawn(self.polygons, self.height, self.width)["counts"])

    def _pixels(self) -> NDArray[np.uint8]:
        return np.asarray(coco_masks().decode(rle_dict(self.rle, self.height, self.width)))


def _clipped_polygon(polygon: NDArray[Any], width: int, height: int) -> NDArray[np.float32]:
    """A polygon (k, 2) cut to an image, side by side (Sutherland and Hodgman, 1974); parts of it
    that lie apart stay joined by a line along the border, which covers nothing.
    """
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        if not len(polygon):
            break
        following = np.roll(polygon, -1, axis=0)
        ahead, then = sign * (polygon[:, axis] - limit), sign * (following[:, axis] - limit)
        with np.errstate(divide="ignore", invalid="ignore"):
            met = polygon + (following - polygon) * (ahead / (ahead - then))[:, None]
        met[:, axis] = limit
        points, chosen = np.stack((polygon, met), 1), np.stack((ahead >= 0, ahead * then < 0), 1)
        polygon = points[chosen]
    return polygon.astype(np.float32)


def _drawn(polygons: Iterable[NDArray[Any]], height: int, width: int) -> Any:
    """Run lengths, in the form of COCO's tools, of what any of `polygons` covers."""
    masks = coco_masks()
    return masks.merge([masks.fr_poly(part.ravel().tolist(), height, width) for part in polygons])


def _corner_points(polygon: NDArray[np.float32], crop: Crop) -> NDArray[np.float64]:
    """Points (n, 2) whose bounds are those of the area that `polygon` (k, 2) and `crop` share.

    Its border is made of the polygon's edges inside the crop and the crop's inside the polygon, so
    these are the ends of the clipped edges, and the crop's corners that the polygon covers.
    """
    start = polygon.astype(np.float64)
    step = np.roll(start, -1, axis=0) - start
    low, high = np.array(crop[:2], np.float64), np.array(crop[2:4], np.float64)
    corners = np.array([(x, y) for x in crop[0:4:2] for y in crop[1:4:2]], np.float64)
    x, y = corners[:, :1], corners[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where along an edge, from 0 to 1, it meets the crop's lines: it is inside from `enter` to
        # `leave`. An edge along an axis (step 0) never meets two of them.
        at_low, at_high = (low - start) / step, (high - start) / step
        # A ray from a corner to the right meets an odd number of edges if the corner is covered.
        meets = start[:, 0] + (y - start[:, 1]) / step[:, 1] * step[:, 0]
    outside = (step == 0) & ((start < low) | (start > high))
    enter = np.where(step == 0, 0, np.minimum(at_low, at_high)).max(1).clip(min=0)
    leave = np.where(step == 0, 1, np.maximum(at_low, at_high)).min(1).clip(max=1)
    seen = (enter <= leave) & ~outside.any(1)
    ends = [start[seen] + step[seen] * share[seen, None] for share in (enter, leave)]
    crossed = (start[:, 1] <= y) != (start[:, 1] + step[:, 1] <= y)  # (4, k)
    covered = (crossed & (meets > x)).sum(1) % 2 == 1
    return np.concatenate([*ends, corners[covered]])
