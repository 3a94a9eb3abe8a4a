"""A corrected copy of a dataset's annotations; its images are links to the originals, which are
never touched.

What a rule's findings change stands in the tables below; what no table names is left for a person
to decide.
"""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from rfdetr.checks import check_path
from rfdetr.data.files import leaves
from rfdetr.data.findings import Finding
from rfdetr.data.ids import id_key
from rfdetr.data.layout import CocoSplit
from rfdetr.data.records import SplitRecords
from rfdetr.data.yolo import SPLIT_KEYS
from rfdetr.doctor.check import Report
from rfdetr.doctor.outlines import outline_faults
from rfdetr.errors import InputError

Annotation = dict[str, Any]
Size = tuple[int, int]  # height, width
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
    if entry.get("area") is not None and not 0 < entry["area"] <= (right - x) * (bottom - y):
        entry["area"] = (right - x) * (bottom - y)
    return f"converted to {entry['bbox']}"


def _own_area(entry: Annotation, _: Size) -> str:
    entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return f"area set to {entry['area']:g}"


def _no_crowd(entry: Annotation, _: Size) -> str:
    entry["iscrowd"] = 0
    return "iscrowd set to 0"


def _usable_outline(entry: Annotation, _: Size) -> str:
    """Leave out the parts of an outline that nothing can be drawn of, and all that is no list of
    polygons.
    """
    parts = entry["segmentation"] if isinstance(entry["segmentation"], list) else []
    parts = [
        part for part in parts if not _BROKEN & {rule for rule, _ in outline_faults([part], 0, 0)}
    ]
    entry["segmentation"] = [part for part in parts if _encloses(np.array(part, np.float64))]
    return "a part of the outline removed" if entry["segmentation"] else "outline removed, box kept"


def _clip_outline(entry: Annotation, size: Size) -> str:
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in entry["segmentation"]]
    clipped = [np.clip(part, 0, size[::-1]).ravel() for part in parts]
    entry["segmentation"] = [part.tolist() for part in clipped if _encloses(part)]
    return "outline clipped"


def _encloses(part: NDArray[np.float64]) -> bool:
    extent = np.ptp(part.reshape(-1, 2), axis=0)
    return bool((np.isfinite(extent) & (extent > 0)).all())


_BROKEN = {"outline-points", "outline-numbers"}
_DROPPED = ("box-not-finite", "box-no-size", "box-outside", "box-repeated")
_DROPPED_ENTRIES = (
    *_DROPPED,
    "annotation-entry",
    "annotation-unknown-image",
    "annotation-unknown-category",
)
_DROPPED_LINES = (*_DROPPED, "label-line", "label-class", "label-range")
_DROPPED_IMAGES = (
    "image-entry",
    "image-missing",
    "image-unreadable",
    "image-truncated",
    "split-leak",
)
_ABOUT_IMAGES = ("image-", "split-", "path-")  # what rules about images start with
_ANNOTATION_FIXES: dict[
    str, Callable[[Annotation, Size], str]
] = {  # in the order in which they act
    "boxes-xyxy": _from_xyxy,
    "box-likely-xyxy": _from_xyxy,
    "box-clipped": _clip,
    "box-area": _own_area,
    "crowd-flag": _no_crowd,
    "outline-points": _usable_outline,
    "outline-numbers": _usable_outline,
    "outline-rle": _usable_outline,
    "outline-outside": _clip_outline,
}


class Share(NamedTuple):
    """How much of a split is in the copy; boxes are counted as they stand in the files."""

    split: str
    images: int
    images_kept: int
    boxes: int
    boxes_kept: int


class Copy(NamedTuple):
    """What was changed on the way to a corrected copy, and how much of each split is in it."""

    changes: list[Change]
    shares: list[Share]


def fix(report: Report, out: str | os.PathLike[str], *, force: bool = False) -> Copy:
    """Write a corrected copy of the checked dataset into a new folder, and say what was changed.

    Images are symbolic links to the originals (copies where the system has no links). A copy
    without one of the splits, or without most of its images or boxes, is a `ValueError`, and
    nothing is written, unless it is wanted by `force`.
    """
    folder = check_path("the folder of the copy", out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder}: not an empty folder; nothing is overwritten, choose another one"
        )
    if report.layout is None or not report.records:
        raise InputError(
            f"{report.dataset}: there is no dataset that could be read, so none to correct"
        )
    copy = Copy([], [])
    for split in report.layout.splits:
        if split not in report.records:
            copy.changes.append(
                Change(
                    str(report.dataset), f"split {split}", "dataset-unreadable", "split left out"
                )
            )
            copy.shares.append(Share(split, 0, 0, 0, 0))
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    found = _by_place(report)
    try:
        for split, records in report.records.items():
            place = report.layout.splits[split]
            changes, share = (
                _fix_coco(records, found, split, place, report.layout.dataset_dir, partial)
                if isinstance(place, CocoSplit)
                else _fix_yolo(records, found, split, partial)
            )
            copy.changes.extend(changes)
            copy.shares.append(share)
        if not force:
            _refuse_losses(report, copy.shares)
        if report.layout.format == "yolo":
            _write_yaml(report, partial)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rmdir()  # empty, as checked above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return copy


