"""Segmentations of a split's objects: recorded while its files are read, kept as a few flat arrays.

Only segmentation models ask for them. An object costs its coordinates (8 bytes a corner) or run
lengths, and 40 bytes.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.images import turned, turned_points
from rfdetr.errors import InputError
from rfdetr.geometry.polygons import Segmentation
from rfdetr.geometry.rle import compress, run_lengths, runs_of_bitmap


@dataclass(frozen=True)
class Segmentations:
    """Segmentations of M objects in the order of their boxes: entry `entries[row]` of the arrays,
    or -1 for none.

    Entry e is polygons `first_polygon[e]` to `first_polygon[e + 1]`, polygon p is points
    `first_point[p]` to `first_point[p + 1]`, x y in pixels of the upright image; or else the entry
    is bytes `first_byte[e]` to `first_byte[e + 1]` of compressed run lengths.
    """

    entries: NDArray[np.int64]
    first_polygon: NDArray[np.int64]
    first_point: NDArray[np.int64]
    points: NDArray[np.float32]
    first_byte: NDArray[np.int64]
    rle_bytes: NDArray[np.uint8]

    def turned(self, orientations: NDArray[np.int64], sizes: NDArray[np.int64]) -> Segmentations:
        """Segmentations of stored images in the upright ones of `sizes` (M, 2) height, width;
        `orientations` (M,) are EXIF's, 1 for an image that is not turned.
        """
        points = self.points.copy()
        rles = [self._rle(entry) for entry in range(len(self.first_byte) - 1)]
        for row in np.flatnonzero((orientations > 1) & (self.entries >= 0)).tolist():
            entry, orientation = int(self.entries[row]), int(orientations[row])
            part = slice(*self.first_point[self.first_polygon[entry : entry + 2]])
            points[part] = turned_points(points[part], orientation, sizes[row])
            if rles[entry]:
                lengths = run_lengths(rles[entry])
                inside = np.arange(len(lengths)) % 2 == 1
                stored = np.repeat(inside, lengths).reshape(sizes[row]).T  # its columns are rows
                rles[entry] = compress(runs_of_bitmap(turned(stored, orientation)))
        first_byte, rle_bytes = np.cumsum([0, *map(len, rles)]), np.frombuffer(b"".join(rles), "u1")
        return replace(self, points=points, first_byte=first_byte, rle_bytes=rle_bytes)

    def get(self, entry: int, height: int, width: int) -> Segmentation | None:
        """An entry as the outline in its image; None for -1."""
        if entry < 0:
            return None
        limits = self.first_point[self.first_polygon[entry] : self.first_polygon[entry + 1] + 1]
        polygons = (self.points[first:last] for first, last in itertools.pairwise(limits.tolist()))
        return Segmentation(tuple(polygons), self._rle(entry), height, width)

    def _rle(self, entry: int) -> bytes:
        return self.rle_bytes[self.first_byte[entry] : self.first_byte[entry + 1]].tobytes()


class OutlineRecorder:
    """Takes the outlines of objects one by one and numbers them: entry 0, 1, ..."""

    def __init__(self) -> None:
        self.faults: dict[int, tuple[str, str]] = {}
        """Rule and what was found, by entry, where something is there but cannot be used."""
        self._first_polygon, self._first_point = array("q", [0]), array("q", [0])
        self._first_byte, self._rle = array("q", [0]), bytearray()
        self._numbers = array("f")
        self._rle_boxes: dict[int, list[int]] = {}  # by entry: xyxy, height and width of the mask

    def __len__(self) -> int:
        return len(self._first_byte) - 1

    def add(self, segmentation: Any) -> None:
        """Record what a COCO annotation has as its segmentation: polygons, or run lengths of either
        form. What cannot be used becomes a fault.
        """
        if segmentation not in (None, [], "", {}):  # how files say that there is none
            is_rle = isinstance(segmentation, dict)
            try:
                if is_rle:
                    self._add_rle(**segmentation)
                else:
                    self._add_polygons(segmentation)
            except (TypeError, ValueError, OverflowError) as error:
                del self._numbers[2 * self._first_point[-1] :]
                rule = "outline-rle" if is_rle else "outline-numbers"
                self.faults[len(self)] = rule, str(error)
        self._first_polygon.append(len(self._first_point) - 1)
        self._first_byte.append(len(self._rle))

    def bounds(self) -> NDArray[np.float32]:
        """Boxes xyxy (n + 1, 4) around the n outlines, in the coordinates that were given; NaN for
        none, and in the last row, so that entry -1 has none.
        """
        first = np.array(self._first_point)[np.array(self._first_polygon)]
        bounds = np.full((len(first), 4), np.nan, np.float32)
        drawn = np.flatnonzero(np.diff(first))
        if len(drawn):
            points = np.array(self._numbers, np.float32).reshape(-1, 2)
            bounds[drawn, :2] = np.minimum.reduceat(points, first[drawn])
            bounds[drawn, 2:] = np.maximum.reduceat(points, first[drawn])
        for entry, (*box, _height, _width) in self._rle_boxes.items():
            bounds[entry] = box
        return bounds

    def build(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], relative: bool
    ) -> Segmentations:
        """The outlines of M objects: entries `rows` (M,), in images of `sizes` (M, 2) height,
        width, which are the units of `relative` coordinates. What does not fit becomes a fault.
        """
        first_polygon, first_point = np.array(self._first_polygon), np.array(self._first_point)
        points = np.array(self._numbers, np.float32).reshape(-1, 2)
        corners = np.diff(first_point[first_polygon])  # of each entry
        size_of = np.zeros((len(self), 2), np.int64)
        size_of[rows] = sizes
        if relative:
            points *= np.repeat(size_of[:, ::-1], corners, axis=0)
        low, high = np.split(self.bounds()[:-1], 2, axis=1)
        flat = (corners > 0) & ~(np.isfinite(high - low) & (high > low)).all(1)
        found = "polygons without an area, or with NaN or infinity"
        self.faults |= dict.fromkeys(np.flatnonzero(flat).tolist(), ("outline-numbers", found))
        for entry, (*_box, mask_height, mask_width) in self._rle_boxes.items():
            height, width = size_of[entry]
            if (mask_height, mask_width) != (height, width):
                found = f"run lengths of {mask_width}x{mask_height} pixels"
                self.faults[entry] = "outline-rle", f"{found} for an image of {width}x{height}"
        first_byte, rle_bytes = np.array(self._first_byte), np.frombuffer(bytes(self._rle), "u1")
        entries = np.where((corners > 0) | (np.diff(first_byte) > 0), np.arange(len(self)), -1)
        entries[list(self.faults)] = -1
        entries = entries[rows]
        return Segmentations(entries, first_polygon, first_point, points, first_byte, rle_bytes)

    def _add_polygons(self, polygons: Any) -> None:
        """Parts of fewer than three corners are left out, if there are others."""
        usable = [part for part in polygons if isinstance(part, list) and len(part) >= 6]
        if not usable or any(len(part) % 2 for part in usable):
            expected = "expected polygons as lists of x, y of three corners or more"
            raise InputError(f"{polygons!r:.60}, {expected}")
        ends = []
        for part in usable:
            self._numbers.extend(part)
            ends.append(len(self._numbers) // 2)
        self._first_point.extend(ends)

    def _add_rle(self, size: Any = None, counts: Any = None, **_rest: Any) -> None:
        if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, str | list):
            found = f"size {size!r:.40}, counts {counts!r:.40}"
            raise InputError(f"{found}, expected [height, width] and run lengths")
        height, width = map(int, size)
        encoded = counts.encode() if isinstance(counts, str) else compress([*map(int, counts)])
        lengths = run_lengths(encoded)
        area = lengths[1::2].sum()
        if lengths.min() < 0 or lengths.sum() != height * width or not area:
            found = f"runs of {lengths.sum()} pixels, {area} inside"
            raise InputError(f"{found}, for a mask of {width}x{height}")
        ends, drawn = np.cumsum(lengths), np.flatnonzero(lengths[1::2])
        runs = np.stack((ends[:-1:2][drawn], ends[1::2][drawn] - 1))  # first and last pixels
        (lefts, rights), (tops, bottoms) = np.divmod(runs, height)
        # A run over more than one column reaches the image's lower edge, then its upper one.
        top, bottom = (0, height) if (lefts < rights).any() else (tops.min(), bottoms.max() + 1)
        self._rle += encoded
        self._rle_boxes[len(self)] = [lefts[0], top, rights[-1] + 1, bottom, height, width]
