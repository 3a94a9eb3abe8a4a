"""The dataset doctor, `rfdetr check`: everything that is wrong or odd in a dataset, found in one
pass over its files.

Labels are read by the readers that training uses, so that what stops a training is an error here;
then every image is decoded, and outlines, copies, splits and classes are looked at. The rules are
in `data/findings.py`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.config import ModelConfig, RFDETRNanoConfig
from rfdetr.console import with_progress
from rfdetr.data.files import is_hidden
from rfdetr.data.findings import RULES, DatasetError, Finding, Findings
from rfdetr.data.ids import id_key
from rfdetr.data.index import DatasetIndex, build_index
from rfdetr.data.layout import CocoSplit, DatasetLayout, find_splits, read_split
from rfdetr.data.records import SplitRecords
from rfdetr.doctor.images import Seen, check_copies, check_looks, image_files, look_at_all
from rfdetr.doctor.outlines import outline_faults, ring_faults
from rfdetr.doctor.splits import check_classes, check_for_model

_LARGE_LABELS = {"coco": 2 * 2**30, "yolo": 4 * 2**20}  # bytes of a label file
_NO_LABELS = frozenset(
    {"classes.txt", "notes.txt", "readme.txt"}
)  # text files that tools leave beside labels


@dataclass
class Report:
    """What a check has found, and what it has read."""

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
        """Everything as plain values."""
        return {
            "dataset": str(self.dataset),
            "images": {split: len(index) for split, index in self.indexes.items()},
            "boxes": {split: len(index.boxes) for split, index in self.indexes.items()},
            "errors": self.errors,
            "warnings": self.findings.count("warning"),
            "summary": dict(self.findings.counts),
            "findings": [
                {
                    "rule": finding.rule,
                    "severity": self.findings.severity(finding.rule),
                    "file": finding.file,
                    "record": finding.record,
                    "found": finding.found,
                    "meaning": RULES[finding.rule].meaning,
                    "advice": RULES[finding.rule].advice,
                }
                for finding in self.findings.kept()
            ],
        }


def check(
    dataset_dir: str | os.PathLike[str],
    dataset_file: str = "roboflow",
    *,
    model: ModelConfig | None = None,
    processes: int | None = None,
) -> Report:
    """Look at every file and label of a dataset; nothing is changed, and nothing found is raised.

    `model` is the one to train (Nano by default): its queries and patches decide what is too many
    or too small.
    """
    report = Report(Path(dataset_dir), findings=Findings(checking=True))
    try:
        layout = report.layout = find_splits(dataset_dir, dataset_file)  # type: ignore[arg-type]
    except DatasetError as error:
        report.findings.add("dataset-unreadable", report.dataset, "", str(error))
        return report
    for split in ("train", "valid"):
        if split not in layout.splits:
            report.findings.add("split-missing", layout.dataset_dir, f"split {split}", "not found")
    model = model or RFDETRNanoConfig()
    for split in layout.splits:
        _read(report, split, model.segmentation_head)
    _check_files(report, layout)
    _check_outlines(report, layout)
    _check_images(report, os.cpu_count() or 1 if processes is None else processes)
    _check_splits(report, model)
    return report


def _read(report: Report, split: str, masks: bool) -> None:
    """Records and index of a split, its labels in the order of the first one's classes; `masks` are
    to be learned.
    """
    assert report.layout is not None
    place = report.layout.splits[split]
    source = place.annotations if isinstance(place, CocoSplit) else place.path
    try:
        records = read_split(
            report.layout, split, report.findings, masks or report.layout.format == "coco"
        )
        index = build_index(records, lenient=True, masks=masks)
        report.records[split] = records
    except DatasetError as error:
        report.findings.add(
            "dataset-unreadable", source, "", str(error).removeprefix(f"{source}: ")
        )
        return
    if report.indexes:
        try:
            index = index.with_classes(
                next(iter(report.indexes.values())).class_names, next(iter(report.indexes))
            )
        except DatasetError as error:
            report.findings.add(
                "classes-differ", source, f"split {split}", str(error).removeprefix(f"{source}: ")
            )
            return
    report.indexes[split] = index


def _check_files(report: Report, layout: DatasetLayout) -> None:
    """Files that no label knows, labels of no image, label files of an odd size."""
    for split, records in report.records.items():
        place = layout.splits[split]
        if isinstance(place, CocoSplit):
            listed = {os.path.normpath(records.root / name) for name in records.names}
            for path in sorted(image_files(place.images)):
                if os.path.normpath(path) not in listed:
                    report.findings.add(
                        "image-unlisted", records.source, str(path), f"not listed by {split}"
                    )
            label_files = [place.annotations]
        else:
            label_files = [file for file in records.label_files or () if file.is_file()]
            known = set(records.label_files or ())
            for folder in sorted({file.parent for file in known}):
                for path in sorted(folder.glob("*.txt")):
                    if (
                        path not in known
                        and not is_hidden(path.name)
                        and path.name.lower() not in _NO_LABELS
                    ):
                        report.findings.add(
                            "label-orphan", path, "", f"no image of {split} belongs to it"
                        )
        for file in label_files:
            size = file.stat().st_size
            if size > _LARGE_LABELS[layout.format]:
                report.findings.add("labels-large", file, "", f"{size / 2**20:.0f} MiB")


def _check_outlines(report: Report, layout: DatasetLayout) -> None:
    known = {
        finding[:2] + finding[4:]
        for finding in report.findings.kept()
        if finding.rule.startswith("outline-")
    }
    for split, records in report.records.items():
        index = report.indexes.get(split)
        if index is None:
            continue
        place = layout.splits[split]
        if not isinstance(place, CocoSplit) and place.kpt_shape:
            continue  # what follows the boxes are key points
        sizes = records.images["size"].tolist()
        size_of: dict[Any, Any] = dict(zip(records.image_keys, sizes, strict=True))
        found = (
            _coco_outlines(records, size_of)
            if layout.format == "coco"
            else _yolo_outlines(records, size_of)
        )
        for rule, file, record, text, at in found:
            if (rule, file, at) not in known:  # to the reader
                report.findings.add(rule, file, record, text, at)


def _coco_outlines(records: SplitRecords, size_of: dict[Any, tuple[int, int]]) -> Iterator[Finding]:
    def faults(entry: dict[str, Any]) -> Any:
        """An annotation's faults in its place, so that a million outlines are never in memory at
        once.
        """
        if "image_id" not in entry or not entry.get("segmentation"):
            return entry
        height, width = size_of.get(id_key(entry["image_id"]), (0, 0))
        return tuple(
            (entry.get("id"), *fault)
            for fault in outline_faults(entry["segmentation"], height, width)
        )

    content = json.loads(records.source.read_text(encoding="utf-8-sig"), object_hook=faults)
    for at, found in enumerate(content["annotations"]):
        for identity, rule, text in found if isinstance(found, tuple) else ():
            yield Finding(rule, str(records.source), f"annotation id {identity}", text, at)


def _yolo_outlines(records: SplitRecords, size_of: dict[int, tuple[int, int]]) -> Iterator[Finding]:
    for image, file in enumerate(records.label_files or ()):
        height, width = size_of[image]
        first, last = np.searchsorted(records.boxes["image"], (image, image + 1))
        lines = records.boxes["place"][first:last]
        texts = file.read_text(encoding="utf-8-sig").splitlines() if len(lines) else []
        for number in lines.tolist():
            values = np.array(texts[number - 1].split()[1:], np.float64)
            if len(values) > 4:
                for rule, text in ring_faults(
                    values.reshape(-1, 2) * (width, height), height, width
                ):
                    yield Finding(rule, str(file), f"line {number}", text, number)


def _check_images(report: Report, processes: int) -> None:
    """Decode every file that has a readable header, each once."""
    images = {
        split: np.flatnonzero((report.indexes[split].sizes > 0).all(1)).tolist()
        for split in report.records
        if split in report.indexes
    }
    paths = [
        report.records[split].root / report.records[split].names[i]
        for split in images
        for i in images[split]
    ]
    looks = iter(with_progress(look_at_all(paths, processes), "Looking at images", len(paths)))
    seen: dict[str, Seen] = {}
    for split, kept in images.items():
        taken = list(itertools.islice(looks, len(kept)))
        check_looks(report.records[split], kept, taken, report.findings)
        seen[split] = (report.records[split], kept, taken)
    check_copies(seen, report.findings)


def _check_splits(report: Report, model: ModelConfig) -> None:
    for index in report.indexes.values():
        check_for_model(
            index,
            report.findings,
            resolution=model.resolution,
            patch_size=model.patch_size,
            num_queries=model.num_queries,
        )
    if report.indexes:
        check_classes(report.indexes, report.findings)
