"""COCO annotation files. Labels count the classes from 0 in ascending order of their category ids.

So `content["categories"]` in ascending order, indexed by a predicted class id, is the category of the object; the
file's own ids stay in `category_ids`. A category that no box uses and that other categories name as their supercategory
(exports put a root with id 0 there) is no class and has no label.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.config.arguments import short
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.index import SplitRecords, is_file_name, leaves
from rfdetr.data.outlines import OutlineRecorder

_FIELDS = [(name, "<i8") for name in ("id", "image", "category")] + [("crowd", "<i1")]
_RECORD = np.dtype([*_FIELDS, ("x", "<f8"), ("y", "<f8"), ("w", "<f8"), ("h", "<f8"), ("area", "<f8")])
_PACK = struct.Struct("<3qb5d").pack  # the same layout; refuses what is no number
_NO_ID = -1
_ODD_CROWD = 2
_LARGEST_SIDE = 2**31


class _Annotations:
    """Packs annotations while the JSON parser meets them, so that a million never exist as dictionaries at once."""

    def __init__(self, outlines: OutlineRecorder | None = None) -> None:
        self.packed = bytearray()
        self.outlines = outlines

    def hook(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """None for an annotation that was packed, the record itself for anything else, faulty annotations included."""
        if "image_id" not in record or "category_id" not in record:
            return record
        try:
            x, y, w, h = record["bbox"]
            area, identity, crowd = record.get("area"), record.get("id"), record.get("iscrowd")
            self.packed += _PACK(
                identity if isinstance(identity, int) else _NO_ID,
                record["image_id"],
                record["category_id"],
                (1 if crowd == 1 else _ODD_CROWD) if crowd else 0,
                *(x, y, w, h),
                np.nan if area is None else area,
            )
        except (KeyError, TypeError, ValueError, OverflowError, struct.error):
            return record
        if self.outlines is not None:
            self.outlines.add(record.get("segmentation"))
        return None

    def table(self) -> NDArray[Any]:
        """The packed annotations as a structured array."""
        return np.frombuffer(self.packed, _RECORD)


def read_coco(path: Path, image_root: Path, findings: Findings | None = None, masks: bool = False) -> SplitRecords:
    """Read an annotation file whose `file_name`s start from `image_root`; faulty records go to `findings` instead."""
    findings = Findings(SHOWN) if findings is None else findings
    annotations = _Annotations(OutlineRecorder() if masks else None)
    content = _parse(path, annotations)
    entries, table = content["annotations"], annotations.table()
    places = np.flatnonzero([entry is None for entry in entries])
    if len(places) != len(table):
        raise DatasetError(f"{path}: {len(places)} entries in 'annotations', but {len(table)} annotations in the file")
    for at, entry in enumerate(entries):
        if entry is not None:
            findings.add("annotation-entry", path, *_fault(at, entry), at)
    images = _images(path, image_root, content["images"], findings)
    ids_by_name, parents = _classes(path, content["categories"], set(np.unique(table["category"]).tolist()))
    for name, identity in parents.items():
        findings.add("category-parent", path, f"category id {identity}", f"{name!r} is the parent of others")
    class_names = tuple(sorted(ids_by_name, key=ids_by_name.__getitem__))
    category_ids = np.array([ids_by_name[name] for name in class_names], np.int64)
    image_of_box, has_image = _positions(table["image"], images.ids)
    labels, has_class = _positions(table["category"], category_ids)
    finite = np.isfinite(table["x"] + table["y"] + table["w"] + table["h"])
    faults = {
        "annotation-unknown-image": ~has_image,
        "annotation-unknown-category": ~has_class,
        "box-not-finite": ~finite,
        "crowd-flag": table["crowd"] == _ODD_CROWD,
        "annotation-id-repeated": _repeats(table["id"]),
    }
    _report(path, table, places, faults, findings)
    good = np.flatnonzero(has_image & has_class & finite)
    x, y, w, h = (table[name][good] for name in "xywh")
    return SplitRecords(
        source=path,
        root=image_root,
        class_names=class_names,
        category_ids=category_ids,
        names=images.names,
        image_ids=images.ids,
        image_places=images.places,
        annotated_sizes=images.sizes,
        image_of_box=image_of_box[good],
        boxes=np.stack((x, y, x + w, y + h), axis=1),
        relative=False,
        labels=labels[good],
        crowd=table["crowd"][good] == 1,
        areas=table["area"][good],
        box_places=places[good],
        box_ids=table["id"][good],
        outlines=annotations.outlines and annotations.outlines.keep(good),
        unused_parents=parents,
        findings=findings,
    )


def _parse(path: Path, annotations: _Annotations) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        try:
            content: Any = json.load(stream, object_hook=annotations.hook)
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits, nested deep
            raise DatasetError(f"{path}: not a valid JSON file: {error}; export it again") from error
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path}: not a COCO annotation file: it needs a list {key!r}; found {found}")
    parsed: dict[str, list[Any]] = content
    return parsed


def _fault(position: int, record: Any) -> tuple[str, str]:
    """Which annotation could not be packed, and why."""
    if not isinstance(record, dict):
        return (
            f"annotation number {position}",
            f"{short(record)}, expected an object with image_id, category_id and bbox",
        )
    who = f"annotation id {record['id']}" if "id" in record else f"annotation number {position}"
    for key in ("image_id", "category_id"):
        if not is_id(record.get(key)):
            return who, f"{key} is {short(record.get(key))}, expected a whole number"
    who += f" (image id {record['image_id']})"
    bbox = record.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return who, f"bbox is {short(bbox)}, expected [x, y, width, height] in pixels"
    if record.get("area") is not None and not _is_number(record["area"]):
        return who, f"area is {short(record['area'])}, expected a number"
    return who, f"id is {short(record.get('id'))}, expected a smaller number"


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a whole number of 64 bits."""
    return isinstance(value, int) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


