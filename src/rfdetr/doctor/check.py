"""The dataset doctor, `rfdetr check`: everything wrong or odd in a dataset, found in one pass.

Labels are read by the readers that training uses, so that what stops a training is an error here.
Then every image is decoded, and outlines, copies, splits and classes are looked at. The table of
rules is in `data/findings.py`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.config import ModelConfig, RFDETRNanoConfig
from rfdetr.config.fields import as_classes
from rfdetr.console import with_progress
from rfdetr.data.files import is_hidden, is_image, walk
from rfdetr.data.findings import RULES, DatasetError, Finding, Findings
from rfdetr.data.folders import take_classes
from rfdetr.data.formats.annotated import AnnotatedSplit
from rfdetr.data.formats.coco import id_key
from rfdetr.data.index import DatasetIndex, build_index
from rfdetr.data.layout import CocoSplit, DatasetLayout, find_splits, read_split
from rfdetr.data.likeness import ImageFacts, read_all_facts
from rfdetr.data.records import SplitRecords
from rfdetr.data.selecting import with_labels
from rfdetr.doctor.images import check_copies
from rfdetr.doctor.labels import check_classes, check_for_model, outline_faults, ring_faults

LARGE_LABELS = {"coco": 2 * 2**30, "yolo": 4 * 2**20}  # bytes of a file that is told to be large
_NO_LABELS = {"classes.txt", "notes.txt", "readme.txt"}  # that tools leave beside labels


@dataclass
class Report:
    """What a check has found, and what it has read.

    Splits that cannot be read have no `records`; those with other classes have no `indexes` either.
    """

    dataset: Path
    findings: Findings
    layout: DatasetLayout | None = None
    records: dict[str, SplitRecords] = field(default_factory=dict)
    indexes: dict[str, DatasetIndex] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """How many findings would stop a training, or make its figures untrue."""
        return self.findings.count("error")

    def of(self, rule: str) -> list[Finding]:
        """The findings of a rule."""
        return [finding for finding in self.findings.kept() if finding.rule == rule]

    def as_record(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        rows = []
        for rule, file, record, found, _ in self.findings.kept():
            row = {"rule": rule, "severity": self.findings.severity(rule), "file": file}
            row |= {"record": record, "found": found}
            rows.append(row | {"meaning": RULES[rule].meaning, "advice": RULES[rule].advice})
        return {
            "dataset": str(self.dataset),
            "images": {split: len(index) for split, index in self.indexes.items()},
            "boxes": {split: len(index.boxes) for split, index in self.indexes.items()},
            "errors": self.errors,
            "warnings": self.findings.count("warning"),
            "summary": dict(self.findings.counts),
            "findings": rows,
        }


def check(
    dataset_dir: str | os.PathLike[str],
    dataset_file: str = "roboflow",
    *,
    classes: Any = None,
    model: ModelConfig | None = None,
    processes: int | None = None,
) -> Report:
    """Look at every file and label of a dataset; nothing is changed, and nothing found is raised.

    `dataset_file` and `classes` are those of training: other classes' files are looked at, their
    objects are not judged. `model` is the one to train
    (Nano by default): its queries and patches decide what is too many or too small. So many
    `processes` decode images, one per core by default.
    """
    findings = Findings(checking=True)
    report = Report(Path(dataset_dir), findings)
    try:
        layout = report.layout = find_splits(os.fspath(dataset_dir), dataset_file)
    except DatasetError as error:
        findings.add("dataset-unreadable", report.dataset, "", str(error))
        return report
    for split in ("train", "valid"):
        if split not in layout.splits:
            rule = "valid-missing" if "train" in layout.splits else "split-missing"
            findings.add(rule, layout.dataset_dir, f"split {split}", "not found")
    model = model or RFDETRNanoConfig()
    for split in layout.splits:
        _read(report, layout, split, model.segmentation_head)
    for split in report.records:
        _check_files(report, layout, split)
    _check_outlines(report, layout)
    _check_images(report, os.cpu_count() or 1 if processes is None else processes)
    if taken := as_classes(classes):
        for split, index in report.indexes.items():
            new_of, names = take_classes(taken, index.class_names)
            report.indexes[split] = with_labels(index, new_of, names)
    limits = model.model_dump(include={"resolution", "patch_size", "num_queries"})
    for index in report.indexes.values():
        check_for_model(index, findings, **limits)
    if report.indexes:
        check_classes(report.indexes, findings)
    return report


def _read(report: Report, layout: DatasetLayout, split: str, masks: bool) -> None:
    """Records and index of a split; its labels follow the classes of the first split read."""
    place = layout.splits[split]
    source = place.annotations if isinstance(place, CocoSplit) else place.path
    rule, record = "dataset-unreadable", ""
    try:
        records = read_split(layout, split, report.findings, masks or layout.format != "yolo")
        index = build_index(records, lenient=True, masks=masks)
        report.records[split] = records
        for first, known in list(report.indexes.items())[:1]:
            rule, record = "classes-differ", f"split {split}"
            index = index.with_classes(known.class_names, first)
        report.indexes[split] = index
    except DatasetError as error:
        report.findings.add(rule, source, record, str(error).removeprefix(f"{source}: "))


def _check_files(report: Report, layout: DatasetLayout, split: str) -> None:
    """Find images that no label knows, labels of no image, label files of an odd size."""
    place, records, findings = layout.splits[split], report.records[split], report.findings
    if isinstance(place, CocoSplit):
        label_files = [place.annotations]
        listed = {os.path.normpath(records.root / name) for name in records.names}
        files = filter(is_image, walk(place.images)) if place.images.is_dir() else ()
        for path in sorted(files):
            if os.path.normpath(path) not in listed:
                findings.add("image-unlisted", records.source, str(path), f"not listed by {split}")
    else:
        label_files = records.label_files or []
        known = set(label_files)
        for folder in sorted({file.parent for file in known if layout.format == "yolo"}):
            for path in sorted(set(folder.glob("*.txt")) - known):
                if not is_hidden(path.name) and path.name.lower() not in _NO_LABELS:
                    findings.add("label-orphan", path, "", f"no image of {split} belongs to it")
    for file in filter(Path.is_file, dict.fromkeys(label_files)):
        most = LARGE_LABELS.get(layout.format, LARGE_LABELS["coco"])
        if (size := file.stat().st_size) > most:
            findings.add("labels-large", file, "", f"{size / 2**20:.0f} MiB")


def _check_outlines(report: Report, layout: DatasetLayout) -> None:
    """Find what is odd of outlines and was no fault to the reader, who has told the others."""
    told = {(finding.rule, finding.file, finding.at) for finding in report.findings.kept()}
    for split in report.indexes:
        place, records = layout.splits[split], report.records[split]
        if isinstance(place, CocoSplit):
            found = _coco_outlines(records)
        elif isinstance(place, AnnotatedSplit) or place.kpt_numbers:
            continue  # readers tell; or what follows the boxes are key points
        else:
            found = _yolo_outlines(records)
        for finding in found:
            if (finding.rule, finding.file, finding.at) not in told:
                report.findings.add(*finding)


def _coco_outlines(records: SplitRecords) -> Iterator[Finding]:
    sizes = records.images["size"].tolist()
    size_of: dict[Any, Any] = dict(zip(records.image_keys, sizes, strict=True))

    def faults(entry: dict[str, Any]) -> Any:
        """An annotation's faults in its place, so that its outline is not kept in memory."""
        if "image_id" not in entry or not entry.get("segmentation"):
            return entry
        height, width = size_of.get(id_key(entry["image_id"]), (0, 0))
        found = outline_faults(entry["segmentation"], height, width)
        return tuple((f"annotation id {entry.get('id')}", *fault) for fault in found)

    content = json.loads(records.source.read_text(encoding="utf-8-sig"), object_hook=faults)
    for at, found in enumerate(content["annotations"]):
        for record, rule, text in found if isinstance(found, tuple) else ():
            yield Finding(rule, str(records.source), record, text, at)


