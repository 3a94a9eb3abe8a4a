"""A corrected copy of a dataset's annotations, with links to the images, which are never touched.

The rules in `_DROPPED` leave an image or a box out, those in `_FIXES` correct a box; what neither
names is left for a person to decide. A copy has the files of the original, except that of a YOLO
dataset is `<split>/images`, `<split>/labels` and data.yaml.
"""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rfdetr.checks import check_new_folder, short
from rfdetr.data.files import leaves
from rfdetr.data.findings import Finding
from rfdetr.data.formats.coco import id_key
from rfdetr.data.formats.yolo import SPLIT_KEYS, YoloConfig
from rfdetr.data.layout import CocoSplit
from rfdetr.data.records import SplitRecords
from rfdetr.doctor.check import Report
from rfdetr.doctor.hints import RULES as HINT_RULES
from rfdetr.doctor.hints import HintEdits, LabelHint
from rfdetr.doctor.labels import outline_faults
from rfdetr.errors import InputError

Annotation = dict[str, Any]
Size = tuple[int, int]  # height, width of the image


class Change(NamedTuple):
    """What was changed in a record of the copy."""

    file: str
    record: str
    rule: str
    change: str


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


# Each correction takes an annotation and the size of its image, and returns the changed fields.


def from_xyxy(entry: Annotation, _: Size) -> Annotation:
    """Box x1 y1 x2 y2 as x y width height."""
    return _box(entry.get("area"), *entry["bbox"])


def clip(entry: Annotation, size: Size) -> Annotation:
    """The part of the box that is inside the image."""
    x, y, w, h = entry["bbox"]
    right, bottom = min(x + w, size[1]), min(y + h, size[0])
    return _box(entry.get("area"), max(x, 0), max(y, 0), right, bottom)


def _box(area: Any, left: float, top: float, right: float, bottom: float) -> Annotation:
    """The fields of a box; an area that cannot be its own becomes its own."""
    most = (right - left) * (bottom - top)
    odd = isinstance(area, int | float) and not 0 < area <= most
    return {"bbox": [left, top, right - left, bottom - top]} | ({"area": most} if odd else {})


def usable_outline(entry: Annotation, _: Size) -> Annotation:
    """Leave out the polygons of which nothing can be drawn, and all that is no list of polygons."""

    def is_usable(part: Any) -> bool:
        rules = {rule for rule, _ in outline_faults([part], 0, 0)}
        return not rules & {"outline-points", "outline-numbers"} and _encloses(part)

    parts = entry["segmentation"] if isinstance(entry["segmentation"], list) else []
    return {"segmentation": [part for part in parts if is_usable(part)]}


def clip_outline(entry: Annotation, size: Size) -> Annotation:
    """The polygons moved into the image; those that are wholly outside have no area, and go."""
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in entry["segmentation"]]
    clipped = [np.clip(part, 0, size[::-1]).ravel().tolist() for part in parts]
    return {"segmentation": [part for part in clipped if _encloses(part)]}


def _encloses(part: list[float]) -> bool:
    """Whether the bounding box of a polygon's corners x, y, x, y, ... has an area."""
    extent = np.ptp(np.array(part, np.float64).reshape(-1, 2), axis=0)
    return bool((np.isfinite(extent) & (extent > 0)).all())


# What a rule's finding changes in a COCO annotation, in the order in which they act.
_FIXES: dict[str, Callable[[Annotation, Size], Annotation]] = {
    "boxes-xyxy": from_xyxy,
    "box-likely-xyxy": from_xyxy,
    "box-clipped": clip,
    "box-area": lambda entry, _: {"area": entry["bbox"][2] * entry["bbox"][3]},
    "crowd-flag": lambda *_: {"iscrowd": 0},
    "outline-points": usable_outline,
    "outline-numbers": usable_outline,
    "outline-rle": usable_outline,
    "outline-outside": clip_outline,
}
# The rules of which a box, or an image with its boxes, is left out.
_DROPPED = {
    "image-entry", "image-missing", "image-unreadable", "image-truncated", "split-leak",
    "box-not-finite", "box-no-size", "box-outside", "box-repeated", "annotation-entry",
    "annotation-unknown-image", "annotation-unknown-category", "label-line", "label-class",
    "label-range",
}  # fmt: skip
_WITHOUT_IMAGE = "image left out, with its boxes"


