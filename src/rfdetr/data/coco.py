"""COCO annotation files. Labels are the category names in sorted order, whatever ids and order the file has.

Sorted names make train and valid agree even where their ids differ; the file's ids stay in `category_ids`. A category
that no box uses and that other categories name as their supercategory (exports put a root there) is no class.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.data.index import DatasetError, SplitRecords, listed

_FIELDS = [(name, "<i8") for name in ("id", "image", "category")] + [("crowd", "?")]
_RECORD = np.dtype([*_FIELDS, ("x", "<f8"), ("y", "<f8"), ("w", "<f8"), ("h", "<f8"), ("area", "<f8")])
_PACK = struct.Struct("<3q?5d").pack  # the same layout; refuses what is no number
_NO_ID = -1


class _Annotations:
    """Packs annotations while the JSON parser meets them, so that a million never exist as dictionaries at once."""

    def __init__(self) -> None:
        self.packed = bytearray()

    def hook(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """None for an annotation that was packed, the record itself for anything else, faulty annotations included."""
        if "image_id" not in record or "category_id" not in record:
            return record
        try:
            x, y, w, h = record["bbox"]
            area, identity = record.get("area"), record.get("id")
            self.packed += _PACK(
                identity if isinstance(identity, int) else _NO_ID,
                record["image_id"],
                record["category_id"],
                record.get("iscrowd") == 1,
                *(x, y, w, h),
                np.nan if area is None else area,
            )
        except (KeyError, TypeError, ValueError, struct.error):
            return record
        return None

    def table(self) -> NDArray[Any]:
        """The packed annotations as a structured array."""
        return np.frombuffer(self.packed, _RECORD)


def read_coco(path: Path, image_root: Path) -> SplitRecords:
    """Read an annotation file whose `file_name`s start from `image_root`."""
    annotations = _Annotations()
    content = _parse(path, annotations)
    table = annotations.table()
    leftover = [(i, record) for i, record in enumerate(content["annotations"]) if record is not None]
    if leftover:
        raise DatasetError(f"{path}: {len(leftover)} faulty annotations; {_fault(*leftover[0])}")
    entries = len(content["annotations"])
    if len(table) != entries:
        raise DatasetError(f"{path}: {entries} entries in 'annotations', but {len(table)} annotations in the file")
    image_ids, names, sizes = _images(path, content["images"])
    image_of_box = _positions(path, table, "image", image_ids, "images")
    _refuse_non_finite(path, table)
    ids_by_name, parents = _classes(path, content["categories"], set(np.unique(table["category"]).tolist()))
    class_names = tuple(sorted(ids_by_name))
    category_ids = np.array([ids_by_name[name] for name in class_names], np.int64)
    notes = [f"category {name!r} (id {parents[name]}) is only a parent of others: no class" for name in parents]
    x, y, w, h = (table[name] for name in "xywh")
    return SplitRecords(
        source=path,
        root=image_root,
        class_names=class_names,
        category_ids=category_ids,
        names=names,
        image_ids=image_ids,
        annotated_sizes=sizes,
        image_of_box=image_of_box,
        boxes=np.stack((x, y, x + w, y + h), axis=1),
        relative=False,
        labels=_positions(path, table, "category", category_ids, "categories"),
        crowd=table["crowd"],
        areas=table["area"],
        unused_parents=parents,
        notes=notes,
    )


def _parse(path: Path, annotations: _Annotations) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        try:
            content: Any = json.load(stream, object_hook=annotations.hook)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: not a valid JSON file: {error}; export it again") from error
    found = sorted(content) if isinstance(content, dict) else type(content).__name__
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path}: not a COCO annotation file: it needs a list {key!r}; found {found}")
    parsed: dict[str, list[Any]] = content
    return parsed


def _fault(position: int, record: Any) -> str:
    """What is wrong with an annotation that could not be packed."""
    if not isinstance(record, dict):
        return f"entry {position} is {record!r}; expected an object with image_id, category_id and bbox"
    who = f"annotation id {record['id']}" if "id" in record else f"annotation number {position}"
    for key in ("image_id", "category_id"):
        if not isinstance(record.get(key), int):
            return f"{who}: {key} is {record.get(key)!r}; expected a whole number"
    bbox = record.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        return f"{who} (image id {record['image_id']}): bbox is {bbox!r}; expected [x, y, width, height] in pixels"
    return f"{who} (image id {record['image_id']}): area is {record.get('area')!r}; expected a number"


def _images(path: Path, images: list[Any]) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
    """Ids, file names and annotated (height, width) of the images."""
    if not images:
        raise DatasetError(f"{path}: lists no images; a split needs at least one")
    names: dict[int, str] = {}
    sizes = np.zeros((len(images), 2), np.int64)
    for i, image in enumerate(images):
        identity, name, height, width = (_entry(image, key) for key in ("id", "file_name", "height", "width"))
        if not isinstance(identity, int) or not isinstance(name, str):
            raise DatasetError(f"{path}: image number {i} is {image!r}; expected a whole number 'id' and a 'file_name'")
        if identity in names:
            raise DatasetError(f"{path}: image id {identity} is both {names[identity]} and {name}; make ids unique")
        names[identity] = name
        if isinstance(height, int | float) and isinstance(width, int | float) and height % 1 == width % 1 == 0:
            sizes[i] = int(height), int(width)
    return np.array(list(names), np.int64), list(names.values()), sizes


def _entry(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _positions(path: Path, table: NDArray[Any], key: str, known: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Position of each annotation's image or category among the known ids."""
    order = np.argsort(known)
    place = np.searchsorted(known, table[key], sorter=order)
    positions: NDArray[np.int64] = order[np.minimum(place, len(known) - 1)]
    unknown = np.flatnonzero(known[positions] != table[key]).tolist()
    if unknown:
        records = [f"{_who(table, i)} has {key}_id {table[key][i]}" for i in unknown]
        raise DatasetError(
            f"{path}: {len(records)} annotations name an unknown {key}: {listed(records)}. "
            f"Add it to {where!r}, or remove them"
        )
    return positions


