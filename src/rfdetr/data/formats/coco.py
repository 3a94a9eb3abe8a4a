"""COCO annotation files. Labels count the classes from 0 in ascending order of their category ids.

So `content["categories"]` in ascending order, indexed by a predicted class id, is the category of
the object; the file's own ids stay in `category_ids`. A category that no box uses and that other
categories name as their supercategory (exports put a root with id 0 there) is no class and has no
label.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr.checks import short
from rfdetr.data.box_checks import repeats
from rfdetr.data.files import is_file_name, leaves, with_slashes
from rfdetr.data.findings import SHOWN, DatasetError, Description, Findings
from rfdetr.data.records import BOX, IMAGE, NO_ID, SplitRecords
from rfdetr.data.segmentations import OutlineRecorder
from rfdetr.errors import InputError

Key: TypeAlias = "int | str"

_PACK = struct.Struct("<4qb5d8x").pack  # a row of BOX but for its place; refuses what is no number
_BOX = struct.Struct("<4d").pack  # refuses the same of a box
_ODD_CROWD = 2  # in the table, for an `iscrowd` that is neither 0 nor 1
_EXACT = 2**53  # metrics compare ids as float64, which holds whole numbers below this one
_LONGEST = 1000  # digits; Python refuses to read thousands
_FIRST_CODE, _LAST_CODE = -(2**63), -(2**62)


def id_key(value: Any) -> Key | None:
    """The id that a JSON value means: `7`, `7.0` and `"7"` are 7, other text (a UUID) stands for
    itself; None for a value that is no id.
    """
    if isinstance(value, str):
        is_number = value.removeprefix("-").isdecimal() and len(value) <= _LONGEST
        return int(value) if is_number else value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


class _IdCodes:
    """64-bit numbers for the ids of one file: 7 stands for itself, the first UUID gets -2**63, the
    next one -2**63 + 1.
    """

    def __init__(self) -> None:
        self.odd, self.example = 0, None  # ids that were not written as whole numbers; the first
        self._codes: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    def code(self, value: Any) -> int:
        """The number of an id; an `InputError` if the value can be none."""
        key = id_key(value)
        if key is None:
            raise InputError("no id")
        if not isinstance(value, int):
            self.example = self.example if self.odd else value
            self.odd += 1
        if isinstance(key, int) and _LAST_CODE < key < -_FIRST_CODE:
            return key
        code = self._codes.setdefault(key, _FIRST_CODE + len(self._codes))
        self._keys[code] = key
        return code

    def key(self, code: int) -> Key:
        return self._keys.get(code, code)


def _packed(
    ids: _IdCodes, outlines: OutlineRecorder, masks: bool, record: dict[str, Any]
) -> dict[str, Any] | bytes:
    """What stands in place of each JSON object while the parser reads on: an annotation becomes the
    bytes of its row, so that a million never exist as dictionaries at once. Any other object stays,
    and so does an annotation that cannot be packed, to be reported later.

        {"id": 7, "image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 5]}  ->  97 bytes
        {"id": 7, "image_id": 1, "category_id": 2, "bbox": "none"}        ->  itself
        {"id": 1, "file_name": "1.jpg"}                                   ->  itself

    In a row `label` is the category's id, `xyxy` is x y width height. Files hold such records
    outside of the list of annotations too: the reader takes from that list alone.
    """
    if "image_id" not in record or "category_id" not in record:
        return record
    own, image, category = record.get("id", NO_ID), record["image_id"], record["category_id"]
    area, crowd, outline = map(record.get, ("area", "iscrowd", "segmentation"))
    try:
        x, y, w, h = record["bbox"]
        # A box with w > x and h > y may be x1 y1 x2 y2: its outline decides.
        looked = masks or (w > x and h > y and bool(outline))
        entry = len(outlines) if looked else -1
        flag = (1 if crowd == 1 else _ODD_CROWD) if crowd else 0
        rest = (entry, flag, x, y, w, h, np.nan if area is None else area)
        try:
            packed = _PACK(own, image, category, *rest)
        except struct.error:  # an id of another form, or no number where one belongs
            image, category = ids.code(image), ids.code(category)
            own = NO_ID if id_key(own) is None else ids.code(own)
            packed = _PACK(own, image, category, *rest)
    except (KeyError, TypeError, ValueError, OverflowError, struct.error):
        return record
    if looked:
        outlines.add(outline)
    return packed


def read_coco(
    path: Path, image_root: Path, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    """Read an annotation file whose `file_name`s start from `image_root`; faulty records go to
    `findings` instead. `masks`: record the outlines of all objects.
    """
    findings = Findings(SHOWN) if findings is None else findings
    ids, outlines = _IdCodes(), OutlineRecorder()
    with path.open(encoding="utf-8-sig") as stream:
        try:
            hook = functools.partial(_packed, ids, outlines, masks)
            content: Any = json.load(stream, object_hook=hook)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
            fault = f"not a valid JSON file: {error}"
            raise DatasetError(f"{path}: {fault}; export it again") from error
    fields = content if isinstance(content, dict) else {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(fields.get(key), list):
            held = sorted(fields) if fields is content else type(content).__name__
            fault = f"it needs a list {key!r}; found {held}"
            raise DatasetError(f"{path}: not a COCO annotation file: {fault}")
    table = _annotations(path, content.pop("annotations"), findings)
    names, images = _images(path, image_root, content["images"], ids, findings)
    classes, parents, labels = _classes(path, content["categories"], ids, table["label"])
    for name, identity in parents.items():
        found = f"{name!r} is the parent of others"
        findings.add("category-parent", path, f"category id {identity}", found)
    image_of_box, listed = _positions(table["image"], images["id"])
    finite = np.isfinite(table["xyxy"].sum(1))
    faults = {
        "annotation-unknown-image": ~listed,
        "annotation-unknown-category": labels < 0,
        "box-not-finite": ~finite,
        "crowd-flag": table["crowd"] == _ODD_CROWD,
        "annotation-id-repeated": repeats(table["id"]) & (table["id"] != NO_ID),
    }
    findings.add_rows(faults, functools.partial(_describe, path, ids, table))
    table["image"], table["label"] = image_of_box, labels
    table["xyxy"][:, 2:] += table["xyxy"][:, :2]
    odd = f"{ids.odd} ids are text or no plain numbers, such as {short(ids.example)}"
    exact = _are_exact(images["id"])
    if not exact:
        images["id"] = np.arange(len(images))
        odd = f"{odd if ids.odd else 'long numbers'}; images are numbered by place in the file"
    if ids.odd or not exact:
        findings.add("ids-odd", path, "", odd)
    return SplitRecords(
        source=path,
        root=image_root,
        class_names=tuple(classes),
        category_ids=np.array([*classes.values()]),
        unused_parents=parents,
        names=list(names.values()),
        image_keys=list(names),
        images=images,
        boxes=table[listed & (labels >= 0) & finite],
        outlines=outlines,
        masks=masks,
        findings=findings,
    )


def _annotations(path: Path, entries: list[Any], findings: Findings) -> NDArray[Any]:
    """The packed annotations of a file's list as rows of BOX; what could not be packed is told."""
    odd = [at for at, entry in enumerate(entries) if not isinstance(entry, bytes)]
    for at in odd:
        findings.add("annotation-entry", path, *_fault(at, entries[at]), at)
    rows = [entry for entry in entries if isinstance(entry, bytes)]
    table = np.frombuffer(bytearray().join(rows), BOX)
    table["place"] = np.delete(np.arange(len(entries)), odd)
    return table


def _fault(at: int, entry: Any) -> tuple[str, str]:
    """Which annotation could not be packed, and why."""
    if not isinstance(entry, dict):
        expected = "expected an object with image_id, category_id and bbox"
        return f"annotation number {at}", f"{short(entry)}, {expected}"
    who = f"annotation id {entry['id']}" if "id" in entry else f"annotation number {at}"
    for key in ("image_id", "category_id"):
        if id_key(entry.get(key)) is None:
            return who, f"{key} is {short(entry.get(key))}, expected an id: a whole number"
    who += f" (image id {entry['image_id']})"
    bbox: Any = entry.get("bbox")
    try:
        _BOX(*bbox)
    except (TypeError, OverflowError, struct.error):
        return who, f"bbox is {short(bbox)}, expected [x, y, width, height] in pixels"
    return who, f"area is {short(entry.get('area'))}, expected a number"


def _describe(path: Path, ids: _IdCodes, table: NDArray[Any], row: int) -> Description:
    """A faulty row of the packed annotations, for a finding."""
    own, image, category, *_, at = table[row].tolist()
    who = f"annotation number {at}" if own == NO_ID else f"annotation id {ids.key(own)}"
    box = ", ".join(f"{value:g}" for value in table["xyxy"][row])
    found = f"image_id {ids.key(image)}, category_id {ids.key(category)}, bbox [{box}]"
    return path, who, found, at


def _images(
    path: Path, root: Path, entries: list[Any], ids: _IdCodes, findings: Findings
) -> tuple[dict[Key, str], NDArray[Any]]:
    """File names by the file's own ids, and the table of images; faulty entries are left out."""
    if not entries:
        raise DatasetError(f"{path}: lists no images; a split needs at least one")
    names: dict[Key, str] = {}
    rows, seen, dataset = [], set(), path.parent.parent
    for at, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        key, written = id_key(fields.get("id")), fields.get("file_name")
        if key is None or not is_file_name(written):
            found = f"{short(entry)}, expected an 'id' (a whole number) and a 'file_name'"
            findings.add("image-entry", path, f"image number {at}", found, at)
            continue
        who, name = f"image id {key}", with_slashes(root, written)
        if name != written:
            findings.add("path-backslash", path, who, f"{written} is read as {name}", at)
        if key in names:
            found = f"it is both {names[key]} and {name}"
            findings.add("image-id-repeated", path, who, found, at)
            continue
        if name in seen:
            findings.add("image-listed-twice", path, who, f"{name} is another image's too", at)
        if (os.path.isabs(name) or ".." in name) and leaves(dataset, root / name):
            findings.add("path-outside", path, who, f"{name} is not in {dataset}", at)
        names[key] = name
        seen.add(name)
        size = fields.get("height"), fields.get("width")
        known = all(isinstance(x, int | float) and 0 < x < 2**31 and x % 1 == 0 for x in size)
        rows.append((ids.code(fields["id"]), at, size if known else (0, 0), (0, 0)))
    return names, np.array(rows, IMAGE)


def _classes(
    path: Path, entries: list[Any], ids: _IdCodes, codes: NDArray[np.int64]
) -> tuple[dict[str, int], dict[str, int], NDArray[np.int64]]:
    """Ids by name of the classes, in ascending order, and of the parents that are none; and the
    label of each box by the code of its category, -1 for an unknown one.
    """
    for at, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        if id_key(fields.get("id")) is None or not str(fields.get("name", "")).strip():
            found = f"{short(entry)}; expected a whole number 'id' and a 'name'"
            raise DatasetError(f"{path}: category number {at} is {found}")
    keys: list[Any] = [id_key(entry["id"]) for entry in entries]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        found = f"category ids {twice[:SHOWN]} occur more than once"
        raise DatasetError(f"{path}: {found}; make them unique")
    numbers = np.array([ids.code(entry["id"]) for entry in entries], np.int64)
    place, known = _positions(codes, numbers)
    if not _are_exact(numbers):  # their ranks stand for them: numbers in order, text at the end
        texts = [isinstance(key, str) for key in keys]
        ranked = sorted(range(len(keys)), key=lambda at: (texts[at], at if texts[at] else keys[at]))
        numbers[ranked] = np.arange(len(keys))
    used = set(place[known].tolist())
    parent_of = [entry.get("supercategory") for entry in entries]
    children = Counter(parent for parent in parent_of if isinstance(parent, str))
    classes: dict[str, int] = {}
    parents: dict[str, int] = {}
    for at in np.argsort(numbers).tolist():
        name, number = str(entries[at]["name"]), int(numbers[at])
        is_parent = children[name] > (parent_of[at] == name)
        group = parents if is_parent and at not in used else classes
        if name in group:
            found = f"categories {group[name]} and {number} are both {name!r}"
            raise DatasetError(f"{path}: {found}; rename or merge them")
        group[name] = number
    if not classes:
        found = f"'categories' has no classes (found {sorted(parents) or 'nothing'})"
        raise DatasetError(f"{path}: {found}; one is needed")
    labels, _ = _positions(numbers[place], np.array([*classes.values()]))
    return classes, parents, np.where(known, labels, -1)


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


def _are_exact(codes: NDArray[np.int64]) -> bool:
    """Whether all codes are the file's own numbers, and small enough for every later use."""
    return bool(((codes > -_EXACT) & (codes < _EXACT)).all())
