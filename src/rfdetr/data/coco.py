"""COCO annotation files. Labels count the classes from 0 in ascending order of their category ids.

So `content["categories"]` in ascending order, indexed by a predicted class id, is the category of
the object; the file's own ids stay in `category_ids`. A category that no box uses and that other
categories name as their supercategory (exports put a root with id 0 there) is no class and has no
label.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.checks import short
from rfdetr.data.files import with_slashes
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.ids import IdCodes, Key, are_exact, id_key
from rfdetr.data.index import SplitRecords, is_file_name, leaves
from rfdetr.data.segmentations import OutlineRecorder

_FIELDS = [(name, "<i8") for name in ("id", "image", "category", "outline")] + [("crowd", "<i1")]
_RECORD = np.dtype(
    [*_FIELDS, ("x", "<f8"), ("y", "<f8"), ("w", "<f8"), ("h", "<f8"), ("area", "<f8")]
)
_PACK = struct.Struct("<4qb5d").pack  # the same layout; refuses what is no number
_NO_ID = -1
_NOT_LOOKED_AT = -1
_ODD_CROWD = 2
_LARGEST_SIDE = 2**31


class _Packer:
    """Packs annotations while the JSON parser meets them, so that a million never exist as
    dictionaries at once.
    """

    def __init__(self, ids: IdCodes, masks: bool) -> None:
        self.ids = ids
        self.masks = masks
        self.outlines = OutlineRecorder()
        self._count = 0

    def hook(self, record: dict[str, Any]) -> dict[str, Any] | bytes:
        """An annotation's bytes in its place; the record itself for anything else, faulty
        annotations included.

        Files hold such records outside of the list of annotations too: the reader takes from that
        list alone.
        """
        if "image_id" not in record or "category_id" not in record:
            return record
        try:
            x, y, w, h = record["bbox"]
            area, crowd = record.get("area"), record.get("iscrowd")
            # A box with w > x and h > y may be x1 y1 x2 y2: its outline decides.
            looked = self.masks or (w > x and h > y and bool(record.get("segmentation")))
            rest = (
                self._count if looked else _NOT_LOOKED_AT,
                (1 if crowd == 1 else _ODD_CROWD) if crowd else 0,
                *(x, y, w, h),
                np.nan if area is None else area,
            )
            try:
                packed = _PACK(
                    record.get("id", _NO_ID), record["image_id"], record["category_id"], *rest
                )
            except struct.error:  # an id of another form, or no number where one belongs
                image, category = (
                    self.ids.code(record["image_id"]),
                    self.ids.code(record["category_id"]),
                )
                identity = record.get("id")
                own = _NO_ID if id_key(identity) is None else self.ids.code(identity)
                packed = _PACK(own, image, category, *rest)
        except (KeyError, TypeError, ValueError, OverflowError, struct.error):
            return record
        if looked:
            self.outlines.add(record.get("segmentation"))
            self._count += 1
        return packed

    def bounds(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Boxes xyxy (N, 4) around the outlines of these numbers; NaN for -1, an outline that was
        not looked at.
        """
        return np.vstack([self.outlines.bounds(), np.full((1, 4), np.nan, np.float32)])[rows]


