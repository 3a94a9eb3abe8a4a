"""YOLO folders: data.yaml with class names and image places, and one text file of boxes or polygons
per image.

A line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, relative to the image; a polygon's box
is that around it. Where data.yaml has a `kpt_shape`, it is `class cx cy w h` and the key points, of
which nothing is read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml

from rfdetr.checks import short
from rfdetr.data.files import IMAGE_SUFFIXES, is_image, walk, with_slashes
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.index import SplitRecords, is_file_name, leaves
from rfdetr.data.segmentations import OutlineRecorder
from rfdetr.errors import InputError

YAML_NAMES = ("data.yaml", "data.yml")
SPLIT_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
_FARTHEST = 2.0  # image sizes; a coordinate beyond is in pixels, not relative

Box: TypeAlias = "tuple[float, float, float, float]"


@dataclass(frozen=True)
class YoloConfig:
    """A data.yaml: class names in label order, and the existing image folders or lists of each
    split.
    """

    path: Path
    class_names: tuple[str, ...]
    places: dict[str, tuple[Path, ...]]
    kpt_shape: tuple[int, int] | None = (
        None  # key points after each box, numbers of each; None: no key points
    )


def read_data_yaml(path: Path) -> YoloConfig:
    """Read and check a data.yaml; a split whose places do not exist is left out unless it is train
    or valid.
    """
    try:
        content = yaml.load(
            path.read_text(encoding="utf-8-sig"), yaml.BaseLoader
        )  # strings only: a class may be `no`
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not a valid YAML file: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: expected keys 'names', 'train' and 'val'; found {type(content).__name__}"
        )
    written = content
    content = {
        key.lower(): value for key, value in written.items()
    }  # CVAT writes Train and Validation
    if len(content) < len(written):
        raise DatasetError(
            f"{path}: keys {', '.join(written)}: some differ in capitals only; keep one of them"
        )
    places = {split: found for split in SPLIT_KEYS if (found := _places(path, content, split))}
    return YoloConfig(path, _class_names(path, content), places, _kpt_shape(path, content))


def read_yolo(
    config: YoloConfig, split: str, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    """Read the label files of a split; image ids are 0, 1, ... in the order of the paths.

    Faulty lines go to `findings` instead.
    """
    findings = Findings(SHOWN) if findings is None else findings
    root = config.path.parent
    found: set[Path] = set()
    listed: set[Path] = set()
    for place in config.places[split]:
        (found if place.is_dir() else listed).update(list_files(config, place))
    images = sorted(listed.union(filter(is_image, found)))
    if not images:
        where = ", ".join(map(str, config.places[split]))
        raise DatasetError(
            f"{config.path}: {split}: no image files in {where} ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    label_files = [label_file(image) for image in images]
    folders = {file.parent for file in label_files}
    if not any(file.exists() for file in label_files) and not any(
        folder.is_dir() for folder in folders
    ):
        raise DatasetError(
            f"{config.path}: {split}: no label folder; expected {', '.join(map(str, sorted(folders)))}"
        )
    _check_files(
        config,
        split,
        dict(zip(images, label_files, strict=True)),
        found.difference(images),
        findings,
    )
    outlines = OutlineRecorder() if masks else None
    rows: list[tuple[int, int, int, Box]] = []  # image, line, label, box
    without = -findings.counts["label-missing"]
    for i, (image, file) in enumerate(zip(images, label_files, strict=True)):
        rows += ((i, *line) for line in _read_labels(config, file, image, findings, outlines))
        if (not image.is_relative_to(root) or ".." in image.parts) and leaves(root, image):
            findings.add("path-outside", config.path, split, f"{image} is not in {root}")
    without += findings.counts["label-missing"]
    if 2 * without > len(images):
        findings.add(
            "labels-few",
            config.path,
            split,
            f"{without} of {len(images)} images have no label file",
        )
    image_of_box, lines, labels, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return SplitRecords(
        source=config.path,
        root=root,
        class_names=config.class_names,
        category_ids=np.arange(len(config.class_names)),
        names=[
            str(image.relative_to(root)) if image.is_relative_to(root) else str(image)
            for image in images
        ],
        image_ids=np.arange(len(images)),
        label_files=label_files,
        image_of_box=np.array(image_of_box, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        relative=True,
        labels=np.array(labels, np.int64),
        crowd=np.zeros(len(boxes), np.bool_),
        areas=np.full(len(boxes), np.nan),
        box_places=np.array(lines, np.int64),
        outlines=outlines,
        findings=findings,
    )


def _check_files(
    config: YoloConfig,
    split: str,
    label_of: dict[Path, Path],
    others: set[Path],
    findings: Findings,
) -> None:
    """Label files of two images, and of files that are none by their names."""
    owners: dict[Path, Path] = {}
    for image, file in label_of.items():
        if owners.setdefault(file, image) is not image and file.exists():
            findings.add("label-shared", file, "", f"it is that of {owners[file]} and of {image}")
    labels = {file: label_file(file) for file in sorted(others)}
    lost = [
        file
        for file, label in labels.items()
        if label not in owners and label != file and label.exists()
    ]
    if lost:
        counts = Counter(file.suffix.lower() for file in lost)
        found = ", ".join(f"{count} {suffix}" for suffix, count in counts.items())
        findings.add("image-format", config.path, split, f"{found}; the first is {lost[0]}")


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
        raise DatasetError(
            f"{path}: 'names' is {short(names)}; expected class names as a list, or as a map from 0, 1, ..."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            f"{path}: class names {twice} occur more than once; rename or merge them"
        )
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise DatasetError(
            f"{path}: nc is {count}, but {len(names)} names are listed: {', '.join(names)}; correct one"
        )
    return tuple(names)


def _kpt_shape(path: Path, content: dict[str, Any]) -> tuple[int, int] | None:
    if not content.get("kpt_shape"):
        return None
    shape = re.fullmatch(r"\['(\d{1,4})', '([23])'\]", short(content["kpt_shape"]))
    if shape is None:
        raise DatasetError(
            f"{path}: kpt_shape is {short(content['kpt_shape'])}; expected [points, 2 or 3]"
        )
    return int(shape[1]), int(shape[2])


def _places(path: Path, content: dict[str, Any], split: str) -> tuple[Path, ...]:
    """Existing folders or lists of a split: by its key, or where none has it, `<split>/images`
    beside the file.
    """
    keys = SPLIT_KEYS[split]
    entry: Any = next((content[key] for key in keys if content.get(key)), [])
    entries = [entry] if isinstance(entry, str) else entry
    if not isinstance(entries, list) or not all(
        map(is_file_name, [*entries, content.get("path") or "."])
    ):
        raise DatasetError(
            f"{path}: {split}: {short(entry)}, path {short(content.get('path'))}; expected names of folders"
        )
    folder = path.parent
    base = with_slashes(folder, content.get("path") or "")
    bases = (folder / base, Path(base)) if base else ()
    usual = [folder / name / "images" for name in (*keys, split)]
    found = []
    for item in (with_slashes(folder, entry) for entry in entries):
        # Roboflow writes ../train/images for the folder beside data.yaml, so that is tried before
        # what it says.
        inside = [folder / item.lstrip("./")] if item.startswith("..") else []
        candidates = [*inside, *(base / item for base in bases), folder / item]
        place = next(
            (place for place in candidates if os.path.exists(place)), None
        )  # false for names too long, too
        if place is None and len(entries) == 1:
            place = next(
                (place for place in usual if place.is_dir()), None
            )  # the set has moved since
        if place is not None:
            found.append(Path(os.path.normpath(place)))
        elif split != "test":
            looked = ", ".join(dict.fromkeys(map(str, candidates)))
            raise DatasetError(
                f"{path}: {split}: {item!r} does not exist; looked for {looked}. Correct it in the file"
            )
    if not entries:
        found = [place for place in usual if place.is_dir()][:1]
    return tuple(found)


def list_files(config: YoloConfig, place: Path) -> Iterator[Path]:
    """Files in a folder and below it, or the images that a .txt list names."""
    if place == Path(place.anchor):
        raise DatasetError(
            f"{config.path}: {place} is the root of the file system; expected a folder of images"
        )
    if place.is_dir():
        yield from walk(place)
        return
    try:
        text = place.read_text(
            encoding="utf-8-sig", errors="surrogateescape"
        )  # names need not be UTF-8
    except OSError as error:
        raise DatasetError(f"{place}: not a readable list of images: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if odd := [line for line in lines if not is_file_name(line)]:
        raise DatasetError(
            f"{place}: {odd[0]!r} cannot be a file's name; is this a list of images?"
        )
    lines = [with_slashes(place.parent, line) for line in lines]
    bases = (place.parent, config.path.parent)
    base = next(
        (base for base in bases for line in lines[:1] if (base / line).exists()), place.parent
    )
    yield from (base / line for line in lines)


def label_file(image: Path) -> Path:
    """The last folder `images` of the path becomes `labels`; without one, the label file lies
    beside the image.
    """
    parts = list(image.parts)
    at = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(
    config: YoloConfig,
    file: Path,
    image: Path,
    findings: Findings,
    outlines: OutlineRecorder | None,
) -> Iterator[tuple[int, int, Box]]:
    """Line number, label and relative xyxy box of each line that has them; its polygon goes to
    `outlines`.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        findings.add("label-missing", file, "", f"{image.name} has no label file")
        return
    except (OSError, UnicodeDecodeError) as error:
        findings.add("dataset-unreadable", file, "", f"not a readable text file: {error}")
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                label, box, polygon = parse_line(line, len(config.class_names), config.kpt_shape)
            except LineError as error:
                findings.add(error.rule, file, f"line {number}", str(error), number)
                continue
            if outlines is not None:
                outlines.add([polygon] if polygon else None)
            yield number, label, box


