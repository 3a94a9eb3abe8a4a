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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.checks import short
from rfdetr.data.box_checks import repeats
from rfdetr.data.files import is_file_name, leaves, with_slashes
from rfdetr.data.findings import SHOWN, DatasetError, Description, Findings
from rfdetr.data.ids import NO_ID, IdCodes, Key, are_exact, id_key
from rfdetr.data.records import BOX, IMAGE, SplitRecords
from rfdetr.data.segmentations import OutlineRecorder

_PACK = struct.Struct("<4qb5d8x").pack  # a row of BOX but for its place; refuses what is no number
_ODD_CROWD = 2  # in the table, for an `iscrowd` that is neither 0 nor 1
_LARGEST_SIDE = 2**31


class _Packer:
    """Packs annotations while the JSON parser meets them, so that a million never exist as
    dictionaries at once. Their `label` is the category's id, their `xyxy` x y width height.
    """

    def __init__(self, ids: IdCodes, masks: bool) -> None:
        self.ids = ids
        self.masks = masks
        self.outlines = OutlineRecorder()

    def hook(self, record: dict[str, Any]) -> dict[str, Any] | bytes:
        """What stands in place of each JSON object: an annotation becomes the bytes of its row, any
        other object stays, and so does an annotation that cannot be packed, to be reported later.

            {"id": 7, "image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 5]}  ->  97 bytes
            {"id": 7, "image_id": 1, "category_id": 2, "bbox": "none"}        ->  itself
            {"id": 1, "file_name": "1.jpg"}                                   ->  itself

        Files hold such records outside of the list of annotations too: the reader takes from that
        list alone.
        """
        if "image_id" not in record or "category_id" not in record:
            return record
        try:
            x, y, w, h = record["bbox"]
            area, crowd = record.get("area"), record.get("iscrowd")
            outline = record.get("segmentation")
            # A box with w > x and h > y may be x1 y1 x2 y2: its outline decides.
            looked = self.masks or (w > x and h > y and bool(outline))
            entry = len(self.outlines) if looked else -1
            flag = (1 if crowd == 1 else _ODD_CROWD) if crowd else 0
            rest = (entry, flag, x, y, w, h, np.nan if area is None else area)
            own, image, category = (
                record.get("id", NO_ID),
                record["image_id"],
                record["category_id"],
            )
            try:
                packed = _PACK(own, image, category, *rest)
            except struct.error:  # an id of another form, or no number where one belongs
                image, category = self.ids.code(image), self.ids.code(category)
                own = NO_ID if id_key(own) is None else self.ids.code(own)
                packed = _PACK(own, image, category, *rest)
        except (KeyError, TypeError, ValueError, OverflowError, struct.error):
            return record
        if looked:
            self.outlines.add(outline)
        return packed


