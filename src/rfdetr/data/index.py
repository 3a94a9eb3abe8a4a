"""One split of a dataset as a few NumPy arrays: what every format is translated to before training
starts.

Built once, in the main process, with every check that needs no pixels; forked workers share the
arrays, spawned ones get a cheap copy: about 30 bytes a box and 80 an image.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.box_checks import (
    apart,
    as_written,
    box_faults,
    has_area,
    odd_areas,
    proved_right,
    repeated_boxes,
    xyxy_boxes,
)
from rfdetr.data.findings import SHOWN, DatasetError, Description, Findings
from rfdetr.data.ids import Key
from rfdetr.data.images import ImageError, read_header, turned_points
from rfdetr.data.segmentations import OutlineRecorder, Segmentations
from rfdetr.geometry.polygons import Segmentation

logger = logging.getLogger(__name__)

_MOST, _PATTERN = (
    0.5,
    3,
)  # of a split's outlines, and in all: if more are apart from their boxes, the file is at fault
_CHUNK = 512  # files a thread reads the headers of in one go


@dataclass(frozen=True)
class DatasetIndex:
    """N images and their M boxes; the boxes of image i are rows `offsets[i]` to `offsets[i + 1]`.

    Boxes are xyxy in pixels of the upright image, inside it and with an area. Labels count from 0
    in the order of `class_names`; `category_ids` are the ids the files use for them.
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
    outlines: Segmentations | None = None  # of the boxes, where a segmentation model asked for them

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, image: int) -> Path:
        """File of an image."""
        name = self.name_bytes[self.name_offsets[image] : self.name_offsets[image + 1]]
        return self.root / os.fsdecode(name.tobytes())

    def rows(self, image: int) -> slice:
        """Rows of an image's boxes."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def outlines_of(self, image: int, rows: slice | NDArray[np.int64]) -> list[Segmentation | None]:
        """Segmentations of some of an image's boxes; an empty list where none were asked for."""
        if self.outlines is None:
            return []
        height, width = self.sizes[image].tolist()
        places = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
        return [self.outlines.get(row, (height, width)) for row in places]

    def fingerprint(self) -> str:
        """SHA-256 of the labels: classes, file names, sizes, boxes and outlines; pixels are not
        read.
        """
        arrays = [
            self.name_bytes,
            self.name_offsets,
            self.sizes,
            self.offsets,
            self.boxes,
            self.labels,
            self.crowd,
        ]
        if self.outlines is not None:
            arrays += vars(self.outlines).values()
        names = "\0".join(self.class_names).encode(errors="surrogatepass")
        return _sha256(names, *(np.ascontiguousarray(array) for array in arrays))

    def facts(self) -> dict[str, Any]:
        """What tells a changed split: its images, boxes by class, and digests of names and labels."""
        counts = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return {
            "images": len(self),
            "boxes": dict(zip(self.class_names, counts, strict=True)),
            "names": _sha256(self.name_bytes, self.name_offsets),
            "labels": self.fingerprint(),
        }

    def with_classes(self, class_names: tuple[str, ...], whose: str) -> DatasetIndex:
        """The same split with labels in the order of `class_names`, which must be its own classes;
        `whose` they are.
        """
        if class_names == self.class_names:
            return self
        ids = self.unused_parents | dict(
            zip(self.class_names, self.category_ids.tolist(), strict=True)
        )
        missing = [name for name in class_names if name not in ids]
        extra = [name for name in self.class_names if name not in class_names]
        if missing or extra:
            raise DatasetError(
                f"{self.source}: its classes are not those of {whose}: only in {whose}: {missing or 'none'}; "
                f"only here: {extra or 'none'}. Give both the same list of categories (a category may be without boxes)"
            )
        new_label = np.array([class_names.index(name) for name in self.class_names], np.int64)
        category_ids = np.array([ids[name] for name in class_names], np.int64)
        return replace(
            self, class_names=class_names, category_ids=category_ids, labels=new_label[self.labels]
        )