def _refuse_losses(report: Report, shares: list[Share]) -> None:
    lost = [
        f"{share.split} (cannot be read)"
        if share.split not in report.records
        else f"{share.split} ({share.images_kept} of {share.images} images, {share.boxes_kept} of {share.boxes} boxes)"
        for share in shares
        if share.split not in report.records
        or 2 * share.images_kept < share.images
        or 2 * share.boxes_kept < share.boxes
    ]
    if lost:
        raise InputError(
            f"{report.dataset}: the copy would lose most of {', '.join(lost)}; nothing was written. Correct the cause "
            "of the errors by hand, or take what is left with --force"
        )


def _by_place(report: Report) -> Places:
    """The findings of each file, those about images apart from those about boxes, by their place in
    it.

    That a whole file is in x1 y1 x2 y2 becomes a finding on each of the boxes.
    """
    found: Places = defaultdict(lambda: defaultdict(list))
    for finding in report.findings.kept():
        if finding.at is not None:
            found[finding.file, finding.rule.startswith(_ABOUT_IMAGES)][finding.at].append(finding)
    for records in report.records.values():
        if records.swapped is not None:
            for row in np.flatnonzero(records.swapped).tolist():
                file, record, text, at = records.describe_box(row, "")
                found[str(file), False][at or 0].append(
                    Finding("boxes-xyxy", str(file), record, text, at)
                )
    return found


def _fix_coco(
    records: SplitRecords, found: Places, split: str, place: CocoSplit, root: Path, out: Path
) -> tuple[list[Change], Share]:
    source = str(place.annotations)
    content = json.loads(place.annotations.read_text(encoding="utf-8-sig"))
    of_image = found[source, True]
    names = dict(zip(records.images["place"].tolist(), records.names, strict=True))
    changes, images, left_out = [], [], set()
    # Whose boxes are whose is not known of images with one id: all of them are left out.
    ids = Counter(id_key(entry.get("id")) for entry in content["images"] if isinstance(entry, dict))
    for at, entry in enumerate(content["images"]):
        if drop := _first(of_image[at], _DROPPED_IMAGES):
            changes.append(Change(source, drop.record, drop.rule, "image left out, with its boxes"))
            left_out.add(at)
        elif ids[id_key(entry["id"])] > 1:
            record = f"{entry['file_name']} (image id {entry['id']})"
            changes.append(
                Change(source, record, "image-id-repeated", "image left out, with its boxes")
            )
            left_out.add(at)
        else:
            name = _linked(
                place.images,
                names.get(at, entry["file_name"]),
                out / place.images.relative_to(root),
                at,
            )
            if name != entry["file_name"]:
                rule = "path-outside" if "\\" not in entry["file_name"] else "path-backslash"
                changes.append(Change(source, entry["file_name"], rule, f"linked as {name}"))
            images.append({**entry, "file_name": name})
    annotations, more = _fix_annotations(
        records, found[source, False], content["annotations"], left_out
    )
    target = out / place.annotations.relative_to(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        json.dumps({**content, "images": images, "annotations": annotations}), encoding="utf-8"
    )
    share = Share(
        split, len(content["images"]), len(images), len(content["annotations"]), len(annotations)
    )
    return changes + more, share


def _fix_annotations(
    records: SplitRecords,
    of_entry: dict[int, list[Finding]],
    entries: list[Any],
    left_out: set[int],
) -> tuple[list[Annotation], list[Change]]:
    """The annotations of the images that stay, corrected; what the reader did not take stays as it
    is.
    """
    image_of = dict(
        zip(*(records.boxes[name].tolist() for name in ("place", "image")), strict=True)
    )
    places, sizes, file = (
        records.images["place"].tolist(),
        records.images["size"].tolist(),
        str(records.source),
    )
    fixes = {**_ANNOTATION_FIXES, "annotation-id-repeated": _new_id(entries)}
    kept, changes = [], []
    for at, entry in enumerate(entries):
        if drop := _first(of_entry[at], _DROPPED_ENTRIES):
            changes.append(Change(file, drop.record, drop.rule, "left out"))
        elif at not in image_of:
            kept.append(entry)
        elif places[image_of[at]] not in left_out:
            for rule, change in fixes.items():
                if finding := _first(of_entry[at], (rule,)):
                    changes.append(
                        Change(file, finding.record, rule, change(entry, sizes[image_of[at]]))
                    )
            kept.append(entry)
    return kept, changes