class LineError(InputError):
    """A label line that cannot be used, and the rule it breaks."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(found)
        self.rule = rule


def parse_line(
    line: str, num_classes: int, kpt_shape: tuple[int, int] | None = None
) -> tuple[int, Box, list[float]]:
    """Label, relative xyxy box and polygon, if it is one, of a line that is not blank."""
    tokens = line.split()
    try:
        label, *values = map(float, tokens)
    except ValueError:
        raise LineError("label-line", f"{line[:80]!r}, expected numbers only") from None
    if label not in range(num_classes):
        raise LineError(
            "label-class", f"class {tokens[0][:20]}; data.yaml has 0 to {num_classes - 1}"
        )
    if kpt_shape is not None:
        expected = 4 + kpt_shape[0] * kpt_shape[1]
        if len(values) != expected:
            found = f"{len(values)} numbers after the class, expected {expected} (cx cy w h and the key points)"
            raise LineError("label-line", found)
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        found = f"{len(values)} numbers after the class, expected 4 (cx cy w h) or a polygon's x y pairs"
        raise LineError("label-line", found)
    if not all(abs(value) <= _FARTHEST for value in values):  # false for NaN too
        raise LineError(
            "label-range", f"{line[:80]!r}, expected numbers relative to the image, 0 to 1"
        )
    if len(values) == 4:
        cx, cy, w, h = values
        return int(label), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), []
    return (
        int(label),
        (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])),
        values,
    )