@dataclass(kw_only=True)
class SplitRecords:
    """What a reader found in the files of one split, each record valid by itself; `build_index`
    finishes it.
    """

    source: Path
    root: Path
    class_names: tuple[str, ...]
    category_ids: NDArray[np.int64]
    names: list[str]
    image_ids: NDArray[np.int64]
    image_keys: list[Key] | None = None  # the file's own ids, where `image_ids` may be others
    image_places: NDArray[np.int64] | None = (
        None  # of the image's entry in `source`; None: it has none
    )
    label_files: list[Path] | None = None  # of each image; None: all boxes are in `source`
    annotated_sizes: NDArray[np.int64] | None = (
        None  # (N, 2) height, width as the annotations have it; 0: unknown
    )
    image_of_box: NDArray[np.int64]
    boxes: NDArray[np.float64]  # (M, 4) xyxy
    relative: bool  # boxes are in units of the image's size
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]  # pixels; NaN: the box's own
    box_places: NDArray[np.int64]  # entry (from 0) or line (from 1) in the box's file
    box_ids: NDArray[np.int64] | None = None  # the file's own; -1: none
    outlines: OutlineRecorder | None = None  # of the boxes, if asked for
    outline_bounds: NDArray[np.float32] | None = (
        None  # (M, 4) xyxy of the outlines; NaN: none, or not looked at
    )
    sizes: NDArray[np.int64] | None = (
        None  # (N, 2) height, width of the images in which the boxes are; by build_index
    )
    xyxy: NDArray[np.bool_] | None = None  # boxes of a file in x1 y1 x2 y2; by build_index
    unused_parents: dict[str, int] = field(default_factory=dict)
    findings: Findings = field(default_factory=lambda: Findings(SHOWN))

    def describe_box(self, row: int, found: str) -> Description:
        """Where a box stands, for a finding: file, record, what was found, place in the file."""
        image, at = int(self.image_of_box[row]), int(self.box_places[row])
        if self.label_files is not None:
            return self.label_files[image], f"line {at}", found, at
        identity = -1 if self.box_ids is None else int(self.box_ids[row])
        who = f"annotation number {at}" if identity < 0 else f"annotation id {identity}"
        return self.source, f"{who} ({self.names[image]})", found, at

    def describe_image(self, image: int, found: str) -> Description:
        """The same of an image."""
        at = image if self.image_places is None else int(self.image_places[image])
        identity = self.image_ids[image] if self.image_keys is None else self.image_keys[image]
        return self.source, f"{self.names[image]} (image id {identity})", found, at


def build_index(
    records: SplitRecords, *, lenient: bool = False, masks: bool = True
) -> DatasetIndex:
    """Check the image files, bring boxes to pixels inside their upright image, order them by image.

    Errors of the records and of the files are raised; `lenient` leaves them, and what they are
    about, to the caller. Without `masks`, objects without an outline are no findings.
    """
    sizes, turns = _image_sizes(records)
    boxes, kept = _boxes_inside(records)
    outlines = _usable_outlines(records, boxes, masks)
    if (turns > 1).any():
        boxes, outlines = _upright(
            boxes, outlines, turns[records.image_of_box], sizes[records.image_of_box]
        )
    if not lenient:
        records.findings.stop_on_errors(records.source)
        records.findings.log(logger, records.source)
    order = kept[np.argsort(records.image_of_box[kept], kind="stable")]
    counts = np.bincount(records.image_of_box[order], minlength=len(records.names))
    boxes = boxes[order]
    areas = records.areas[order]
    box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    encoded = [os.fsencode(name) for name in records.names]  # names need not be UTF-8
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
        outlines=None if outlines is None else outlines.take(order),
    )


