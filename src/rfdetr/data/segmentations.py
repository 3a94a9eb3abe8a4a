"""Segmentations of a split's objects: recorded while its files are read, kept as a few flat arrays.

Only segmentation models ask for them. An object costs its coordinates (8 bytes a corner) or run
lengths, and 40 bytes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.images import turned, turned_points
from rfdetr.errors import InputError
from rfdetr.geometry.polygons import Segmentation
from rfdetr.geometry.rle import compress, run_lengths, runs_of_bitmap

_LEAST_NUMBERS = 6  # of a polygon: three corners
_NOTHING: tuple[Any, ...] = (None, [], "", {})  # how files say that an object has no outline


@dataclass(frozen=True)
class Segmentations:
    """Segmentations of M objects in the order of their boxes: entry `entries[row]` of the arrays,
    or -1 for none.

    An entry is polygons `first_polygon[e]` to `first_polygon[e + 1]`, each points `first_point[p]`
    to `first_point[p + 1]`, in pixels of the upright image, or else bytes `first_byte[e]` to
    `first_byte[e + 1]` of compressed run lengths.
    """

    entries: NDArray[np.int64]
    first_polygon: NDArray[np.int64]
    first_point: NDArray[np.int64]
    points: NDArray[np.float32]
    first_byte: NDArray[np.int64]
    rle_bytes: NDArray[np.uint8]

    def take(self, rows: NDArray[np.int64]) -> Segmentations:
        """Those of other rows, or in another order."""
        return replace(self, entries=self.entries[rows])

    def turned(self, orientations: NDArray[np.int64], sizes: NDArray[np.int64]) -> Segmentations:
        """Segmentations of stored images in the upright ones of `sizes` (M, 2); `orientations`
        (M,): EXIF's, or 1.
        """
        points, runs = self.points.copy(), {}
        for row in np.flatnonzero((orientations > 1) & (self.entries >= 0)).tolist():
            entry, orientation, (height, width) = (
                self.entries[row],
                int(orientations[row]),
                sizes[row],
            )
            first, last = self.first_point[self.first_polygon[entry : entry + 2]]
            points[first:last] = turned_points(points[first:last], orientation, sizes[row])
            if rle := self.rle_bytes[self.first_byte[entry] : self.first_byte[entry + 1]].tobytes():
                lengths = run_lengths(rle)
                bitmap = (
                    np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width).T
                )  # stored
                runs[entry] = compress(runs_of_bitmap(turned(bitmap, orientation)))
        limits = zip(self.first_byte[:-1].tolist(), self.first_byte[1:].tolist(), strict=True)
        chunks = [
            runs.get(entry) or self.rle_bytes[first:last].tobytes()
            for entry, (first, last) in enumerate(limits)
        ]
        first_byte = np.cumsum([0, *map(len, chunks)])
        rle_bytes = np.frombuffer(b"".join(chunks), np.uint8)
        return replace(self, points=points, first_byte=first_byte, rle_bytes=rle_bytes)

    def get(self, row: int, size: tuple[int, int]) -> Segmentation | None:
        """The outline of a box in an image of (height, width); None where it has none."""
        entry = self.entries[row]
        if entry < 0:
            return None
        limits = self.first_point[self.first_polygon[entry] : self.first_polygon[entry + 1] + 1]
        polygons = (
            np.split(self.points[limits[0] : limits[-1]], limits[1:-1] - limits[0])
            if len(limits) > 1
            else ()
        )
        rle = self.rle_bytes[self.first_byte[entry] : self.first_byte[entry + 1]].tobytes()
        return Segmentation(tuple(polygons), rle, *size)


class OutlineRecorder:
    """Takes the outlines of objects one by one, in the order of their boxes."""

    def __init__(self) -> None:
        self.faults: dict[int, tuple[str, str]] = {}
        """Rule and what was found, by entry, where something is there but cannot be used."""
        self._rows: NDArray[np.int64] | None = None
        self._first_polygon, self._first_point, self._first_byte = (
            array("q", [0]),
            array("q", [0]),
            array("q", [0]),
        )
        self._numbers = array("f")
        self._rle = bytearray()
        self._rle_sizes: dict[int, tuple[int, int]] = {}  # by entry
        self._rle_bounds: dict[int, tuple[int, int, int, int]] = {}

    def add(self, segmentation: Any) -> None:
        """Takes what a COCO annotation has as its segmentation: polygons, or run lengths of either
        form.
        """
        entry = len(self._first_byte) - 1
        if segmentation not in _NOTHING:
            is_rle = isinstance(segmentation, dict)
            try:
                if is_rle:
                    self._add_rle(entry, **segmentation)
                else:
                    self._add_polygons(segmentation)
            except (TypeError, ValueError, OverflowError) as error:
                del self._numbers[2 * self._first_point[-1] :]
                self.faults[entry] = ("outline-rle" if is_rle else "outline-numbers", str(error))
        self._first_polygon.append(len(self._first_point) - 1)
        self._first_byte.append(len(self._rle))

    def keep(self, rows: NDArray[np.int64]) -> OutlineRecorder:
        """Says which of the objects have boxes in the end; to be called once."""
        self._rows = rows
        return self

    def bounds(self) -> NDArray[np.float32]:
        """Boxes xyxy around the outlines of all entries, in the coordinates that were given; NaN
        for none.
        """
        first = np.array(self._first_point)[np.array(self._first_polygon)]
        bounds = np.full((len(first) - 1, 4), np.nan, np.float32)
        drawn = np.flatnonzero(np.diff(first))
        if len(drawn):
            points = np.array(self._numbers, np.float32).reshape(-1, 2)
            bounds[drawn, :2] = np.minimum.reduceat(points, first[drawn])
            bounds[drawn, 2:] = np.maximum.reduceat(points, first[drawn])
        for entry, box in self._rle_bounds.items():
            bounds[entry] = box
        return bounds

    def build(self, sizes: NDArray[np.int64], relative: bool) -> Segmentations:
        """The arrays, for objects in images of sizes (M, 2) height, width, the units of `relative`
        coordinates.
        """
        rows = np.arange(len(self._first_byte) - 1) if self._rows is None else self._rows
        first_polygon, first_point = np.array(self._first_polygon), np.array(self._first_point)
        first_byte = np.array(self._first_byte)
        points = np.array(self._numbers, np.float32).reshape(-1, 2)
        corners = np.diff(first_point[first_polygon])  # of each entry
        size_of = np.zeros((len(corners), 2), np.int64)
        size_of[rows] = sizes
        if relative:
            points *= np.repeat(size_of[:, ::-1], corners, axis=0)
        bounds = self.bounds()
        extent = bounds[:, 2:] - bounds[:, :2]
        for entry in np.flatnonzero(
            (corners > 0) & ~(np.isfinite(extent) & (extent > 0)).all(1)
        ).tolist():
            self.faults[entry] = (
                "outline-numbers",
                "polygons without an area, or with NaN or infinity",
            )
        for entry, (height, width) in self._rle_sizes.items():
            expected = size_of[entry].tolist()
            if [height, width] != expected:
                found = f"run lengths of {width}x{height} pixels for an image of {expected[1]}x{expected[0]}"
                self.faults[entry] = ("outline-rle", found)
        entries = np.where((corners > 0) | (np.diff(first_byte) > 0), np.arange(len(corners)), -1)
        entries[list(self.faults)] = -1
        rle_bytes = np.frombuffer(bytes(self._rle), np.uint8)
        return Segmentations(
            entries[rows], first_polygon, first_point, points, first_byte, rle_bytes
        )

    def fault(self, row: int) -> tuple[str, str]:
        """Rule and what was found of a kept object that has no outline."""
        return self.faults.get(
            row if self._rows is None else int(self._rows[row]), ("outline-missing", "no outline")
        )

    def _add_polygons(self, polygons: Any) -> None:
        """Parts of fewer than three corners are left out, if there are others."""
        usable = [
            part for part in polygons if isinstance(part, list) and len(part) >= _LEAST_NUMBERS
        ]
        if not usable or any(len(part) % 2 for part in usable):
            raise InputError(
                f"{polygons!r:.60}, expected polygons as lists of x, y of three corners or more"
            )
        ends = []
        for part in usable:
            self._numbers.extend(part)
            ends.append(len(self._numbers) // 2)
        self._first_point.extend(ends)

    def _add_rle(self, entry: int, size: Any = None, counts: Any = None, **_rest: Any) -> None:
        if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, str | list):
            raise InputError(
                f"size {size!r:.40}, counts {counts!r:.40}, expected [height, width] and run lengths"
            )
        height, width = map(int, size)
        encoded = (
            counts.encode()
            if isinstance(counts, str)
            else compress([int(length) for length in counts])
        )
        lengths = run_lengths(encoded)
        if lengths.min() < 0 or lengths.sum() != height * width or not lengths[1::2].any():
            inside = lengths[1::2].sum()
            raise InputError(
                f"runs of {lengths.sum()} pixels, {inside} inside, for a mask of {width}x{height}"
            )
        self._rle += encoded
        self._rle_sizes[entry] = height, width
        ends = np.cumsum(lengths)
        inside = np.flatnonzero(lengths[1::2])
        first, last = (
            ends[:-1:2][inside],
            ends[1::2][inside] - 1,
        )  # pixels of the runs, column by column
        left, right = int(first[0]) // height, int(last[-1]) // height + 1
        within = (
            first // height == last // height
        )  # one column; another run reaches an image's edge
        top = int(np.where(within, first % height, 0).min())
        bottom = int(np.where(within, last % height, height - 1).max()) + 1
        self._rle_bounds[entry] = left, top, right, bottom