def _first(findings: Iterable[Finding], rules: Sequence[str]) -> Finding | None:
    return next((finding for finding in findings if finding.rule in rules), None)


def _new_id(entries: list[Any]) -> Callable[[Annotation, Size], str]:
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    free = itertools.count(
        max((identity for identity in ids if isinstance(identity, int)), default=0) + 1
    )

    def change(entry: Annotation, _: Size) -> str:
        entry["id"] = next(free)
        return f"id is now {entry['id']}"

    return change


def _fix_yolo(
    records: SplitRecords, found: Places, split: str, out: Path
) -> tuple[list[Change], Share]:
    """Images and labels of a split as `<split>/images` and `<split>/labels`."""
    of_image = found[str(records.source), True]
    has_points = "kpt_shape" in _other_keys(records.source)
    changes: list[Change] = []
    images = boxes = boxes_kept = 0
    (out / split / "labels").mkdir(parents=True)
    for i, (name, file) in enumerate(zip(records.names, records.label_files or (), strict=True)):
        content = file.read_bytes() if file.is_file() else None
        try:
            text = None if content is None else content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            boxes += len((content or b"").splitlines())
            changes.append(
                Change(
                    str(file), name, "label-line", "image left out: its label file is no UTF-8 text"
                )
            )
            continue
        boxes += sum(bool(line.strip()) for line in text or ())
        own = [
            finding for finding in of_image[i] if finding.record.startswith(f"{name} ")
        ]  # other splits count anew
        if drop := _first(own, _DROPPED_IMAGES):
            changes.append(
                Change(
                    str(records.source), drop.record, drop.rule, "image left out, with its boxes"
                )
            )
            continue
        stem = f"{i:06d}-{Path(name).stem}"
        _link(records.root / name, out / split / "images" / f"{stem}{Path(name).suffix}")
        images += 1
        if text is not None:
            lines, more = _fix_lines(found[str(file), False], file, text, has_points)
            changes += more
            boxes_kept += sum(bool(line.strip()) for line in lines)
            (out / split / "labels" / f"{stem}.txt").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
    return changes, Share(split, len(records.names), images, boxes, boxes_kept)


def _fix_lines(
    of_line: dict[int, list[Finding]], file: Path, text: list[str], has_points: bool
) -> tuple[list[str], list[Change]]:
    lines, changes = [], []
    for number, line in enumerate(text, 1):
        if drop := _first(of_line[number], _DROPPED_LINES):
            changes.append(Change(str(file), drop.record, drop.rule, "line left out"))
            continue
        if clip := _first(of_line[number], ("box-clipped", "outline-outside")):
            line = _clipped_line(line, has_points)
            changes.append(Change(str(file), clip.record, clip.rule, f"clipped to {line}"))
        lines.append(line)
    return lines, changes


def _clipped_line(line: str, has_points: bool) -> str:
    """A line whose box or polygon is inside the image; key points, which may follow a box, stay."""
    label, *numbers = line.split()
    numbers, points = (numbers[:4], numbers[4:]) if has_points else (numbers, [])
    values = np.array(numbers, np.float64).reshape(-1, 2)
    if len(values) == 2:
        low, high = np.clip((values[0] - values[1] / 2, values[0] + values[1] / 2), 0, 1)
        values = np.stack(((low + high) / 2, high - low))
    return " ".join([label, *(f"{value:.8g}" for value in np.clip(values, 0, 1).ravel()), *points])


def _write_yaml(report: Report, out: Path) -> None:
    records = next(iter(report.records.values()))
    places = {SPLIT_KEYS[split][0]: f"{split}/images" for split in report.records}
    content = {**places, "nc": len(records.class_names), "names": list(records.class_names)}
    content |= _other_keys(records.source)
    (out / "data.yaml").write_text(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _other_keys(data_yaml: Path) -> dict[str, Any]:
    """What a data.yaml says beyond places and classes, such as the shape of key points."""
    content: dict[str, Any] = yaml.safe_load(data_yaml.read_text(encoding="utf-8-sig"))
    replaced = {"path", "nc", "names", "download", *itertools.chain(*SPLIT_KEYS.values())}
    return {key: value for key, value in content.items() if str(key) not in replaced}


def _linked(folder: Path, name: str, target: Path, number: int) -> str:
    """Link an image under its name, or under another where that would lead out of the copy."""
    kept = f"outside-{number}{Path(name).suffix}" if leaves(target, target / name) else name
    _link(folder / name, target / kept)
    return kept


def _link(original: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link):
        if not filecmp.cmp(original, link):  # else two records list the image
            raise FileExistsError(
                f"{original}: another image has its name in the copy, {link.name}; rename one of them"
            )
        return
    try:
        link.symlink_to(original.resolve())
    except OSError:
        shutil.copyfile(original, link)
