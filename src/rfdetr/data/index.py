"""One split of a dataset as a few NumPy arrays: what every format is translated to before training starts.

Built once, in the main process, with every check that needs no pixels; forked workers share the arrays, spawned ones
get a cheap copy: about 30 bytes a box and 80 an image.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.images import ImageError, read_header

logger = logging.getLogger(__name__)

SHOWN = 10  # records an error message lists; it gives the count of the rest
_CHUNK = 512  # files a thread reads the headers of in one go
_CLIP_TOLERANCE = 0.01  # pixels outside the image that are rounding and not worth a note


class DatasetError(ValueError):
    """A fault of the dataset; the message names file and record, what was found, expected, and what to do."""


@dataclass(frozen=True)
class DatasetIndex:
    """N images and their M boxes; the boxes of image i are rows `offsets[i]` to `offsets[i + 1]`.

    Boxes are xyxy in pixels of the upright image, inside it and with an area. Labels count from 0 in the order of
    `class_names`; `category_ids` are the ids the files use for them.
    """

    source: Path
    root: Path
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    unused_parents: dict[str, int]
    name_bytes: NDArray[np.uint8]
    name_offsets: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, image: int) -> Path:
        """File of an image."""
        name = self.name_bytes[self.name_offsets[image] : self.name_offsets[image + 1]]
        return self.root / name.tobytes().decode()

    def rows(self, image: int) -> slice:
        """Rows of an image's boxes."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def with_classes(self, class_names: tuple[str, ...], whose: str) -> DatasetIndex:
        """The same split with labels in the order of `class_names`, which must be its own classes; `whose` they are."""
        if class_names == self.class_names:
            return self
        ids = self.unused_parents | dict(zip(self.class_names, self.category_ids.tolist(), strict=True))
        missing = [name for name in class_names if name not in ids]
        extra = [name for name in self.class_names if name not in class_names]
        if missing or extra:
            raise DatasetError(
                f"{self.source}: its classes are not those of {whose}: only in {whose}: {missing or 'none'}; "
                f"only here: {extra or 'none'}. Give both the same list of categories (a category may be without boxes)"
            )
        new_label = np.array([class_names.index(name) for name in self.class_names], np.int64)
        category_ids = np.array([ids[name] for name in class_names], np.int64)
        return replace(self, class_names=class_names, category_ids=category_ids, labels=new_label[self.labels])


@dataclass(kw_only=True)
class SplitRecords:
    """What a reader found in the files of one split, each record valid by itself; `build_index` finishes it."""

    source: Path
    root: Path
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    names: list[str]
    image_ids: NDArray[np.int64]
    annotated_sizes: NDArray[np.int64] | None = None  # (N, 2) height, width as the annotations have it; 0: unknown
    image_of_box: NDArray[np.int64]
    boxes: NDArray[np.float64]  # (M, 4) xyxy
    relative: bool  # boxes are in units of the image's size
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]  # pixels; NaN: the box's own
    unused_parents: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_index(records: SplitRecords) -> DatasetIndex:
    """Check the image files, bring boxes to pixels inside their image, order them by image."""
    sizes, rotated = _image_sizes(records)
    boxes, kept, changes = _boxes_inside(records, sizes)
    changes = [*_rotation_notes(rotated), *changes]
    for level, notes in ((logging.INFO, records.notes), (logging.WARNING, changes)):
        for note in notes:
            logger.log(level, "%s: %s", records.source, note)
    order = kept[np.argsort(records.image_of_box[kept], kind="stable")]
    counts = np.bincount(records.image_of_box[order], minlength=len(records.names))
    boxes = boxes[order]
    areas = records.areas[order]
    box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    encoded = [name.encode() for name in records.names]
    return DatasetIndex(
        source=records.source,
        root=records.root,
        class_names=records.class_names,
        category_ids=records.category_ids,
        unused_parents=records.unused_parents,
        name_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        name_offsets=_offsets(np.array([len(name) for name in encoded])),
        image_ids=records.image_ids,
        sizes=sizes.astype(np.int32),
        offsets=_offsets(counts),
        boxes=boxes,
        labels=records.labels[order],
        crowd=records.crowd[order],
        areas=np.where(np.isnan(areas), box_areas, areas).astype(np.float32),
        notes=(*records.notes, *changes),
    )


