"""What the readers of all formats hand over: the images and boxes of one split as two tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.findings import Description, Findings
from rfdetr.data.packs import PackedFile, PackedFiles
from rfdetr.data.segmentations import OutlineRecorder

NO_ID = -1  # where a record has none
_IDS = ("id", "image", "label", "outline")
IMAGE = np.dtype([("id", "<i8"), ("place", "<i8"), ("annotated", "<i8", 2), ("size", "<i8", 2)])
"""`place`: of its entry in the file. `annotated`: height, width by the annotations; 0: unknown.
`size`: height, width of the image in which the boxes are; `build_index` fills it in.
"""
_REST = (("crowd", "<i1"), ("xyxy", "<f8", 4), ("area", "<f8"), ("place", "<i8"))
BOX = np.dtype([*((name, "<i8") for name in _IDS), *_REST])
"""`id`: the file's own, or NO_ID. `image`: row of the table of images. `outline`: its entry in the
recorder, or -1. `area`: in pixels; NaN: that of the box. `place`: of its entry in the file, from 0,
or line, from 1.
"""


@dataclass(kw_only=True)
class SplitRecords:
    """N images and M boxes as the files of a split have them, each valid by itself; `build_index`
    checks them against the image files.
    """

    source: Path
    root: Path  # from which `names` start
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    unused_parents: dict[str, int] = field(default_factory=dict)
    names: list[str]
    image_keys: Sequence[int | str]  # the file's own ids, where those of `images` may be others
    images: NDArray[Any]  # (N,) IMAGE
    boxes: NDArray[Any]  # (M,) BOX
    swapped: NDArray[np.bool_] | None = None  # (M,) of a file in x1 y1 x2 y2; by build_index
    label_files: list[Path] | None = None
    """Of each image; None: all boxes are in `source`."""
    relative: bool = False
    """Whether boxes and outlines are in units of their image's size, as in YOLO's lines."""
    outlines: OutlineRecorder
    masks: bool  # `outlines` are wanted, and has those of all boxes
    findings: Findings
    packed: PackedFiles | None = None  # where the images are, if not in files of their own

    def file(self, image: int) -> Path | PackedFile:
        """What an image is decoded of."""
        path = self.root / self.names[image]
        return path if self.packed is None else self.packed.get(image, path)

    def describe_box(self, row: int, found: str) -> Description:
        """Where a box stands, for a finding: file, record, what was found, place in the file."""
        box = self.boxes[row]
        image, at, identity = int(box["image"]), int(box["place"]), int(box["id"])
        if self.label_files is not None:
            who = f"line {at}" if self.relative else f"{self.names[image]}, object {at}"
            return self.label_files[image], who, found, at
        who = f"annotation number {at}" if identity < 0 else f"annotation id {identity}"
        return self.source, f"{who} ({self.names[image]})", found, at

    def describe_image(self, image: int, found: str) -> Description:
        who = f"{self.names[image]} (image id {self.image_keys[image]})"
        return self.source, who, found, int(self.images["place"][image])
