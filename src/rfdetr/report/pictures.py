"""Pictures of a report: WebP crops of images, and where the boxes are that the page draws on them.

Masks are drawn into the pixels, as outlines: those of the labels green, those found red.
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rfdetr.data.images import ImageError, decode_image
from rfdetr.evaluation.matching import Array
from rfdetr.geometry.polygons import Crop
from rfdetr.report.judged import Judged

logger = logging.getLogger(__name__)

MOST = 120
MOST_BYTES = 4_200_000  # of all pictures; as base64 in a page a third more
SIDE, QUALITY = 320, 60
_GREEN, _RED = (35, 160, 80), (215, 45, 50)
_MARGIN = 0.75  # of a box's larger side, shown around it


class Shown(NamedTuple):
    """What to show: part of an image around some boxes, or all of it (`focus` None)."""

    split: str
    image: int
    focus: Array | None  # (n, 4) xyxy in pixels
    truths: Sequence[int]  # labels and detections that the picture is about: the page stresses them
    detections: Sequence[int]


class Album:
    """Asked for pictures, it gives their numbers; `draw` then makes them, image by image."""

    def __init__(self, splits: dict[str, Judged], threshold: float) -> None:
        self.splits, self.threshold = splits, threshold
        self._wanted: list[Shown] = []
        self.records: list[dict[str, Any]] = []  # of the pictures that there are, by number
        self.files: dict[int, bytes] = {}

    def ask(self, shown: Shown) -> int | None:
        """The number of the picture, or None where there are enough."""
        if len(self._wanted) >= MOST:
            return None
        self._wanted.append(shown)
        return len(self._wanted) - 1

    def draw(self) -> None:
        """Decodes each image once; a file that cannot be read has no pictures, which is logged."""
        by_image: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for number, shown in enumerate(self._wanted):
            by_image[shown.split, shown.image].append(number)
        self.records = [{} for _ in self._wanted]
        for (split, image), numbers in by_image.items():
            judged = self.splits[split]
            try:
                pixels = judged.index.shown_of(image, decode_image(judged.index.file(image)))
            except (ImageError, OSError) as error:
                logger.warning("no picture in the report: %s", error)
                continue
            for number in numbers:
                self.records[number] = self._draw(judged, self._wanted[number], pixels, number)
        spent = np.cumsum([len(self.files.get(number, b"")) for number in range(len(self.records))])
        for number in np.flatnonzero(spent > MOST_BYTES).tolist():
            self.files.pop(number, None)

    def _draw(self, judged: Judged, shown: Shown, pixels: Array, number: int) -> dict[str, Any]:
        height, width = pixels.shape[:2]
        window = _window(shown.focus, height, width)
        left, top, right, bottom = window
        scale = min(SIDE / max(right - left, bottom - top), 4.0)
        if shown.focus is None:
            scale = min(1.5 * SIDE / max(right - left, bottom - top), 1.0)
        size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
        picture = Image.fromarray(pixels[top:bottom, left:right]).resize(size)
        inside = self._inside(judged, shown, window)
        self._draw_masks(judged, picture, window, inside)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY, method=4)
        self.files[number] = buffer.getvalue()
        boxes = []
        for kind, row, box in inside:
            moved = (
                (box - (left, top, left, top))
                * np.tile(size, 2)
                / np.tile((right - left, bottom - top), 2)
            )
            label = judged.table.truth_labels[row] if kind == "label" else judged.table.labels[row]
            told = {"of": kind, "box": moved.round(1).tolist(), "class": int(label)}
            about = shown.truths if kind == "label" else shown.detections
            if kind == "found":
                told["score"] = round(float(judged.table.scores[row]), 3)
            boxes.append(told | {"stressed": row in about})
        name = judged.image_names[shown.image]
        return {
            "split": shown.split, "image": name, "window": list(window), "size": list(size),
            "boxes": boxes,
        }  # fmt: skip

    def _inside(
        self, judged: Judged, shown: Shown, window: tuple[int, int, int, int]
    ) -> list[tuple[str, int, Array]]:
        """Labels and detections that the window shows: of those found the confident, and those
        that the picture is about.
        """
        table, rows = judged.table, judged.index.rows(shown.image)
        labels = [("label", row, judged.index.boxes[row]) for row in range(rows.start, rows.stop)]
        of_image = np.flatnonzero(table.image == shown.image)
        sure = [d for d in of_image if table.scores[d] >= self.threshold or d in shown.detections]
        found = [("found", int(d), judged.boxes[d]) for d in sure]
        left, top, right, bottom = window
        return [
            (kind, row, box)
            for kind, row, box in [*labels, *found]
            if box[0] < right and box[2] > left and box[1] < bottom and box[3] > top
        ]

    def _draw_masks(
        self,
        judged: Judged,
        picture: Image.Image,
        window: tuple[int, int, int, int],
        inside: list[tuple[str, int, Array]],
    ) -> None:
        """Outlines of the masks in the window, where the split has any."""
        index = judged.index
        if index.outlines is None:
            return
        pixels = np.array(picture)
        for kind, row, box in inside:
            mask = None
            if kind == "label":
                image = int(judged.table.truth_image[row])
                outline = index.outlines_of(image, np.array([row]))[0]
                if outline is not None:
                    sides = (max(picture.size),) * 2
                    square = Image.fromarray(outline.bitmap(Crop(*window), sides))
                    mask = np.asarray(square.resize(picture.size, Image.Resampling.NEAREST))
            else:
                mask = _found_mask(judged, row, box, window, picture.size)
            if mask is not None:
                around = np.pad(mask, 1)
                inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
                pixels[mask & ~inner] = _GREEN if kind == "label" else _RED
        picture.paste(Image.fromarray(pixels))


def _window(focus: Array | None, height: int, width: int) -> tuple[int, int, int, int]:
    """The part of an image to show: left, top, right, bottom in whole pixels."""
    if focus is None:
        return 0, 0, width, height
    low, high = focus[:, :2].min(0), focus[:, 2:].max(0)
    whole = np.array((width, height))
    side = max((high - low).max() * (1 + 2 * _MARGIN), 64)
    extent = np.minimum(np.ceil(side), whole).astype(int)
    # Moved inside the image, so that it stays square.
    corner = np.clip(np.floor((low + high - side) / 2).astype(int), 0, whole - extent)
    left, top = corner.tolist()
    right, bottom = (corner + extent).tolist()
    return left, top, right, bottom


def _found_mask(
    judged: Judged, row: int, box: Array, window: tuple[int, int, int, int], size: tuple[int, int]
) -> Array | None:
    """The bitmap of a detection in a picture of (width, height), if its mask was kept."""
    image_id = int(judged.index.image_ids[judged.table.image[row]])
    small = judged.metrics.found[image_id].mask(int(judged.own_rank[row]))
    if small is None:
        return None
    left, top, right, bottom = window
    scale = np.tile(size, 2) / np.tile((right - left, bottom - top), 2)
    x0, y0, x1, y1 = ((box - (left, top, left, top)) * scale).round().astype(int).tolist()
    part = Image.fromarray(small).convert("L").resize((max(x1 - x0, 1), max(y1 - y0, 1)))
    whole = Image.new("L", size)
    whole.paste(part, (x0, y0))
    shown: Array = np.asarray(whole) > 127
    return shown