def listed(records: list[str]) -> str:
    """The first records of a list for an error message, and how many more there are."""
    more = f", and {len(records) - SHOWN} more" if len(records) > SHOWN else ""
    return ", ".join(records[:SHOWN]) + more


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _image_sizes(records: SplitRecords) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read every header: upright sizes (N, 2) as height, width, and which images are stored rotated or mirrored."""
    chunks = [records.names[i : i + _CHUNK] for i in range(0, len(records.names), _CHUNK)]
    with ThreadPoolExecutor(8) as pool:  # hides the latency of network and spinning disks
        headers = np.array(list(chain.from_iterable(pool.map(lambda chunk: _headers(records.root, chunk), chunks))))
    _refuse_unreadable(records, headers[:, 0])
    sizes, rotated, stored = headers[:, :2], headers[:, 2] != 1, headers[:, :2].copy()
    transposed = headers[:, 2] >= 5
    stored[transposed] = stored[transposed][:, ::-1]
    annotated = records.annotated_sizes
    if annotated is not None:
        known = (annotated > 0).all(1)
        wrong = known & (annotated != sizes).any(1) & (annotated != stored).any(1)
        if wrong.any():
            found = [
                f"{records.names[i]} (image id {records.image_ids[i]}) is {sizes[i, 1]}x{sizes[i, 0]}, "
                f"annotated as {annotated[i, 1]}x{annotated[i, 0]}"
                for i in np.flatnonzero(wrong).tolist()
            ]
            raise DatasetError(
                f"{records.source}: {len(found)} images have another width x height than their annotations say, so "
                f"boxes would not fit: {listed(found)}. Export again, or correct width, height and boxes"
            )
    return sizes, rotated


_MISSING, _UNREADABLE = 0, -1  # in place of a height


def _headers(root: Path, names: list[str]) -> list[tuple[int, int, int]]:
    """Upright height, width and orientation of each file, or why there is none."""
    found = []
    for name in names:
        try:
            header = read_header(root / name)
        except FileNotFoundError:
            found.append((_MISSING, 0, 0))
        except (ImageError, OSError):
            found.append((_UNREADABLE, 0, 0))
        else:
            found.append((*header.upright_size, header.orientation))
    return found


def _refuse_unreadable(records: SplitRecords, heights: NDArray[np.int64]) -> None:
    for code, what, advice in (
        (_MISSING, "do not exist", "Put the files there, or remove their records"),
        (_UNREADABLE, "cannot be read as images", "Replace or remove them"),
    ):
        images = np.flatnonzero(heights == code).tolist()
        names = [f"{records.names[i]} (image id {records.image_ids[i]})" for i in images]
        if names:
            reason = "" if code == _MISSING else f" ({_why_unreadable(records.root / records.names[images[0]])})"
            raise DatasetError(
                f"{records.source}: {len(names)} of {len(records.names)} image files {what} in {records.root}: "
                f"{listed(names)}{reason}. {advice}"
            )


def _why_unreadable(path: Path) -> str:
    try:
        read_header(path)
    except (ImageError, OSError) as error:
        return str(error)
    return "readable now"


def _rotation_notes(rotated: NDArray[np.bool_]) -> list[str]:
    count = int(rotated.sum())
    if not count:
        return []
    return [
        f"{count} of {len(rotated)} images are stored rotated or mirrored (EXIF orientation) and are turned upright; "
        "their boxes are taken to fit the upright image"
    ]


def _boxes_inside(
    records: SplitRecords, sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Boxes in pixels clipped to their image, the rows with an area, and notes on what was changed."""
    limits = sizes[records.image_of_box][:, [1, 0, 1, 0]].astype(np.float64)  # (M, 4): width, height twice
    boxes = records.boxes * limits if records.relative else records.boxes
    clipped = np.clip(boxes, 0, limits).astype(np.float32)  # before the check: rounding may take the last of an area
    has_area = (clipped[:, 2:] > clipped[:, :2]).all(1)
    moved = has_area & (np.abs(clipped - boxes) > _CLIP_TOLERANCE).any(1)
    notes = []
    for which, text in (
        (~has_area, "have no area inside their image and are skipped"),
        (moved, "reach outside their image and are clipped to it"),
    ):
        rows = np.flatnonzero(which)
        if len(rows):
            first = records.names[records.image_of_box[rows[0]]]
            notes.append(f"{len(rows)} of {len(boxes)} boxes {text} (the first: {first})")
    return clipped, np.flatnonzero(has_area), notes