def is_file_name(name: object) -> bool:
    """Whether a value can name a file: text without NUL that a file system can store."""
    try:
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def leaves(folder: Path, path: Path) -> bool:
    """Whether a path is outside a folder, by its text."""
    return not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _sha256(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _image_sizes(records: SplitRecords) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read every header: upright sizes (N, 2) as height, width, 0 where there is none; and how
    boxes are to be turned.

    Boxes belong to the upright image, unless the annotated size is that of the stored one and
    differs: `turns` (N,) is then the EXIF orientation, 5 to 8, else 1.
    """
    chunks = [records.names[i : i + _CHUNK] for i in range(0, len(records.names), _CHUNK)]
    with ThreadPoolExecutor(8) as pool:  # hides the latency of network and spinning disks
        found = list(
            chain.from_iterable(pool.map(lambda chunk: _headers(records.root, chunk), chunks))
        )
    headers = np.array(found, np.int64).reshape(-1, 4)
    sizes, orientation = headers[:, :2], headers[:, 2]
    stored = np.where(orientation[:, None] >= 5, sizes[:, ::-1], sizes)
    annotated = sizes if records.annotated_sizes is None else records.annotated_sizes
    known = (annotated > 0).all(1) & (sizes > 0).all(1)
    differs = known & (annotated != sizes).any(1)
    sideways = differs & (annotated == stored).all(1)
    turns = np.where(sideways, orientation, 1)
    records.sizes = np.where(sideways[:, None], stored, sizes).clip(min=0)
    rules: dict[str, tuple[NDArray[np.bool_], Callable[[int], str]]] = {
        "image-missing": (sizes[:, 0] == _MISSING, lambda _: f"not in {records.root}"),
        "image-unreadable": (
            sizes[:, 0] == _UNREADABLE,
            lambda i: _why_unreadable(records.root / records.names[i]),
        ),
        "image-size-differs": (
            differs & ~sideways,
            lambda i: f"is {_text(sizes[i])}, annotated as {_text(annotated[i])}",
        ),
        "image-boxes-turned": (
            sideways,
            lambda i: f"annotated as {_text(stored[i])}, EXIF orientation {orientation[i]}",
        ),
        "image-turned": (
            (orientation > 1) & ~sideways,
            lambda i: f"EXIF orientation {orientation[i]}",
        ),
        "image-deep": (headers[:, 3] > 0, lambda _: "more than 8 bits"),
    }
    for rule, (which, text) in rules.items():
        rows = np.flatnonzero(which).tolist()
        records.findings.add_rows(rule, rows, functools.partial(_describe_image, records, text))
    return np.maximum(sizes, 0), turns


def _describe_image(records: SplitRecords, text: Callable[[int], str], image: int) -> Description:
    return records.describe_image(image, text(image))


_MISSING, _UNREADABLE = 0, -1  # in place of a height


def _text(size: NDArray[np.int64]) -> str:
    return f"{size[1]}x{size[0]}"


def _headers(root: Path, names: list[str]) -> list[tuple[int, int, int, bool]]:
    """Upright height, width, orientation and depth of each file, or why there is none."""
    found = []
    for name in names:
        try:
            header = read_header(root / name)
        except FileNotFoundError:
            found.append((_MISSING, 0, 0, False))
        except (ImageError, OSError):
            found.append((_UNREADABLE, 0, 0, False))
        else:
            found.append((*header.upright_size, header.orientation, header.deep))
    return found


def _why_unreadable(path: Path) -> str:
    try:
        read_header(path)
    except (ImageError, OSError) as error:
        return str(error)
    return "readable now"


def _boxes_inside(records: SplitRecords) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes in pixels clipped to their image, and the rows with an area; what is odd of them is a
    finding.

    Where a file's boxes are x1 y1 x2 y2, which is an error, they are judged as such.
    """
    assert records.sizes is not None
    limits = records.sizes[records.image_of_box][:, [1, 0, 1, 0]].astype(
        np.float64
    )  # (M, 4): width, height twice
    boxes = records.boxes * limits if records.relative else records.boxes
    likely = np.zeros(len(boxes), np.bool_)
    if not records.relative:
        likely, xyxy = xyxy_boxes(
            boxes, limits, proved_right(boxes, records.areas, records.outline_bounds)
        )
        if xyxy.any():
            found = f"{int(likely.sum())} of {len(boxes)} boxes reach far outside, {int(xyxy.sum())} fit as x1 y1 x2 y2"
            records.findings.add("boxes-xyxy", records.source, "", found)
            boxes, records.xyxy = np.where(xyxy[:, None], as_written(boxes), boxes), xyxy
            likely[:] = False
    clipped = np.clip(boxes, 0, limits).astype(
        np.float32
    )  # before the check: rounding may take the last of an area
    faults = box_faults(boxes, clipped, limits)
    faults["box-likely-xyxy"] = likely
    faults["box-clipped"] &= ~likely
    faults["box-outside"] &= ~likely
    faults["box-repeated"] = repeated_boxes(records.image_of_box, records.boxes)
    faults["box-area"] = odd_areas(records.areas, boxes)
    faults["crowd"] = records.crowd

    def describe(row: int) -> Description:
        x, y, right, bottom = boxes[row]
        size = f"{limits[row, 0]:g}x{limits[row, 1]:g}"
        found = f"x {x:g}, y {y:g}, width {right - x:g}, height {bottom - y:g} in {size} pixels"
        area = "" if np.isnan(records.areas[row]) else f", area {records.areas[row]:g}"
        return records.describe_box(
            row, f"{found}{area}, class {records.class_names[records.labels[row]]}"
        )

    for rule, which in faults.items():
        records.findings.add_rows(rule, np.flatnonzero(which).tolist(), describe)
    return clipped, np.flatnonzero(has_area(clipped))


def _upright(
    boxes: NDArray[np.float32],
    outlines: Segmentations | None,
    turns: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.float32], Segmentations | None]:
    """Boxes (M, 4) and outlines of stored images in the upright ones of `sizes` (M, 2); `turns`
    (M,): EXIF's, or 1.
    """
    for turn in range(5, 9):
        rows = np.flatnonzero(turns == turn)
        first, second = (
            turned_points(boxes[rows, at : at + 2], turn, sizes[rows]) for at in (0, 2)
        )
        boxes[rows] = np.concatenate((np.minimum(first, second), np.maximum(first, second)), axis=1)
    return boxes, None if outlines is None else outlines.turned(turns, sizes)