def read_coco(
    path: Path, image_root: Path, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    """Read an annotation file whose `file_name`s start from `image_root`; faulty records go to
    `findings` instead.
    """
    findings = Findings(SHOWN) if findings is None else findings
    ids = IdCodes()
    packer = _Packer(ids, masks)
    content = _parse(path, packer.hook)
    table, places = _table(path, content.pop("annotations"), findings)
    images = _images(path, image_root, content["images"], ids, findings)
    categories, category_of_box = _categories(path, content["categories"], ids, table["category"])
    ids_by_name, parents = _classes(path, categories, set(np.unique(category_of_box).tolist()))
    if ids.odd or not are_exact(images.codes):
        odd = (
            f"{ids.odd} ids are text or no plain numbers, such as {short(ids.example)}"
            if ids.odd
            else "long numbers"
        )
        numbered = (
            "" if are_exact(images.codes) else "; images are numbered by their places in the file"
        )
        findings.add("ids-odd", path, "", odd + numbered)
    for name, identity in parents.items():
        findings.add(
            "category-parent", path, f"category id {identity}", f"{name!r} is the parent of others"
        )
    class_names = tuple(sorted(ids_by_name, key=ids_by_name.__getitem__))
    category_ids = np.array([ids_by_name[name] for name in class_names], np.int64)
    image_of_box, has_image = _positions(table["image"], images.codes)
    labels, has_class = _positions(category_of_box, category_ids)
    finite = np.isfinite(table["x"] + table["y"] + table["w"] + table["h"])
    faults = {
        "annotation-unknown-image": ~has_image,
        "annotation-unknown-category": ~has_class,
        "box-not-finite": ~finite,
        "crowd-flag": table["crowd"] == _ODD_CROWD,
        "annotation-id-repeated": _repeats(table["id"]),
    }
    _report(path, table, places, ids, faults, findings)
    good = np.flatnonzero(has_image & has_class & finite)
    x, y, w, h = (table[name][good] for name in "xywh")
    return SplitRecords(
        source=path,
        root=image_root,
        class_names=class_names,
        category_ids=category_ids,
        names=images.names,
        image_ids=images.codes if are_exact(images.codes) else np.arange(len(images.codes)),
        image_keys=images.keys,
        image_places=images.places,
        annotated_sizes=images.sizes,
        image_of_box=image_of_box[good],
        boxes=np.stack((x, y, x + w, y + h), axis=1),
        relative=False,
        labels=labels[good],
        crowd=table["crowd"][good] == 1,
        areas=table["area"][good],
        box_places=places[good],
        box_ids=np.maximum(table["id"][good], _NO_ID),
        outlines=packer.outlines.keep(table["outline"][good]) if masks else None,
        outline_bounds=packer.bounds(table["outline"][good]),
        unused_parents=parents,
        findings=findings,
    )


def _parse(path: Path, hook: Callable[[dict[str, Any]], Any]) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        try:
            content: Any = json.load(stream, object_hook=hook)
        except (
            ValueError,
            RecursionError,
        ) as error:  # no JSON, no UTF-8, a number of thousands of digits, nested deep
            raise DatasetError(
                f"{path}: not a valid JSON file: {error}; export it again"
            ) from error
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(
                f"{path}: not a COCO annotation file: it needs a list {key!r}; found {found}"
            )
    parsed: dict[str, list[Any]] = content
    return parsed


def _table(
    path: Path, entries: list[Any], findings: Findings
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The packed annotations of a file's list as a structured array, and their places in the list."""
    places = [at for at, entry in enumerate(entries) if isinstance(entry, bytes)]
    if len(places) < len(entries):
        for at, entry in enumerate(entries):
            if not isinstance(entry, bytes):
                findings.add("annotation-entry", path, *_fault(at, entry), at)
        entries = [entries[at] for at in places]
    return np.frombuffer(b"".join(entries), _RECORD), np.array(places, np.int64)


def _fault(position: int, record: Any) -> tuple[str, str]:
    """Which annotation could not be packed, and why."""
    if not isinstance(record, dict):
        return (
            f"annotation number {position}",
            f"{short(record)}, expected an object with image_id, category_id and bbox",
        )
    who = f"annotation id {record['id']}" if "id" in record else f"annotation number {position}"
    for key in ("image_id", "category_id"):
        if id_key(record.get(key)) is None:
            return who, f"{key} is {short(record.get(key))}, expected an id: a whole number"
    who += f" (image id {record['image_id']})"
    bbox = record.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return who, f"bbox is {short(bbox)}, expected [x, y, width, height] in pixels"
    return who, f"area is {short(record.get('area'))}, expected a number"


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


class _Images(NamedTuple):
    keys: list[Key]  # the file's own ids
    codes: NDArray[np.int64]  # the same as 64-bit numbers
    names: list[str]
    sizes: NDArray[np.int64]  # (N, 2) annotated height, width; 0: unknown
    places: NDArray[np.int64]  # of their entries in the file


def _images(
    path: Path, root: Path, entries: list[Any], ids: IdCodes, findings: Findings
) -> _Images:
    if not entries:
        raise DatasetError(f"{path}: lists no images; a split needs at least one")
    names: dict[Key, str] = {}
    codes, sizes, places, seen = [], [], [], set()
    for at, entry in enumerate(entries):
        identity, written, height, width = (
            _entry(entry, key) for key in ("id", "file_name", "height", "width")
        )
        key = id_key(identity)
        if key is None or not is_file_name(written):
            found = f"{short(entry)}, expected an 'id' (a whole number) and a 'file_name'"
            findings.add("image-entry", path, f"image number {at}", found, at)
            continue
        name = with_slashes(root, written)
        if name != written:
            findings.add(
                "path-backslash", path, f"image id {key}", f"{written} is read as {name}", at
            )
        if key in names:
            findings.add(
                "image-id-repeated",
                path,
                f"image id {key}",
                f"it is both {names[key]} and {name}",
                at,
            )
            continue
        if name in seen:
            findings.add(
                "image-listed-twice", path, f"image id {key}", f"{name} is another image's too", at
            )
        if (os.path.isabs(name) or ".." in name) and leaves(path.parent.parent, root / name):
            findings.add(
                "path-outside",
                path,
                f"image id {key}",
                f"{name} is not in {path.parent.parent}",
                at,
            )
        names[key] = name
        codes.append(ids.code(identity))
        seen.add(name)
        places.append(at)
        sizes.append((height, width) if _is_side(height) and _is_side(width) else (0, 0))
    found_ids, found_places = np.array(codes, np.int64), np.array(places, np.int64)
    return _Images(list(names), found_ids, list(names.values()), _pairs(sizes), found_places)


def _pairs(sizes: list[tuple[Any, Any]]) -> NDArray[np.int64]:
    return np.array(sizes, np.int64).reshape(-1, 2)


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < _LARGEST_SIDE and value % 1 == 0


def _entry(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _positions(
    ids: NDArray[np.int64], known: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
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
    ids: IdCodes,
    faults: dict[str, NDArray[np.bool_]],
    findings: Findings,
) -> None:
    def describe(row: int) -> tuple[Path, str, str, int]:
        record, at = table[row], int(places[row])
        own, image, category = (ids.key(int(record[name])) for name in ("id", "image", "category"))
        who = f"annotation number {at}" if own == _NO_ID else f"annotation id {own}"
        box = ", ".join(f"{record[name]:g}" for name in "xywh")
        return path, who, f"image_id {image}, category_id {category}, bbox [{box}]", at

    for rule, which in faults.items():
        findings.add_rows(rule, np.flatnonzero(which).tolist(), describe)


def _categories(
    path: Path, entries: list[Any], ids: IdCodes, codes: NDArray[np.int64]
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The categories and that of each box by whole numbers: their own ids, or where these are odd,
    their places.
    """
    for i, category in enumerate(entries):
        if id_key(_entry(category, "id")) is None or "name" not in category:
            raise DatasetError(
                f"{path}: category number {i} is {short(category)}; expected a whole number 'id' and a 'name'"
            )
    keys = [id_key(category["id"]) for category in entries]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise DatasetError(
            f"{path}: category ids {twice[:SHOWN]} occur more than once; make them unique"
        )
    numbers = np.array([ids.code(category["id"]) for category in entries], np.int64)
    if not are_exact(numbers):
        place, known = _positions(codes, numbers)
        numeric = sorted((key, i) for i, key in enumerate(keys) if isinstance(key, int))
        order = [i for _, i in numeric] + [i for i, key in enumerate(keys) if isinstance(key, str)]
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(keys))
        numbers, codes = rank, np.where(known, rank[place], _NO_ID)
    return [
        {**category, "id": number}
        for category, number in zip(entries, numbers.tolist(), strict=True)
    ], codes


def _classes(
    path: Path, categories: list[dict[str, Any]], used: set[int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by name of the classes, and of the unused parents that are none."""
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
        raise DatasetError(
            f"{path}: 'categories' has no classes (found {sorted(parents) or 'nothing'}); one is needed"
        )
    return classes, parents


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
