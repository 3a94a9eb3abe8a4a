"""YOLO folders: data.yaml with class names and image places, and one text file of boxes or polygons per image.

A line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, relative to the image; a polygon counts as its box.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rfdetr.data.images import IMAGE_SUFFIXES
from rfdetr.data.index import DatasetError, SplitRecords

YAML_NAMES = ("data.yaml", "data.yml")
SPLIT_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
_FARTHEST = 2.0  # image sizes; a coordinate beyond is in pixels, not relative


@dataclass(frozen=True)
class YoloConfig:
    """A data.yaml: class names in label order, and the existing image folders or lists of each split."""

    path: Path
    class_names: tuple[str, ...]
    places: dict[str, tuple[Path, ...]]


def read_data_yaml(path: Path) -> YoloConfig:
    """Read and check a data.yaml; a split whose places do not exist is left out unless it is train or valid."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)  # strings only: a class may be `no`
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a valid YAML file: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected keys 'names', 'train' and 'val'; found {type(content).__name__}")
    places = {split: _places(path, content, split) for split in SPLIT_KEYS}
    return YoloConfig(path, _class_names(path, content), {split: found for split, found in places.items() if found})


def read_yolo(config: YoloConfig, split: str) -> SplitRecords:
    """Read the label files of a split. Image ids are 0, 1, ... in the order of the paths."""
    root = config.path.parent
    images = sorted({image for place in config.places[split] for image in _list_images(config, place)})
    if not images:
        where = ", ".join(map(str, config.places[split]))
        raise DatasetError(f"{config.path}: {split}: no image files in {where} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    image_of_box: list[int] = []
    labels: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    unlabelled = 0
    for i, image in enumerate(images):
        label_file = _label_file(image)
        try:
            text = label_file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            unlabelled += 1
            continue
        for label, box in _parse_labels(label_file, text, len(config.class_names)):
            image_of_box.append(i)
            labels.append(label)
            boxes.append(box)
    folders = {_label_file(image).parent for image in images}
    if unlabelled == len(images) and not any(folder.is_dir() for folder in folders):
        raise DatasetError(f"{config.path}: {split}: no label folder; expected {', '.join(map(str, sorted(folders)))}")
    return SplitRecords(
        source=config.path,
        root=root,
        class_names=config.class_names,
        category_ids=np.arange(len(config.class_names)),
        names=[str(image.relative_to(root)) if image.is_relative_to(root) else str(image) for image in images],
        image_ids=np.arange(len(images)),
        image_of_box=np.array(image_of_box, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        relative=True,
        labels=np.array(labels, np.int64),
        crowd=np.zeros(len(boxes), np.bool_),
        areas=np.full(len(boxes), np.nan),
        notes=[f"{unlabelled} of {len(images)} {split} images have no label file: no objects"] if unlabelled else [],
    )


def _class_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        expected = [str(i) for i in range(len(names))]
        if sorted(names) != sorted(expected):
            raise DatasetError(
                f"{path}: 'names' has ids {', '.join(names)}; expected 0 to {len(names) - 1} without gaps"
            )
        names = [names[key] for key in expected]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: 'names' is {names!r}; expected class names as a list, or as a map from 0, 1, ...")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{path}: class names {twice} occur more than once; rename or merge them")
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise DatasetError(f"{path}: nc is {count}, but {len(names)} names are listed: {', '.join(names)}; correct one")
    return tuple(names)


def _places(path: Path, content: dict[str, Any], split: str) -> tuple[Path, ...]:
    """Existing folders or lists of a split: by its key, or where none has it, `<split>/images` beside the file."""
    keys = SPLIT_KEYS[split]
    entry: str | list[str] = next((content[key] for key in keys if content.get(key)), [])
    entries = [entry] if isinstance(entry, str) else entry
    folder = path.parent
    bases = (folder / content["path"], Path(content["path"])) if content.get("path") else ()
    usual = [folder / name / "images" for name in (*keys, split)]
    found = []
    for item in entries:
        # Roboflow writes ../train/images for the folder beside data.yaml, so that is tried before what it says.
        inside = [folder / item.lstrip("./")] if item.startswith("..") else []
        candidates = [*inside, *(base / item for base in bases), folder / item]
        place = next((place for place in candidates if place.exists()), None)
        if place is None and len(entries) == 1:
            place = next((place for place in usual if place.is_dir()), None)  # the set has moved since
        if place is not None:
            found.append(Path(os.path.normpath(place)))
        elif split != "test":
            looked = ", ".join(dict.fromkeys(map(str, candidates)))
            raise DatasetError(f"{path}: {split}: {item!r} does not exist; looked for {looked}. Correct it in the file")
    if not entries:
        found = [place for place in usual if place.is_dir()][:1]
    return tuple(found)


def _list_images(config: YoloConfig, place: Path) -> Iterator[Path]:
    """Image files in a folder and below it, or named by a .txt list."""
    if place.is_dir():
        for folder, _, files in os.walk(place):
            yield from (Path(folder, name) for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        return
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines()]
    bases = (place.parent, config.path.parent)
    base = next((base for base in bases for line in lines[:1] if (base / line).exists()), place.parent)
    yield from (base / line for line in lines if line)


def _label_file(image: Path) -> Path:
    """The last folder `images` of the path becomes `labels`; without one, the label file lies beside the image."""
    parts = list(image.parts)
    at = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _parse_labels(file: Path, text: str, num_classes: int) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """Label and relative xyxy box of each line that is not blank."""
    for number, line in enumerate(text.splitlines(), 1):
        tokens = line.split()
        if not tokens:
            continue
        try:
            label, *values = map(float, tokens)
        except ValueError:
            raise DatasetError(f"{file}, line {number}: {line!r}; expected numbers only") from None
        if label not in range(num_classes):
            raise DatasetError(f"{file}, line {number}: class {tokens[0]}; data.yaml has 0 to {num_classes - 1}")
        if not all(abs(value) <= _FARTHEST for value in values):  # false for NaN too
            raise DatasetError(f"{file}, line {number}: {line!r}; expected numbers relative to the image, 0 to 1")
        yield int(label), _box_of(file, number, values)


def _box_of(file: Path, number: int, values: list[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if len(values) >= 6 and len(values) % 2 == 0:
        return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    raise DatasetError(
        f"{file}, line {number}: {len(values)} numbers after the class; expected 4 (cx cy w h) or a polygon's x y pairs"
    )