def fix(
    report: Report,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    hints: Sequence[LabelHint] = (),
) -> Copy:
    """Write a corrected copy of the checked dataset into a new folder, and say what was changed.

    `hints` are those of a report whose user agrees (`read_hints`): they change labels, too.

    Images are symbolic links to the originals (copies where the system has no links). A copy
    without one of the splits, or without most of its images or boxes, is an `InputError`, unless
    `force` wants it: nothing is written. An `out` that is not empty is a `FileExistsError`.
    """
    folder = check_new_folder("the folder of the copy", out)
    if report.layout is None or not report.records:
        raise InputError(f"{report.dataset}: no dataset that could be read, so none to correct")
    if report.layout.pack is not None:
        raise InputError(f"{report.dataset} is packed: correct its folder, and pack it again")
    if (form := report.layout.format) not in ("coco", "yolo"):
        told = f"{report.dataset}: labels of {form.upper()} are not corrected"
        raise InputError(f"{told}: rfdetr convert {report.dataset} NEW_FOLDER, then correct that")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    writer = _Writer(report, partial, HintEdits(report.records, hints))
    try:
        for split, place in report.layout.splits.items():
            if split not in report.records:
                unread = f"split {split}", "dataset-unreadable", "split left out"
                writer.tell(str(report.dataset), *unread)
                writer.copy.shares.append(Share(split, 0, 0, 0, 0))
            elif isinstance(place, CocoSplit):
                writer.write_coco(split, place, report.layout.dataset_dir)
            elif isinstance(place, YoloConfig):
                writer.write_yolo(split, place)
        if not force:
            _refuse_losses(report, writer.copy.shares)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rmdir()  # empty, as checked above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return writer.copy


def _refuse_losses(report: Report, shares: list[Share]) -> None:
    """Raise an `InputError` that names the splits of which less than half would be in the copy."""
    lost = []
    for split, images, images_kept, boxes, boxes_kept in shares:
        if split not in report.records:
            lost.append(f"{split} (cannot be read)")
        elif 2 * images_kept < images or 2 * boxes_kept < boxes:
            kept = f"{images_kept} of {images} images, {boxes_kept} of {boxes} boxes"
            lost.append(f"{split} ({kept})")
    if lost:
        losses = f"the copy would lose most of {', '.join(lost)}; nothing was written"
        advice = "correct the cause by hand, or take what is left with --force"
        raise InputError(f"{report.dataset}: {losses}: {advice}")