class _Images(NamedTuple):
    ids: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]  # (N, 2) annotated height, width; 0: unknown
    places: NDArray[np.int64]  # of their entries in the file


def _images(path: Path, root: Path, entries: list[Any], findings: Findings) -> _Images:
    if not entries:
        raise DatasetError(f"{path}: lists no images; a split needs at least one")
    names: dict[int, str] = {}
    sizes, places, seen = [], [], set()
    for at, entry in enumerate(entries):
        identity, name, height, width = (_entry(entry, key) for key in ("id", "file_name", "height", "width"))
        if not is_id(identity) or not is_file_name(name):
            found = f"{short(entry)}, expected a whole number 'id' and a 'file_name'"
            findings.add("image-entry", path, f"image number {at}", found, at)
            continue
        if identity in names:
            found = f"it is both {names[identity]} and {name}"
            findings.add("image-id-repeated", path, f"image id {identity}", found, at)
            continue
        if name in seen:
            findings.add("image-listed-twice", path, f"image id {identity}", f"{name} is another image's too", at)
        if (os.path.isabs(name) or ".." in name) and leaves(path.parent.parent, root / name):
            findings.add("path-outside", path, f"image id {identity}", f"{name} is not in {path.parent.parent}", at)
        names[identity] = name
        seen.add(name)
        places.append(at)
        sizes.append((height, width) if _is_side(height) and _is_side(width) else (0, 0))
    return _Images(np.array(list(names), np.int64), list(names.values()), _pairs(sizes), np.array(places, np.int64))


def _pairs(sizes: list[tuple[Any, Any]]) -> NDArray[np.int64]:
    return np.array(sizes, np.int64).reshape(-1, 2)


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < _LARGEST_SIDE and value % 1 == 0


def _entry(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _positions(ids: NDArray[np.int64], known: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position of each id among the known ones, and whether it is there at all."""
    if not len(known):
        return np.zeros_like(ids), np.zeros(len(ids), np.bool_)
    order = np.argsort(known)
    place = np.searchsorted(known, ids, sorter=order)
    positions: NDArray[np.int64] = order[np.minimum(place, len(known) - 1)]
    return positions, known[positions] == ids


def _repeats(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which annotations have the id of one before them."""
    repeated: NDArray[np.bool_] = ids != _NO_ID
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated


def _report(
    path: Path,
    table: NDArray[Any],
    places: NDArray[np.int64],
    faults: dict[str, NDArray[np.bool_]],
    findings: Findings,
) -> None:
    def describe(row: int) -> tuple[Path, str, str, int]:
        record, at = table[row], int(places[row])
        who = f"annotation number {at}" if record["id"] == _NO_ID else f"annotation id {record['id']}"
        box = ", ".join(f"{record[name]:g}" for name in "xywh")
        return path, who, f"image_id {record['image']}, category_id {record['category']}, bbox [{box}]", at

    for rule, which in faults.items():
        findings.add_rows(rule, np.flatnonzero(which).tolist(), describe)


def _classes(path: Path, categories: list[Any], used: set[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by name of the classes, and of the unused parents that are none."""
    for i, category in enumerate(categories):
        if not is_id(_entry(category, "id")) or "name" not in category:
            raise DatasetError(
                f"{path}: category number {i} is {short(category)}; expected a whole number 'id' and a 'name'"
            )
    counts = Counter(category["id"] for category in categories)
    if twice := sorted(identity for identity, count in counts.items() if count > 1):
        raise DatasetError(f"{path}: category ids {twice[:SHOWN]} occur more than once; make them unique")
    children = Counter(filter(_is_text, (category.get("supercategory") for category in categories)))
    classes: dict[str, int] = {}
    parents: dict[str, int] = {}
    for category in categories:
        name, identity = str(category["name"]), category["id"]
        is_parent = children[name] > (category.get("supercategory") == name)
        group = parents if is_parent and identity not in used else classes
        if name in group:
            raise DatasetError(
                f"{path}: categories {group[name]} and {identity} are both {name!r}; rename or merge them"
            )
        group[name] = identity
    if not classes:
        raise DatasetError(f"{path}: 'categories' has no classes (found {sorted(parents) or 'nothing'}); one is needed")
    return classes, parents


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
