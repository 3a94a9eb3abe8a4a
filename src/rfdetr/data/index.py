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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.data import box_checks
from rfdetr.data.findings import DatasetError, Description
from rfdetr.data.images import ImageError, read_header, turned_points
from rfdetr.data.packs import PackedFile, PackedFiles
from rfdetr.data.records import SplitRecords
from rfdetr.data.segmentations import Segmentations
from rfdetr.geometry.polygons import Crop, Segmentation

logger = logging.getLogger(__name__)

# Of a split's outlines, and in all: if more are apart from their boxes, the file is at fault.
_MOST, _PATTERN = 0.5, 3
_CHUNK = 512  # files a thread reads the headers of in one go
_MISSING, _UNREADABLE = 0, -1  # in place of a height


class Tiles(NamedTuple):
    """Where an index of tiles has its N images from, and which of the M boxes are slivers."""

    files: NDArray[np.int64]  # (N,) number of the image of which it is a part
    windows: NDArray[np.int32]  # (N, 4) xyxy in that image
    sizes: NDArray[np.int32]  # height, width of those images
    slivers: NDArray[np.bool_]  # (M,) so much cut off that the object is not asked for


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
    tiles: Tiles | None = None  # if its images are parts of files; outlines are then of the files
    packed: PackedFiles | None = None  # where the files are, if not by themselves

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, image: int) -> Path:
        return self.root / self.file_name(image)

    def file_name(self, image: int) -> str:
        """Its file as the annotations name it, from the root."""
        image = image if self.tiles is None else int(self.tiles.files[image])
        name = self.name_bytes[self.name_offsets[image] : self.name_offsets[image + 1]]
        return os.fsdecode(name.tobytes())

    def file(self, image: int) -> Path | PackedFile:
        """What is decoded; of a tile, the whole."""
        path, number = self.path(image), image if self.tiles is None else self.tiles.files[image]
        return path if self.packed is None else self.packed.get(int(number), path)

    def name(self, image: int) -> str:
        """Its path from the root, as the annotations have it, and which part of the file it is."""
        path = str(self.path(image).relative_to(self.root))
        return path if self.tiles is None else f"{path} {self.tiles.windows[image].tolist()}"

    def shown_of(self, image: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image itself in what its file holds."""
        if self.tiles is None:
            return pixels
        left, top, right, bottom = self.tiles.windows[image].tolist()
        return pixels[top:bottom, left:right]

    def rows(self, image: int) -> slice:
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def outlines_of(self, image: int, rows: slice | NDArray[np.int64]) -> list[Segmentation | None]:
        """Segmentations of some of an image's boxes; an empty list where none were asked for."""
        if self.outlines is None:
            return []
        entries, tiles = self.outlines.entries[rows].tolist(), self.tiles
        if tiles is None:
            height, width = self.sizes[image].tolist()
            return [self.outlines.get(entry, height, width) for entry in entries]
        height, width = tiles.sizes[tiles.files[image]].tolist()
        window = Crop(*tiles.windows[image].tolist())
        whole = [self.outlines.get(entry, height, width) for entry in entries]
        return [outline and outline.cut(window) for outline in whole]

    def fingerprint(self) -> str:
        """SHA-256 of the labels: classes, file names, sizes, boxes, outlines; of pixels nothing."""
        names = "\0".join(self.class_names).encode(errors="surrogatepass")
        arrays = [self.name_bytes, self.name_offsets, self.sizes, self.offsets]
        arrays += [self.boxes, self.labels, self.crowd, *(self.tiles or ())]
        outlines = [] if self.outlines is None else vars(self.outlines).values()
        return _sha256(names, *map(np.ascontiguousarray, [*arrays, *outlines]))

    def facts(self) -> dict[str, Any]:
        """What tells a changed split: images, boxes by class, digests of names and labels."""
        counts = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        boxes = dict(zip(self.class_names, counts, strict=True))
        names, labels = _sha256(self.name_bytes, self.name_offsets), self.fingerprint()
        return {"images": len(self), "boxes": boxes, "names": names, "labels": labels}

    def with_classes(self, class_names: tuple[str, ...], whose: str) -> DatasetIndex:
        """The same split with labels in the order of `class_names`, which are those of `whose` and
        must be its own classes; a `DatasetError` tells the difference.
        """
        if class_names == self.class_names:
            return self
        own = dict(zip(self.class_names, self.category_ids.tolist(), strict=True))
        ids = self.unused_parents | own
        missing = [name for name in class_names if name not in ids]
        extra = [name for name in self.class_names if name not in class_names]
        if missing or extra:
            differ = f"only in {whose}: {missing or 'none'}; only here: {extra or 'none'}"
            found = f"its classes are not those of {whose}: {differ}. Give both the same list of"
            raise DatasetError(f"{self.source}: {found} categories (one may be without boxes)")
        labels = np.array([class_names.index(name) for name in self.class_names])[self.labels]
        category_ids = np.array([ids[name] for name in class_names], np.int64)
        return replace(self, class_names=class_names, category_ids=category_ids, labels=labels)


def build_index(
    records: SplitRecords, *, lenient: bool = False, masks: bool | None = True
) -> DatasetIndex:
    """Check the image files, bring boxes to pixels inside their upright image, order them by image.

    Errors of the records and of the files are raised; `lenient` leaves them, and what they are
    about, to the caller. Without `masks`, objects without an outline are no findings. With None, no
    outlines are: unsound ones are left out.
    """
    table, image = records.boxes, records.boxes["image"]
    sizes, turns = _read_sizes(records)
    bounds = records.outlines.bounds()[table["outline"]]
    boxes = _boxes_inside(records, bounds)
    kept = np.flatnonzero(box_checks.has_area(boxes))
    outlines = _usable_outlines(records, boxes, bounds, masks) if records.masks else None
    for turn in np.unique(turns[turns > 1]).tolist():
        rows = np.flatnonzero(turns[image] == turn)
        upright = sizes[image[rows]]
        ends = [turned_points(boxes[rows, at : at + 2], turn, upright) for at in (0, 2)]
        boxes[rows] = np.concatenate((np.minimum(*ends), np.maximum(*ends)), axis=1)
    if outlines is not None and (turns > 1).any():
        outlines = outlines.turned(turns[image], sizes[image])
    if not lenient:
        records.findings.stop_on_errors(records.source)
        records.findings.log(logger, records.source)
    order = kept[np.argsort(image[kept], kind="stable")]
    if outlines is not None:
        outlines = replace(outlines, entries=outlines.entries[order])
    boxes, areas = boxes[order], table["area"][order]
    own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    encoded = [os.fsencode(name) for name in records.names]  # names need not be UTF-8
    return DatasetIndex(
        source=records.source,
        root=records.root,
        class_names=records.class_names,
        category_ids=records.category_ids,
        unused_parents=records.unused_parents,
        name_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        name_offsets=np.cumsum([0, *map(len, encoded)]),
        image_ids=records.images["id"].copy(),
        sizes=sizes.astype(np.int32),
        offsets=np.cumsum([0, *np.bincount(image[order], minlength=len(sizes))]),
        boxes=boxes,
        labels=table["label"][order],
        crowd=table["crowd"][order] == 1,
        areas=np.where(np.isnan(areas), own, areas).astype(np.float32),
        outlines=outlines,
        packed=records.packed,
    )


def _read_sizes(records: SplitRecords) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read every header: upright sizes (N, 2) height, width, 0 where there is none, and `turns`
    (N,), the EXIF orientation from which the boxes of an image are to be turned, or 1.

    Boxes belong to the upright image, unless the annotated size is that of the stored one and
    differs: then the orientation, 5 to 8, is in `turns`.
    """
    names, reasons = records.names, dict[str, str]()  # why files cannot be read
    if records.packed is not None:
        headers = records.packed.rows["header"].astype(np.int64)
    else:
        read = functools.partial(_headers, records.root, reasons)
        chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
        with ThreadPoolExecutor(8) as pool:  # hides the latency of network and spinning disks
            found = chain.from_iterable(pool.map(read, chunks))
            headers = np.array([*found], np.int64).reshape(-1, 4)
    sizes, orientation = headers[:, :2], headers[:, 2]
    stored = np.where(orientation[:, None] >= 5, sizes[:, ::-1], sizes)
    annotated = records.images["annotated"]
    known = (annotated > 0).all(1) & (sizes > 0).all(1)
    differs = known & (annotated != sizes).any(1)
    sideways = differs & (annotated == stored).all(1)
    records.images["size"] = np.where(sideways[:, None], stored, sizes).clip(min=0)
    rules = {
        "image-missing": (sizes[:, 0] == _MISSING, "{reason}"),
        "image-unreadable": (sizes[:, 0] == _UNREADABLE, "{reason}"),
        "image-size-differs": (differs & ~sideways, "is {upright}, annotated as {annotated}"),
        "image-boxes-turned": (sideways, "annotated as {annotated}, EXIF orientation {turn}"),
        "image-turned": ((orientation > 1) & ~sideways, "EXIF orientation {turn}"),
        "image-deep": (headers[:, 3] > 0, "more than 8 bits"),
    }

    def describe(text: str, image: int) -> Description:
        upright, written = (f"{size[1]}x{size[0]}" for size in (sizes[image], annotated[image]))
        facts = {"upright": upright, "annotated": written, "turn": orientation[image]}
        found = text.format(**facts, reason=reasons.get(names[image]))
        return records.describe_image(image, found)

    for rule, (marked, text) in rules.items():
        records.findings.add_rows({rule: marked}, functools.partial(describe, text))
    return np.maximum(sizes, 0), np.where(sideways, orientation, 1)


def _headers(root: Path, reasons: dict[str, str], names: list[str]) -> list[tuple[int, ...]]:
    """Upright height, width, orientation and depth of each file; `reasons` gets why it has none."""
    found: list[tuple[int, ...]] = []
    for name in names:
        try:
            header = read_header(root / name)
            found.append((*header.upright_size, header.orientation, header.deep))
        except (ImageError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            found.append((_MISSING if missing else _UNREADABLE, 0, 0, 0))
            reasons[name] = f"not in {root}" if missing else str(error)
    return found


def _boxes_inside(records: SplitRecords, bounds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes in pixels clipped to the image in which they are; what is odd of them is a finding.

    Where a file's boxes are x1 y1 x2 y2, which is an error, they are judged as such: `bounds` (M,
    4) of the outlines, NaN for none, help to tell.
    """
    table, findings = records.boxes, records.findings
    limits = records.images["size"][table["image"]][:, [1, 0, 1, 0]].astype(np.float64)
    boxes, likely = table["xyxy"], np.zeros(len(table), np.bool_)
    if records.relative:
        boxes = boxes * limits
    else:
        right = box_checks.proved_right(boxes, table["area"], bounds)
        likely, swapped = box_checks.xyxy_boxes(boxes, limits, right)
        if swapped.any():
            far = f"{likely.sum()} of {len(boxes)} boxes reach far outside"
            found = f"{far}, {swapped.sum()} fit as x1 y1 x2 y2"
            findings.add("boxes-xyxy", records.source, "", found)
            boxes = np.where(swapped[:, None], box_checks.as_written(boxes), boxes)
            records.swapped, likely = swapped, np.zeros_like(likely)
    # In single precision before the check: rounding may take the last of an area.
    clipped: NDArray[np.float32] = np.clip(boxes, 0, limits).astype(np.float32)
    faults = box_checks.box_faults(boxes, clipped, limits)
    faults["box-clipped"] &= ~likely
    faults["box-outside"] &= ~likely
    faults |= {
        "box-likely-xyxy": likely,
        "box-repeated": box_checks.repeated_boxes(table["image"], table["xyxy"]),
        "box-area": box_checks.odd_areas(table["area"], boxes),
        "crowd": table["crowd"] == 1,
    }

    def describe(row: int) -> Description:
        (x, y, right, bottom), (width, height) = boxes[row], limits[row, :2]
        found = f"x {x:g}, y {y:g}, width {right - x:g}, height {bottom - y:g}"
        area, name = table["area"][row], records.class_names[table["label"][row]]
        written = "" if np.isnan(area) else f", area {area:g}"
        found += f" in {width:g}x{height:g} pixels{written}, class {name}"
        return records.describe_box(row, found)

    findings.add_rows(faults, describe)
    return clipped


def _usable_outlines(
    records: SplitRecords,
    boxes: NDArray[np.float32],
    bounds: NDArray[np.float32],
    masks: bool | None,
) -> Segmentations:
    """Segmentations in pixels; those whose `bounds` (M, 4) show another place than their box,
    inside the images, are findings, and so are the objects without one, where `masks` are needed;
    None: they are left out, and nothing is told.
    """
    table, findings, recorder = records.boxes, records.findings, records.outlines
    sizes = records.images["size"][table["image"]]
    outlines = recorder.build(table["outline"], sizes, records.relative)
    if not records.relative:
        bounds = np.clip(bounds, 0, sizes[:, [1, 0, 1, 0]])
        shown = (outlines.entries >= 0) & box_checks.has_area(boxes)
        elsewhere = shown & box_checks.apart(boxes, bounds)

        def describe(row: int) -> Description:
            box, outline = (", ".join(f"{x:g}" for x in sides[row]) for sides in (boxes, bounds))
            return records.describe_box(row, f"box x1 y1 x2 y2 {box}, outline {outline}")

        if masks is None:
            return replace(outlines, entries=np.where(elsewhere, -1, outlines.entries))
        findings.add_rows({"outline-apart": elsewhere}, describe)
        if elsewhere.sum() >= _PATTERN and elsewhere.sum() > _MOST * shown.sum():
            found = f"{elsewhere.sum()} of {shown.sum()} objects"
            findings.add("outlines-apart", records.source, "", found)
    without = np.flatnonzero((outlines.entries < 0) & bool(masks))
    none = ("outline-missing", "no outline")
    faults = [recorder.faults.get(entry, none) for entry in table["outline"][without].tolist()]
    for row, (rule, found) in zip(without.tolist(), faults, strict=True):
        findings.add(rule, *records.describe_box(row, found))
    if faults and len(faults) == len(table):
        found = f"{len(faults)} objects, none with a usable outline; the first: {faults[0][1]}"
        findings.add("outlines-none", records.source, "", found)
    return outlines


def _sha256(*parts: Any) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
