"""A corrected copy of a dataset's annotations; its images are links to the originals, which are never touched.

What a rule's findings change stands in the tables below; what no table names is left for a person to decide.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import yaml

from rfdetr.data.doctor import Report
from rfdetr.data.findings import Finding
from rfdetr.data.ids import id_key
from rfdetr.data.index import leaves
from rfdetr.data.layout import CocoSplit
from rfdetr.data.yolo import SPLIT_KEYS, YoloConfig

Annotation = dict[str, Any]
Size = tuple[int, int]  # height, width
_WHOLE_FILE = -1
Places: TypeAlias = "defaultdict[tuple[str, bool], defaultdict[int, list[Finding]]]"


class Change(NamedTuple):
    """What was changed in a record of the copy."""

    file: str
    record: str
    rule: str
    change: str


def _clip(entry: Annotation, size: Size) -> str:
    x, y, w, h = entry["bbox"]
    right, bottom = min(x + w, size[1]), min(y + h, size[0])
    left, top = max(x, 0), max(y, 0)
    entry["bbox"] = [left, top, right - left, bottom - top]
    if isinstance(entry.get("area"), int | float):
        entry["area"] = min(entry["area"], (right - left) * (bottom - top))
    return f"clipped to {entry['bbox']}"


def _from_xyxy(entry: Annotation, _: Size) -> str:
    x, y, right, bottom = entry["bbox"]
    entry["bbox"] = [x, y, right - x, bottom - y]
    if "area" in entry:
        entry["area"] = (right - x) * (bottom - y)
    return f"converted to {entry['bbox']}"


def _own_area(entry: Annotation, _: Size) -> str:
    entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return f"area set to {entry['area']:g}"


def _no_crowd(entry: Annotation, _: Size) -> str:
    entry["iscrowd"] = 0
    return "iscrowd set to 0"


def _no_outline(entry: Annotation, _: Size) -> str:
    entry["segmentation"] = []
    return "outline removed, box kept"


def _clip_outline(entry: Annotation, size: Size) -> str:
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in entry["segmentation"]]
    entry["segmentation"] = [np.clip(part, 0, size[::-1]).ravel().tolist() for part in parts]
    return "outline clipped"


_DROPPED = ("box-not-finite", "box-no-size", "box-outside", "box-repeated")
_DROPPED_ENTRIES = (*_DROPPED, "annotation-entry", "annotation-unknown-image", "annotation-unknown-category")
_DROPPED_LINES = (*_DROPPED, "label-line", "label-class", "label-range")
_DROPPED_IMAGES = ("image-entry", "image-missing", "image-unreadable", "image-truncated", "split-leak")
_ABOUT_IMAGES = ("image-", "split-", "path-")  # what rules about images start with
_ANNOTATION_FIXES: dict[str, Callable[[Annotation, Size], str]] = {  # in the order in which they act
    "boxes-xyxy": _from_xyxy,
    "box-likely-xyxy": _from_xyxy,
    "box-clipped": _clip,
    "box-area": _own_area,
    "crowd-flag": _no_crowd,
    "outline-outside": _clip_outline,
    "outline-points": _no_outline,
    "outline-numbers": _no_outline,
    "outline-rle": _no_outline,
}


def fix(report: Report, out: str | os.PathLike[str]) -> list[Change]:
    """Write a corrected copy of the checked dataset into a new folder, and say what was changed.

    Images are symbolic links to the originals (copies where the system has no links).
    """
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: not an empty folder; nothing is overwritten, choose another one")
    if report.layout is None:
        raise ValueError(f"{report.dataset}: there is no dataset that could be read, so none to correct")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    found = _by_place(report)
    try:
        changes: list[Change] = []
        for split in report.indexes:
            place = report.layout.splits[split]
            changes += (
                _fix_coco(report, found, split, place, partial)
                if isinstance(place, CocoSplit)
                else _fix_yolo(report, found, split, place, partial)
            )
        if report.layout.format == "yolo":
            _write_yaml(report, partial)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rmdir()  # empty, as checked above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return changes


def _by_place(report: Report) -> Places:
    """The findings of each file, those about images apart from those about boxes, by their place in it."""
    found: Places = defaultdict(lambda: defaultdict(list))
    for finding in report.findings.kept():
        if finding.rule == "boxes-xyxy":
            found[finding.file, False][_WHOLE_FILE].append(finding)
        elif finding.at is not None:
            found[finding.file, finding.rule.startswith(_ABOUT_IMAGES)][finding.at].append(finding)
    return found


def _fix_coco(report: Report, found: Places, split: str, place: CocoSplit, out: Path) -> list[Change]:
    assert report.layout is not None
    source, index, root = str(place.annotations), report.indexes[split], report.layout.dataset_dir
    content = json.loads(place.annotations.read_text(encoding="utf-8-sig"))
    of_image, records = found[source, True], report.records[split]
    assert records.image_keys is not None and records.image_places is not None
    read_as = dict(zip(records.image_places.tolist(), records.names, strict=True))
    changes, images = [], []
    for at, entry in enumerate(content["images"]):
        if drop := _first(of_image[at], _DROPPED_IMAGES):
            changes.append(Change(source, drop.record, drop.rule, "image left out, with its boxes"))
        else:
            name = _linked(place.images, read_as.get(at, entry["file_name"]), out / place.images.relative_to(root), at)
            if name != entry["file_name"]:
                rule = "path-outside" if "\\" not in entry["file_name"] else "path-backslash"
                changes.append(Change(source, entry["file_name"], rule, f"linked as {name}"))
            images.append({**entry, "file_name": name})
    kept = {id_key(entry["id"]) for entry in images}
    sizes = {key: size for key, size in zip(records.image_keys, index.sizes.tolist(), strict=True) if key in kept}
    annotations, more = _fix_annotations(found, place.annotations, content["annotations"], sizes)
    target = out / place.annotations.relative_to(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**content, "images": images, "annotations": annotations}), encoding="utf-8")
    return changes + more


def _fix_annotations(
    found: Places, file: Path, entries: list[Any], sizes: Mapping[Any, Size]
) -> tuple[list[Annotation], list[Change]]:
    """The annotations of the images that stay, corrected."""
    of_entry = found[str(file), False]
    all_xyxy = _WHOLE_FILE in of_entry
    fixes = {**_ANNOTATION_FIXES, "annotation-id-repeated": _new_id(entries)}
    kept, changes = [], []
    for at, entry in enumerate(entries):
        findings = [Finding("boxes-xyxy", str(file), f"annotation number {at}", "", at)] if all_xyxy else of_entry[at]
        if drop := _first(findings, _DROPPED_ENTRIES):
            changes.append(Change(str(file), drop.record, drop.rule, "left out"))
        elif (size := sizes.get(id_key(entry["image_id"]))) is not None:
            for rule, change in fixes.items():
                if finding := _first(findings, (rule,)):
                    changes.append(Change(str(file), finding.record, rule, change(entry, size)))
            kept.append(entry)
    return kept, changes


def _first(findings: Iterable[Finding], rules: Sequence[str]) -> Finding | None:
    return next((finding for finding in findings if finding.rule in rules), None)


def _new_id(entries: list[Any]) -> Callable[[Annotation, Size], str]:
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    free = itertools.count(max((identity for identity in ids if isinstance(identity, int)), default=0) + 1)

    def change(entry: Annotation, _: Size) -> str:
        entry["id"] = next(free)
        return f"id is now {entry['id']}"

    return change


def _fix_yolo(report: Report, found: Places, split: str, config: YoloConfig, out: Path) -> list[Change]:
    """Images and labels of a split as `<split>/images` and `<split>/labels`."""
    records = report.records[split]
    of_image = found[str(records.source), True]
    changes: list[Change] = []
    (out / split / "labels").mkdir(parents=True)
    for i, (name, file) in enumerate(zip(records.names, records.label_files or (), strict=True)):
        own = [finding for finding in of_image[i] if finding.record.startswith(f"{name} ")]  # other splits count anew
        if drop := _first(own, _DROPPED_IMAGES):
            changes.append(Change(str(records.source), drop.record, drop.rule, "image left out, with its boxes"))
            continue
        stem = f"{i:06d}-{Path(name).stem}"
        _link(records.root / name, out / split / "images" / f"{stem}{Path(name).suffix}")
        if file.is_file():
            lines, more = _fix_lines(found, file, config.kpt_shape is not None)
            changes += more
            (out / split / "labels" / f"{stem}.txt").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
    return changes


def _fix_lines(found: Places, file: Path, key_points: bool) -> tuple[list[str], list[Change]]:
    of_line = found[str(file), False]
    lines, changes = [], []
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if drop := _first(of_line[number], _DROPPED_LINES):
            changes.append(Change(str(file), drop.record, drop.rule, "line left out"))
            continue
        if clip := _first(of_line[number], ("box-clipped", "outline-outside")):
            line = _clipped_line(line, key_points)
            changes.append(Change(str(file), clip.record, clip.rule, f"clipped to {line}"))
        lines.append(line)
    return lines, changes


def _clipped_line(line: str, key_points: bool) -> str:
    label, *numbers = line.split()
    numbers, rest = (numbers[:4], numbers[4:]) if key_points else (numbers, [])
    values = np.array(numbers, np.float64).reshape(-1, 2)
    if len(values) == 2:
        low, high = np.clip((values[0] - values[1] / 2, values[0] + values[1] / 2), 0, 1)
        values = np.stack(((low + high) / 2, high - low))
    return " ".join([label, *(f"{value:.8g}" for value in np.clip(values, 0, 1).ravel()), *rest])


def _write_yaml(report: Report, out: Path) -> None:
    assert report.layout is not None
    names = next(iter(report.indexes.values())).class_names
    places = {SPLIT_KEYS[split][0]: f"{split}/images" for split in report.indexes}
    content: dict[str, Any] = {**places, "nc": len(names), "names": list(names)}
    config = next(iter(report.layout.splits.values()))
    if isinstance(config, YoloConfig) and config.kpt_shape:
        content["kpt_shape"] = list(config.kpt_shape)
    (out / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _linked(folder: Path, name: str, target: Path, number: int) -> str:
    """Link an image under its name, or under another where that would lead out of the copy."""
    kept = f"outside-{number}{Path(name).suffix}" if leaves(target, target / name) else name
    _link(folder / name, target / kept)
    return kept


def _link(original: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(original.resolve())
    except FileExistsError:  # an image that two records list
        return
    except OSError:
        shutil.copyfile(original, link)