class _Writer:
    """Writes corrected splits into a folder, and keeps what it changes."""

    def __init__(self, report: Report, out: Path, edits: HintEdits) -> None:
        self.report, self.out, self.copy, self.edits = report, out, Copy([], []), edits
        # Findings by file, place in it, and whether they are about an image (its boxes, else).
        self.findings: defaultdict[tuple[str, int, bool], list[Finding]] = defaultdict(list)
        for finding in report.findings.kept():
            if finding.at is not None:
                about_image = finding.rule.startswith(("image-", "split-", "path-"))
                self.findings[finding.file, finding.at, about_image].append(finding)

    def write_coco(self, split: str, place: CocoSplit, root: Path) -> None:
        """Write the annotation file of a split, and link its images."""
        records, source = self.report.records[split], str(place.annotations)
        content = json.loads(place.annotations.read_text(encoding="utf-8-sig"))
        entries, boxes = content["images"], content["annotations"]
        names = dict(zip(records.images["place"].tolist(), records.names, strict=True))
        # Whose boxes are whose is not known of images with one id: all of them are left out.
        ids = Counter(id_key(entry.get("id")) for entry in entries if isinstance(entry, dict))
        folder, images = self.out / place.images.relative_to(root), {}
        for at, entry in enumerate(entries):
            if self._drop(self.findings[source, at, True], _WITHOUT_IMAGE):
                continue
            written = entry["file_name"]
            if ids[id_key(entry["id"])] > 1:
                record = f"{written} (image id {entry['id']})"
                self.tell(source, record, "image-id-repeated", _WITHOUT_IMAGE)
                continue
            link = names[at]
            if leaves(folder, folder / link):  # a link there would not be in the copy
                link = f"outside-{at}{Path(link).suffix}"
            link_image(place.images / names[at], folder / link)
            if link != written:
                rule = "path-backslash" if "\\" in written else "path-outside"
                self.tell(source, written, rule, f"linked as {link}")
            images[at] = {**entry, "file_name": link}
        content["images"] = list(images.values())
        kept = self._annotations(records, boxes, images.keys())
        kept += self._added(split, records, images, boxes)
        content["annotations"] = kept
        target = self.out / place.annotations.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content), encoding="utf-8")
        self.copy.shares.append(Share(split, len(entries), len(images), len(boxes), len(kept)))

    def _annotations(
        self, records: SplitRecords, entries: list[Any], images: Set[int]
    ) -> list[Annotation]:
        """The corrected annotations of the `images`, which are places in the list of images."""
        source = str(records.source)
        row_at = {at: row for row, at in enumerate(records.boxes["place"].tolist())}
        used = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        free = itertools.count(max((i for i in used if isinstance(i, int)), default=0) + 1)
        fixes = {**_FIXES, "annotation-id-repeated": lambda *_: {"id": next(free)}}
        kept = []
        for at, entry in enumerate(entries):
            findings = self.findings[source, at, False]
            if self._drop(findings):
                continue
            row = row_at[at]  # of all that is not dropped there is a box
            image = records.boxes["image"][row]
            if records.images["place"][image] not in images:
                continue
            if (hint := self._hint(source, at)) is not None:
                if hint.found is None:
                    continue
                entry.update(self.edits.coco(hint, records))
            record_of = {finding.rule: finding.record for finding in findings}
            if records.swapped is not None and records.swapped[row]:  # found of the whole file
                record_of["boxes-xyxy"] = records.describe_box(row, "")[1]
            for rule in filter(record_of.__contains__, fixes):
                changed = fixes[rule](entry, records.images["size"][image].tolist())
                entry.update(changed)
                text = ", ".join(f"{key} is now {short(value)}" for key, value in changed.items())
                self.tell(source, record_of[rule], rule, text)
            kept.append(entry)
        return kept

    def _added(
        self, split: str, records: SplitRecords, images: dict[int, Any], entries: list[Any]
    ) -> list[Annotation]:
        """New annotations by hints; their ids are above all others."""
        ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        number = max((i for i in ids if isinstance(i, int)), default=0) + len(entries)
        added: list[Annotation] = []
        for (of, image), hints in self.edits.added.items():
            place = int(records.images["place"][image]) if of == split else -1
            for hint in hints if place in images else ():
                number += 1
                new = {"id": number, "image_id": images[place]["id"], "iscrowd": 0}
                added.append({**new, **self.edits.coco(hint, records)})
                self.tell(str(records.source), hint.image, HINT_RULES[hint.kind], hint.told())
        return added

    def _hint(self, file: str, at: int) -> LabelHint | None:
        """The hint that changes a label, which it tells."""
        hint = self.edits.changed.get((file, at))
        if hint is not None:
            self.tell(file, hint.image, HINT_RULES[hint.kind], hint.told())
        return hint

    def write_yolo(self, split: str, place: YoloConfig) -> None:
        """Write `<split>/labels`, link images in `<split>/images`, and write data.yaml.

        Images are numbered, since those of several folders may share a name. data.yaml is the same
        for each split: it has their places, the classes, and the other keys of the original.
        """
        records, folder = self.report.records[split], self.out / split
        assert records.label_files is not None  # as read_yolo leaves them
        (folder / "labels").mkdir(parents=True)
        has_points = place.kpt_numbers > 0
        images = boxes = boxes_kept = 0
        for i, (name, file) in enumerate(zip(records.names, records.label_files, strict=True)):
            content = file.read_bytes() if file.is_file() else b""
            try:
                lines = content.decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                boxes += len(content.splitlines())
                text = "image left out: its label file is no UTF-8 text"
                self.tell(str(file), name, "label-line", text)
                continue
            boxes += sum(bool(line.strip()) for line in lines)
            found = self.findings[str(records.source), i, True]  # of all splits, which count anew
            found = [finding for finding in found if finding.record.startswith(f"{name} ")]
            if self._drop(found, _WITHOUT_IMAGE):
                continue
            images += 1
            link = f"{i:06d}-{Path(name).stem}"
            link_image(records.root / name, folder / "images" / f"{link}{Path(name).suffix}")
            added = self.edits.added.get((split, i), [])
            if file.is_file() or added:
                kept = list(self._lines(str(file), lines, records, i, has_points))
                for hint in added:
                    kept.append(self.edits.yolo(hint, records, i))
                    self.tell(str(file), name, HINT_RULES[hint.kind], hint.told())
                boxes_kept += sum(bool(line.strip()) for line in kept)
                text = "".join(f"{line}\n" for line in kept)
                (folder / "labels" / f"{link}.txt").write_text(text, encoding="utf-8")
        self.copy.shares.append(Share(split, len(records.names), images, boxes, boxes_kept))
        old = yaml.safe_load(place.path.read_text(encoding="utf-8-sig"))
        replaced = {"path", "nc", "names", "download", *itertools.chain(*SPLIT_KEYS.values())}
        places = {SPLIT_KEYS[split][0]: f"{split}/images" for split in self.report.records}
        new = places | {"nc": len(place.class_names), "names": list(place.class_names)}
        new |= {key: value for key, value in old.items() if str(key) not in replaced}
        text = yaml.safe_dump(new, sort_keys=False, allow_unicode=True)
        (self.out / "data.yaml").write_text(text, encoding="utf-8")

    def _lines(
        self, file: str, lines: list[str], records: SplitRecords, image: int, has_points: bool
    ) -> Iterator[str]:
        """The lines of a label file that stay; a box or polygon that reaches out is clipped."""
        for number, line in enumerate(lines, 1):
            findings = self.findings[file, number, False]
            if self._drop(findings):
                continue
            if (hint := self._hint(file, number)) is not None:
                if hint.found is None:
                    continue
                line = self.edits.yolo(hint, records, image, line)
            clips = [f for f in findings if f.rule in ("box-clipped", "outline-outside")]
            if clips:
                line = _clipped_line(line, has_points)
                self.tell(file, clips[0].record, clips[0].rule, f"clipped to {line}")
            yield line

    def _drop(self, findings: list[Finding], text: str = "left out") -> bool:
        """Whether one of the findings leaves its record out; tells the first."""
        first = next((finding for finding in findings if finding.rule in _DROPPED), None)
        if first is not None:
            self.tell(first.file, first.record, first.rule, text)
        return first is not None

    def tell(self, *change: str) -> None:
        self.copy.changes.append(Change(*change))


def _clipped_line(line: str, has_points: bool) -> str:
    """A line whose box or polygon is inside the image; key points, which may follow a box, stay.

    "0 0.95 0.5 0.2 0.1" is a box from x = 0.85 to 1.05: it becomes "0 0.925 0.5 0.15 0.1".
    """
    label, *numbers = line.split()
    numbers, points = (numbers[:4], numbers[4:]) if has_points else (numbers, [])
    values = np.array(numbers, np.float64).reshape(-1, 2)
    if len(values) == 2:
        low, high = np.clip((values[0] - values[1] / 2, values[0] + values[1] / 2), 0, 1)
        values = np.stack(((low + high) / 2, high - low))
    return " ".join([label, *(f"{value:.8g}" for value in np.clip(values, 0, 1).ravel()), *points])


def link_image(original: Path, link: Path) -> None:
    """Link an image in the copy, or copy it; two images that ask for one name are an error."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link):
        if not filecmp.cmp(original, link):  # else two records list the image
            taken = f"another image has its name in the copy, {link.name}; rename one"
            raise FileExistsError(f"{original}: {taken}")
        return
    try:
        link.symlink_to(original.resolve())
    except OSError:
        shutil.copyfile(original, link)
