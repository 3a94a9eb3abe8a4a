"""Segmentations of objects (polygons, or COCO's run lengths) and what becomes of them: bounds,
bitmaps, run lengths.

Run lengths count pixels column by column, outside and inside in turn, outside first. Which pixels a
polygon covers is COCO's own rule, as hotcoco has it; several polygons of one object cover what any
of them covers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.geometry.rle import run_lengths


class Crop(NamedTuple):
    """A part of an image in whole pixels, mirrored or not."""

    left: int
    top: int
    right: int
    bottom: int
    flipped: bool = False


class Segmentation(NamedTuple):
    """One object's outline in pixels of its image: polygons (k, 2) of x, y, or else compressed run
    lengths.
    """

    polygons: tuple[NDArray[np.float32], ...]
    rle: bytes
    height: int
    width: int

    def bounds(self, window: Crop) -> NDArray[np.float32] | None:
        """The box xyxy around what a window shows of the object; None where that is nothing."""
        points = [_polygon_extremes(polygon, window) for polygon in self.polygons]
        if self.rle:
            points.append(_runs_extremes(run_lengths(self.rle), self.height, window))
        extremes = np.concatenate(points)
        if not len(extremes):
            return None
        return np.concatenate((extremes.min(0), extremes.max(0))).astype(np.float32)

    def bitmap(self, window: Crop, size: int) -> NDArray[np.bool_]:
        """What a window shows of the object, (size, size): the window is stretched, mirrored where
        it is `flipped`.
        """
        if self.rle:
            return _sampled_runs(run_lengths(self.rle), self.height, window, size)
        import hotcoco.mask

        scale = size / np.array((window.right - window.left, window.bottom - window.top))
        moved = [(polygon - (window.left, window.top)) * scale for polygon in self.polygons]
        if window.flipped:
            moved = [polygon * (-1, 1) + (size, 0) for polygon in moved]
        rle = hotcoco.mask.merge(
            [hotcoco.mask.fr_poly(polygon.ravel().tolist(), size, size) for polygon in moved]
        )
        return np.asarray(hotcoco.mask.decode(rle), np.bool_, order="C")

    def to_rle(self) -> bytes:
        """Compressed run lengths over the whole image, as COCO's tools make them of polygons."""
        if self.rle:
            return self.rle
        import hotcoco.mask

        parts = [
            hotcoco.mask.fr_poly(polygon.ravel().tolist(), self.height, self.width)
            for polygon in self.polygons
        ]
        counts: bytes = hotcoco.mask.merge(parts)["counts"]
        return counts


def _polygon_extremes(polygon: NDArray[np.float32], window: Crop) -> NDArray[np.float64]:
    """Points (n, 2) whose bounds are those of polygon and window's intersection.

    Its border is made of the polygon's edges inside the window and of the window's inside the
    polygon, so these are the ends of the clipped edges, and the window's corners that the polygon
    covers.
    """
    start = polygon.astype(np.float64)
    step = np.roll(start, -1, axis=0) - start
    low, high = np.array(window[:2], np.float64), np.array(window[2:4], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        at_low, at_high = (
            (low - start) / step,
            (high - start) / step,
        )  # where along an edge it meets the window's lines
    outside = (step == 0) & ((start < low) | (start > high))
    enter = np.where(step == 0, 0, np.minimum(at_low, at_high)).max(1).clip(min=0)
    leave = np.where(step == 0, 1, np.maximum(at_low, at_high)).min(1).clip(max=1)
    seen = (enter <= leave) & ~outside.any(1)
    ends = [start[seen] + step[seen] * share[seen, None] for share in (enter, leave)]
    corners = np.array([(x, y) for x in window[0:4:2] for y in window[1:4:2]], np.float64)
    return np.concatenate([*ends, corners[_covered(corners, start, step)]])


def _covered(
    points: NDArray[np.float64], start: NDArray[np.float64], step: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which points (n, 2) a polygon covers: those from which a ray to the right meets an odd number
    of edges.
    """
    x, y = points[:, :1], points[:, 1:]
    crossed = (start[:, 1] <= y) != (start[:, 1] + step[:, 1] <= y)  # (n, k)
    with np.errstate(divide="ignore", invalid="ignore"):
        where = start[:, 0] + (y - start[:, 1]) / step[:, 1] * step[:, 0]
    inside: NDArray[np.bool_] = ((crossed & (where > x)).sum(1) % 2).astype(bool)
    return inside


def _runs_extremes(lengths: NDArray[np.int64], height: int, window: Crop) -> NDArray[np.float64]:
    """Corners (n, 2) of the vertical strips of which runs are made, as far as the window shows
    them.
    """
    ends = np.cumsum(lengths)
    first, past = ends[0:-1:2], ends[1::2]  # pixels of the runs inside
    first, past = first[past > first], past[past > first]
    columns = (past - 1) // height - first // height + 1  # that a run touches
    before = np.cumsum(columns) - columns
    x = np.arange(columns.sum()) + np.repeat(first // height - before, columns)
    top = np.maximum(np.repeat(first, columns) - x * height, window.top)
    bottom = np.minimum(np.repeat(past, columns) - x * height, min(window.bottom, height))
    seen = (top < bottom) & (x >= window.left) & (x < window.right)
    upper, lower = np.stack((x, top), 1)[seen], np.stack((x + 1, bottom), 1)[seen]
    return np.concatenate((upper, lower)).astype(np.float64)


def _sampled_runs(
    lengths: NDArray[np.int64], height: int, window: Crop, size: int
) -> NDArray[np.bool_]:
    """The pixel under each centre of a (size, size) grid over the window, looked up among the runs.

    Only inside the object's bounds: the image itself is never unpacked.
    """
    bitmap = np.zeros((size, size), np.bool_)
    extremes = _runs_extremes(lengths, height, window)
    if len(extremes):
        (left, top), (right, bottom) = extremes.min(0).tolist(), extremes.max(0).tolist()
        xs = window.left + ((np.arange(size) + 0.5) * (window.right - window.left) / size).astype(
            np.int64
        )
        ys = window.top + ((np.arange(size) + 0.5) * (window.bottom - window.top) / size).astype(
            np.int64
        )
        if window.flipped:
            xs = xs[::-1]
        columns, rows = (xs >= left) & (xs < right), (ys >= top) & (ys < bottom)
        pixels = xs[columns, None] * height + ys[rows]  # in their own order, which the search likes
        bitmap[np.ix_(rows, columns)] = (
            np.searchsorted(np.cumsum(lengths), pixels, side="right") % 2
        ).T
    return bitmap