def _yolo_outlines(records: SplitRecords) -> Iterator[Finding]:
    assert records.label_files is not None  # as read_yolo leaves them
    sizes, places = records.images["size"].tolist(), records.boxes[["image", "place"]].tolist()
    for image, boxes in itertools.groupby(places, itemgetter(0)):
        file, (height, width) = records.label_files[image], sizes[image]
        texts = file.read_text(encoding="utf-8-sig").splitlines()
        for _, number in boxes:
            values = np.array(texts[number - 1].split()[1:], np.float64)
            points = values.reshape(-1, 2) * (width, height)
            for rule, text in ring_faults(points, height, width) if len(points) > 2 else ():
                yield Finding(rule, str(file), f"line {number}", text, number)


def _check_images(report: Report, processes: int) -> None:
    """Decode every file that has a readable header, each once."""
    places = [
        (split, image)
        for split, index in report.indexes.items()
        for image in np.flatnonzero((index.sizes > 0).all(1)).tolist()
    ]
    paths = [report.indexes[split].file(image) for split, image in places]
    found = with_progress(read_all_facts(paths, processes), "Looking at images", len(paths))
    facts: dict[str, dict[int, ImageFacts]] = {split: {} for split in report.indexes}
    for (split, image), file in zip(places, found, strict=True):
        facts[split][image] = file
        for rule, text in file.faults.items():
            report.findings.add(rule, *report.records[split].describe_image(image, text))
    check_copies(report.records, facts, report.findings)