def _who(table: NDArray[Any], row: int) -> str:
    identity = table["id"][row]
    return f"annotation number {row}" if identity == _NO_ID else f"annotation id {identity}"


def _refuse_non_finite(path: Path, table: NDArray[Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(table["x"] + table["y"] + table["w"] + table["h"])).tolist()
    if bad:
        records = [_who(table, i) for i in bad]
        raise DatasetError(f"{path}: {len(bad)} boxes hold NaN or infinity: {listed(records)}; correct or remove them")


def _classes(path: Path, categories: list[Any], used: set[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by name of the classes, and of the unused parents that are none."""
    for i, category in enumerate(categories):
        if not isinstance(_entry(category, "id"), int) or "name" not in category:
            raise DatasetError(
                f"{path}: category number {i} is {category!r}; expected a whole number 'id' and a 'name'"
            )
    ids = [category["id"] for category in categories]
    if twice := sorted(i for i in set(ids) if ids.count(i) > 1):
        raise DatasetError(f"{path}: category ids {twice} occur more than once; make them unique")
    classes: dict[str, int] = {}
    parents: dict[str, int] = {}
    for category in categories:
        name, identity = str(category["name"]), category["id"]
        is_parent = any(other["id"] != identity and other.get("supercategory") == name for other in categories)
        group = parents if is_parent and identity not in used else classes
        if name in group:
            raise DatasetError(
                f"{path}: categories {group[name]} and {identity} are both {name!r}; rename or merge them"
            )
        group[name] = identity
    if not classes:
        raise DatasetError(f"{path}: 'categories' has no classes (found {sorted(parents) or 'nothing'}); one is needed")
    return classes, parents