def _usable_outlines(
    records: SplitRecords, boxes: NDArray[np.float32], tell_missing: bool
) -> Segmentations | None:
    """Segmentations in pixels, if asked for; those apart from their boxes, inside the images, are
    findings.

    So are, if it is to be told, the objects without one, and that there is none at all.
    """
    recorder = records.outlines
    if recorder is None or records.sizes is None:
        return None
    outlines = recorder.build(records.sizes[records.image_of_box], records.relative)
    if records.outline_bounds is not None:
        _check_places(records, boxes, outlines.entries >= 0)
    if not tell_missing:
        return outlines
    without = np.flatnonzero(outlines.entries < 0)
    for row in without.tolist():
        rule, found = recorder.fault(row)
        records.findings.add_rows(rule, [row], functools.partial(records.describe_box, found=found))
    if len(without) and len(without) == len(outlines.entries):
        found = (
            f"{len(without)} objects, none with a usable outline; the first: {recorder.fault(0)[1]}"
        )
        records.findings.add("outlines-none", records.source, "", found)
    return outlines


def _check_places(
    records: SplitRecords, boxes: NDArray[np.float32], outlined: NDArray[np.bool_]
) -> None:
    """Findings on boxes whose usable outlines show another place."""
    assert records.sizes is not None and records.outline_bounds is not None
    bounds = np.clip(
        records.outline_bounds, 0, records.sizes[records.image_of_box][:, [1, 0, 1, 0]]
    )
    places = outlined & has_area(boxes)
    rows = np.flatnonzero(places & apart(boxes, bounds))

    def describe(row: int) -> Description:
        box, outline = (
            ", ".join(f"{side:g}" for side in xyxy)
            for xyxy in (boxes[row].tolist(), bounds[row].tolist())
        )
        return records.describe_box(row, f"box x1 y1 x2 y2 {box}, outline {outline}")

    records.findings.add_rows("outline-apart", rows.tolist(), describe)
    if len(rows) >= _PATTERN and len(rows) > _MOST * places.sum():
        found = f"{len(rows)} of {int(places.sum())} objects"
        records.findings.add("outlines-apart", records.source, "", found)