def read_coco(
    path: Path, image_root: Path, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    """Read an annotation file whose `file_name`s start from `image_root`; faulty records go to
    `findings` instead. `masks`: record the outlines of all objects.
    """
    findings = Findings(SHOWN) if findings is None else findings
    ids = IdCodes()
    packer = _Packer(ids, masks)
    with path.open(encoding="utf-8-sig") as stream:
        try:
            content: Any = json.load(stream, object_hook=packer.hook)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
            text = f"not a valid JSON file: {error}"
            raise DatasetError(f"{path}: {text}; export it again") from error
    fields = content if isinstance(content, dict) else {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(fields.get(key), list):
            found = sorted(fields) if fields is content else type(content).__name__
            needed = f"it needs a list {key!r}; found {found}"
            raise DatasetError(f"{path}: not a COCO annotation file: {needed}")
    table = _annotations(path, content.pop("annotations"), findings)
    names, images = _images(path, image_root, content["images"], ids, findings)
    classes, parents, labels = _classes(path, content["categories"], ids, table["label"])
    for name, identity in parents.items():
        who = f"category id {identity}"
        findings.add("category-parent", path, who, f"{name!r} is the parent of others")
    image_of_box, listed = _positions(table["image"], images["id"])
    finite = np.isfinite(table["xyxy"].sum(1))
    faults = {
        "annotation-unknown-image": ~listed,
        "annotation-unknown-category": labels < 0,
        "box-not-finite": ~finite,
        "crowd-flag": table["crowd"] == _ODD_CROWD,
        "annotation-id-repeated": repeats(table["id"]) & (table["id"] != NO_ID),
    }
    findings.add_masks(faults, functools.partial(_describe, path, ids, table))
    table["image"], table["label"] = image_of_box, labels
    table["xyxy"][:, 2:] += table["xyxy"][:, :2]
    odd = f"{ids.odd} ids are text or no plain numbers, such as {short(ids.example)}"
    odd = odd if ids.odd else "long numbers"
    if not are_exact(images["id"]):
        images["id"] = np.arange(len(images))
        odd += "; images are numbered by their places in the file"
    if odd != "long numbers":
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
        relative=False,
        outlines=packer.outlines,
        masks=masks,
        findings=findings,
    )


def _annotations(path: Path, entries: list[Any], findings: Findings) -> NDArray[Any]:
    """The packed annotations of a file's list as rows of BOX; what could not be packed is told."""
    places = [at for at, entry in enumerate(entries) if isinstance(entry, bytes)]
    if len(places) < len(entries):
        for at, entry in enumerate(entries):
            if not isinstance(entry, bytes):
                findings.add("annotation-entry", path, *_fault(at, entry), at)
        entries = [entries[at] for at in places]
    table = np.frombuffer(bytearray().join(entries), BOX)
    table["place"] = places
    return table


def _fault(at: int, entry: Any) -> tuple[str, str]:
    """Which annotation could not be packed, and why."""
    who = f"annotation number {at}"
    if not isinstance(entry, dict):
        return who, f"{short(entry)}, expected an object with image_id, category_id and bbox"
    who = f"annotation id {entry['id']}" if "id" in entry else who
    for key in ("image_id", "category_id"):
        if id_key(entry.get(key)) is None:
            return who, f"{key} is {short(entry.get(key))}, expected an id: a whole number"
    who += f" (image id {entry['image_id']})"
    bbox, huge = entry.get("bbox"), 2**1000
    if not (isinstance(bbox, list) and len(bbox) == 4) or not all(
        isinstance(value, float) or (isinstance(value, int) and abs(value) < huge) for value in bbox
    ):
        return who, f"bbox is {short(bbox)}, expected [x, y, width, height] in pixels"
    return who, f"area is {short(entry.get('area'))}, expected a number"


def _describe(path: Path, ids: IdCodes, table: NDArray[Any], row: int) -> Description:
    """A faulty row of the packed annotations, for a finding."""
    own, image, category, *_, at = table[row].tolist()
    who = f"annotation number {at}" if own == NO_ID else f"annotation id {ids.key(own)}"
    box = ", ".join(f"{value:g}" for value in table["xyxy"][row])
    found = f"image_id {ids.key(image)}, category_id {ids.key(category)}, bbox [{box}]"
    return path, who, found, at


def _images(
    path: Path, root: Path, entries: list[Any], ids: IdCodes, findings: Findings
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
        size = (fields.get("height"), fields.get("width"))
        known = all(
            isinstance(side, int | float) and 0 < side < _LARGEST_SIDE and side % 1 == 0
            for side in size
        )
        rows.append((ids.code(fields["id"]), at, size if known else (0, 0), (0, 0)))
    return names, np.array(rows, IMAGE)


def _classes(
    path: Path, entries: list[Any], ids: IdCodes, codes: NDArray[np.int64]
) -> tuple[dict[str, int], dict[str, int], NDArray[np.int64]]:
    """Ids by name of the classes, in ascending order, and of the parents that are none; and the
    label of each box by the code of its category, -1 for an unknown one.
    """
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict) or id_key(entry.get("id")) is None or "name" not in entry:
            found = f"{short(entry)}; expected a whole number 'id' and a 'name'"
            raise DatasetError(f"{path}: category number {at} is {found}")
    keys = [id_key(entry["id"]) for entry in entries]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        found = f"category ids {twice[:SHOWN]} occur more than once"
        raise DatasetError(f"{path}: {found}; make them unique")
    numbers = np.array([ids.code(entry["id"]) for entry in entries], np.int64)
    place, known = _positions(codes, numbers)
    if not are_exact(numbers):  # then their ranks stand for them: numbers in order, text at the end
        ranked = sorted(
            (isinstance(key, str), at if isinstance(key, str) else key, at)
            for at, key in enumerate(keys)
        )
        numbers[[at for _, _, at in ranked]] = np.arange(len(keys))
    used = set(np.unique(place[known]).tolist())
    parent_of = [entry.get("supercategory") for entry in entries]
    children = Counter(parent for parent in parent_of if isinstance(parent, str))
    classes: dict[str, int] = {}
    parents: dict[str, int] = {}
    for at, number in enumerate(numbers.tolist()):
        name = str(entries[at]["name"])
        is_parent = children[name] > (parent_of[at] == name)
        group = parents if is_parent and at not in used else classes
        if name in group:
            found = f"categories {group[name]} and {number} are both {name!r}"
            raise DatasetError(f"{path}: {found}; rename or merge them")
        group[name] = number
    if not classes:
        found = f"'categories' has no classes (found {sorted(parents) or 'nothing'})"
        raise DatasetError(f"{path}: {found}; one is needed")
    classes = dict(sorted(classes.items(), key=lambda item: item[1]))
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
