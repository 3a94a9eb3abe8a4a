"""YOLO folders: data.yaml with class names and image places, and one text file of boxes or polygons
per image.

A line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, relative to the image; a polygon's box
is that around it. Where data.yaml has a `kpt_shape`, it is `class cx cy w h` and the key points, of
which nothing is read.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rfdetr.checks import short
from rfdetr.data.files import IMAGE_SUFFIXES, is_file_name, is_image, leaves, walk, with_slashes
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.records import BOX, IMAGE, NO_ID, SplitRecords
from rfdetr.data.segmentations import OutlineRecorder
from rfdetr.errors import InputError

YAML_NAMES = ("data.yaml", "data.yml")
SPLIT_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
_FARTHEST = 2.0  # image sizes; a coordinate beyond is in pixels, not relative


@dataclass(frozen=True)
class YoloConfig:
    """A data.yaml: class names in label order, and the existing image folders or lists of each
    split. `kpt_numbers`: how many numbers of key points follow each box. `stand_ins`: what the file
    says and does not exist, by the place that is read instead.
    """

    path: Path
    class_names: tuple[str, ...]
    places: dict[str, tuple[Path, ...]]
    kpt_numbers: int = 0
    stand_ins: Mapping[Path, str] = field(default_factory=dict)


def read_data_yaml(path: Path) -> YoloConfig:
    """Read and check a data.yaml; a split whose places do not exist is left out unless it is train
    or valid.
    """
    try:  # strings only: a class may be `no`
        written: Any = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not a valid YAML file: {error}") from error
    if not isinstance(written, dict):
        found = type(written).__name__
        raise DatasetError(f"{path}: expected keys 'names', 'train' and 'val'; found {found}")
    content = {key.lower(): value for key, value in written.items()}  # CVAT writes Train
    if len(content) < len(written):
        found = f"keys {', '.join(written)}: some differ in capitals only"
        raise DatasetError(f"{path}: {found}; keep one of them")
    said = {split: _places(path, content, split) for split in SPLIT_KEYS}
    places = {split: tuple(there) for split, there in said.items() if there}
    stand_ins = {place: name for there in said.values() for place, name in there.items() if name}
    class_names, shape = _class_names(path, content), short(content.get("kpt_shape") or None)
    match = re.fullmatch(r"\['(\d{1,4})', '([23])'\]", shape)
    if not match and shape != "None":
        raise DatasetError(f"{path}: kpt_shape is {shape}; expected [points, 2 or 3]")
    kpt_numbers = int(match[1]) * int(match[2]) if match else 0
    return YoloConfig(path, class_names, places, kpt_numbers, stand_ins)


def read_yolo(
    config: YoloConfig, split: str, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    """Read the label files of a split; image ids are 0, 1, ... in the order of the paths. Faulty
    lines go to `findings` instead. `masks`: record the polygons.
    """
    findings = Findings(SHOWN) if findings is None else findings
    root, missing = config.path.parent, findings.counts["label-missing"]
    images, label_files = _find_files(config, split, findings)
    outlines, numbers, names = OutlineRecorder(), array("d"), []
    for i, (image, file) in enumerate(zip(images, label_files, strict=True)):
        for line, label, box, polygon in _read_labels(config, file, image, findings):
            numbers.extend((i, label, line, *box))
            if masks:
                outlines.add([polygon] if polygon else None)
        inside = image.is_relative_to(root)
        names.append(str(image.relative_to(root) if inside else image))
        if (not inside or ".." in image.parts) and leaves(root, image):
            findings.add("path-outside", config.path, split, f"{image} is not in {root}")
    for place in config.places[split]:
        if said := config.stand_ins.get(place):
            findings.add("folder-other", config.path, split, f"{said} does not exist, {place} does")
    missing = findings.counts["label-missing"] - missing
    if 2 * missing > len(images):
        found = f"{missing} of {len(images)} images have no label file"
        findings.add("labels-few", config.path, split, found)
    rows = np.array(numbers).reshape(-1, 7)
    boxes, table = np.zeros(len(rows), BOX), np.zeros(len(images), IMAGE)
    boxes["id"], boxes["area"] = NO_ID, np.nan
    boxes["outline"] = np.arange(len(rows)) if masks else -1
    boxes["image"], boxes["label"], boxes["place"] = rows[:, :3].T
    boxes["xyxy"] = rows[:, 3:]
    table["id"] = table["place"] = np.arange(len(images))
    return SplitRecords(
        source=config.path,
        root=root,
        class_names=config.class_names,
        category_ids=np.arange(len(config.class_names)),
        names=names,
        image_keys=range(len(images)),
        images=table,
        boxes=boxes,
        label_files=label_files,
        relative=True,
        outlines=outlines,
        masks=masks,
        findings=findings,
    )


def _find_files(
    config: YoloConfig, split: str, findings: Findings
) -> tuple[list[Path], list[Path]]:
    """Images of a split and the label file of each, which need not exist; label files of two
    images, and of files that are no images by their names, are findings.
    """
    walked: set[Path] = set()
    listed: set[Path] = set()
    for place in config.places[split]:
        (walked if place.is_dir() else listed).update(list_files(config, place))
    images = sorted(listed.union(filter(is_image, walked)))
    where = f"{config.path}: {split}"
    if not images:
        places = ", ".join(map(str, config.places[split]))
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(f"{where}: no image files in {places} ({suffixes})")
    owners: dict[Path, Path] = {}  # images by their label files
    label_files = [label_file(image) for image in images]
    for image, file in zip(images, label_files, strict=True):
        if owners.setdefault(file, image) is not image and file.exists():
            findings.add("label-shared", file, "", f"it is that of {owners[file]} and of {image}")
    folders = sorted({file.parent for file in owners})
    if not any(map(Path.exists, owners)) and not any(map(Path.is_dir, folders)):
        expected = ", ".join(map(str, folders))
        raise DatasetError(f"{where}: no label folder; expected {expected}")
    others = ((path, label_file(path)) for path in sorted(walked.difference(images)))
    lost = [path for path, file in others if file != path and file not in owners and file.exists()]
    if lost:
        counts = Counter(path.suffix.lower() for path in lost)
        found = ", ".join(f"{count} {suffix}" for suffix, count in counts.items())
        findings.add("image-format", config.path, split, f"{found}; the first is {lost[0]}")
    return images, label_files


def _class_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        expected = [str(i) for i in range(len(names))]
        if names.keys() != set(expected):
            found = f"'names' has ids {', '.join(names)}"
            raise DatasetError(f"{path}: {found}; expected 0 to {len(names) - 1} without gaps")
        names = [names[key] for key in expected]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        found = f"'names' is {short(names)}"
        raise DatasetError(f"{path}: {found}; expected class names as a list, or a map 0, 1, ...")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{path}: class names {twice} occur more than once; rename or merge")
    if (count := content.get("nc", str(len(names)))) != str(len(names)):
        listed = f"{len(names)} names are listed: {', '.join(names)}"
        raise DatasetError(f"{path}: nc is {count}, but {listed}; correct one")
    return tuple(names)


def _places(path: Path, content: dict[str, Any], split: str) -> dict[Path, str]:
    """Existing folders or lists of a split: by its key, else `<split>/images` beside the file; with
    what the file says where that is another place, which does not exist.
    """
    keys, folder = SPLIT_KEYS[split], path.parent
    entry: Any = next((content[key] for key in keys if content.get(key)), [])
    entries = [entry] if isinstance(entry, str) else entry
    base: Any = content.get("path") or ""
    if not isinstance(entries, list) or not all(map(is_file_name, [*entries, base or "."])):
        found = f"{short(entry)}, path {short(content.get('path'))}"
        raise DatasetError(f"{path}: {split}: {found}; expected names of folders")
    base = with_slashes(folder, base)
    bases = [folder / base, Path(base), folder] if base else [folder]
    usual = [place for key in (*keys, split) if (place := folder / key / "images").is_dir()][:1]
    places = {} if entries else dict.fromkeys(usual, "")
    for item in (with_slashes(folder, entry) for entry in entries):
        # Roboflow writes ../train/images for the folder beside data.yaml: that is tried first.
        inside = [folder / item.lstrip("./")] if item.startswith("..") else []
        tried = [*inside, *(base / item for base in bases)]
        there = [place for place in tried if os.path.exists(place)]  # no error for long names
        moved = usual if len(entries) == 1 else []  # an absolute path of another machine
        if there or moved:
            place = [*there, *moved][0]
            said = place in tried[: len(tried) - bool(base)]  # the last is not below `path`
            places[Path(os.path.normpath(place))] = "" if said else str(Path(base, item))
        elif split != "test":
            looked = ", ".join(dict.fromkeys(map(str, tried)))
            found = f"{item!r} does not exist; looked for {looked}"
            raise DatasetError(f"{path}: {split}: {found}. Correct it in the file")
    return places


def list_files(config: YoloConfig, place: Path) -> Iterator[Path]:
    """Files in a folder and below it, or the images that a .txt list names."""
    if place == Path(place.anchor):
        found = f"{place} is the root of the file system"
        raise DatasetError(f"{config.path}: {found}; expected a folder of images")
    if place.is_dir():
        yield from walk(place)
        return
    try:  # names need not be UTF-8
        text = place.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DatasetError(f"{place}: not a readable list of images: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if odd := [line for line in lines if not is_file_name(line)]:
        found = f"{odd[0]!r} cannot be a file's name"
        raise DatasetError(f"{place}: {found}; is this a list of images?")
    lines = [with_slashes(place.parent, line) for line in lines]
    bases = (place.parent, config.path.parent)
    base = next((base for base in bases if lines and (base / lines[0]).exists()), place.parent)
    yield from (base / line for line in lines)


def label_file(image: Path) -> Path:
    """The last folder `images` of the path becomes `labels`; without one, the label file lies
    beside the image.
    """
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(
    config: YoloConfig, file: Path, image: Path, findings: Findings
) -> Iterator[tuple[int, int, tuple[float, ...], list[float]]]:
    """Line number, label, relative xyxy box and polygon, if it is one, of each line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        findings.add("label-missing", file, "", f"{image.name} has no label file")
        return
    except (OSError, UnicodeDecodeError) as error:
        findings.add("dataset-unreadable", file, "", f"not a readable text file: {error}")
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, values = _parse_line(line, len(config.class_names), config.kpt_numbers)
        except InputError as error:
            rule, found = error.args
            findings.add(rule, file, f"line {number}", found, number)
            continue
        if len(values) == 4:
            cx, cy, w, h = values
            yield number, label, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), []
        else:
            xs, ys = values[::2], values[1::2]
            yield number, label, (min(xs), min(ys), max(xs), max(ys)), values


def _parse_line(line: str, num_classes: int, kpt_numbers: int) -> tuple[int, list[float]]:
    """Label and numbers, of a box or a polygon, of a line that is not blank; an `InputError` of the
    rule that it breaks and what was found.
    """
    try:
        label, *values = map(float, line.split())
    except ValueError:
        raise InputError("label-line", f"{line[:80]!r}, expected numbers only") from None
    if label not in range(num_classes):
        found = f"class {line.split()[0][:20]}; data.yaml has 0 to {num_classes - 1}"
        raise InputError("label-class", found)
    count, form = len(values), "4 (cx cy w h) or a polygon's x y pairs"
    right = count == 4 or (count >= 6 and count % 2 == 0)
    if kpt_numbers:
        expected, values = 4 + kpt_numbers, values[:4]
        form, right = f"{expected} (cx cy w h and the key points)", count == expected
    if not right:
        raise InputError("label-line", f"{count} numbers after the class, expected {form}")
    if not all(abs(value) <= _FARTHEST for value in values):  # false for NaN too
        found = f"{line[:80]!r}, expected numbers relative to the image, 0 to 1"
        raise InputError("label-range", found)
    return int(label), values
