"""Label hints of a report, as far as their user has set them to apply: what they change in a copy.

A hint says which label it is about by image, class and box, since files number labels anew. An
outline does not survive a moved box: it shows another place.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rfdetr.config.fields import fault_lines
from rfdetr.data.records import SplitRecords
from rfdetr.errors import InputError

RULES = {
    "overlooked": "hint-overlooked",
    "swapped": "hint-swapped",
    "badly placed": "hint-badly-placed",
    "spurious": "hint-spurious",
    "duplicate": "hint-duplicate",
}
_REMOVED = ("spurious", "duplicate")
_SAME = 0.9  # IoU from which a label is the one that a hint is about


class Place(BaseModel):
    """A class, and a box x, y, width, height in pixels of the upright image."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)
    name: str = Field(alias="class")
    box: tuple[float, float, float, float]


class LabelHint(BaseModel):
    """One hint of label_hints.json: what is suspected, the label, and what was found."""

    split: str
    image: str
    kind: Literal["overlooked", "swapped", "badly placed", "spurious", "duplicate"]
    apply: bool
    label: Place | None
    found: Place | None

    def told(self) -> str:
        """What the hint changes, as a finding's text."""
        now = self.found and f"{self.found.name} at {_numbers(self.found.box)}"
        if self.kind == "overlooked":
            return f"added {now}"
        return "left out" if self.kind in _REMOVED else f"is now {now}"


class _File(BaseModel):
    hints: list[LabelHint]


def read_hints(path: Path) -> list[LabelHint]:
    """The hints of a file that are set to apply; `InputError` where there are none, or it is no
    such file.
    """
    try:
        found = _File.model_validate(json.loads(path.read_text(encoding="utf-8"))).hints
    except ValidationError as error:
        told = "; ".join(fault_lines(error))
        raise InputError(f"{path}: no file of label hints as a report writes it: {told}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    for hint in found:
        if hint.apply and (hint.found is None) != (hint.kind in _REMOVED):
            needs = "names no place that was found" if hint.found is None else "names one"
            raise InputError(f"{path}: a hint of kind {hint.kind!r} of {hint.image} {needs}")
        if hint.apply and (hint.label is None) != (hint.kind == "overlooked"):
            raise InputError(f"{path}: label of a hint of kind {hint.kind!r} of {hint.image}?")
    chosen = [hint for hint in found if hint.apply]
    if not chosen:
        raise InputError(
            f'{path}: none of its {len(found)} hints is set to apply: set "apply" to true for each '
            "that is right (report.html shows them)"
        )
    return chosen


class HintEdits:
    """What hints change, by where it stands in the files of a dataset.

    Raises `InputError` for a hint whose split, image, class or label the dataset does not have.
    """

    def __init__(self, records: Mapping[str, SplitRecords], hints: Sequence[LabelHint] = ()):
        self.changed: dict[tuple[str, int], LabelHint] = {}  # by file and place in it
        self.added: defaultdict[tuple[str, int], list[LabelHint]] = defaultdict(list)
        """New labels by split and row of the image."""
        for hint in hints:
            split = records.get(hint.split)
            if split is None or hint.image not in split.names:
                raise InputError(f"a hint is about {hint.split}/{hint.image}: no such image here")
            image = split.names.index(hint.image)
            if hint.found is not None and hint.found.name not in split.class_names:
                known = ", ".join(split.class_names)
                raise InputError(f"a hint names class {hint.found.name!r}; the data has {known}")
            if hint.label is None:
                self.added[hint.split, image].append(hint)
            else:
                self.changed[_find(split, image, hint.label, hint)] = hint

    def coco(self, hint: LabelHint, records: SplitRecords) -> dict[str, Any]:
        """The fields of a COCO annotation that a hint with a place found gives it."""
        assert hint.found is not None  # as `read_hints` checks
        box = list(hint.found.box)
        number = records.class_names.index(hint.found.name)
        fields: dict[str, Any] = {"category_id": int(records.category_ids[number])}
        if hint.kind != "swapped":
            fields |= {"bbox": box, "area": box[2] * box[3], "segmentation": []}
        return fields

    def yolo(self, hint: LabelHint, records: SplitRecords, image: int, line: str = "") -> str:
        """The line of a YOLO file that a hint with a place found makes of a `line`, or of none."""
        assert hint.found is not None  # as `read_hints` checks
        label = records.class_names.index(hint.found.name)
        if hint.kind == "swapped":
            return " ".join([str(label), *line.split()[1:]])
        x, y, w, h = hint.found.box
        height, width = records.images["size"][image].tolist()
        shares = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
        return " ".join([str(label), *(f"{min(max(share, 0), 1):.8g}" for share in shares)])


def _find(records: SplitRecords, image: int, label: Place, hint: LabelHint) -> tuple[str, int]:
    """File and place of the label that a hint is about."""
    rows = np.flatnonzero(records.boxes["image"] == image)
    boxes = records.boxes["xyxy"][rows]
    height, width = records.images["size"][image].tolist()
    limits = np.array((width, height, width, height))
    boxes = np.clip(boxes * limits if records.relative else boxes, 0, limits)
    x, y, w, h = label.box
    low = np.maximum(boxes[:, :2], (x, y))
    high = np.minimum(boxes[:, 2:], (x + w, y + h))
    shared = np.clip(high - low, 0, None).prod(1)
    iou = shared / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1) + w * h - shared, 1e-9)
    names = [records.class_names[number] for number in records.boxes["label"][rows].tolist()]
    iou *= [name == label.name for name in names]
    if not len(iou) or iou.max() < _SAME:
        where = f"{hint.split}/{hint.image}: {label.name} at {_numbers(label.box)}"
        raise InputError(
            f"a hint is about a label that is not there: {where}; the labels have changed since "
            "the report: make it anew (rfdetr report RUN)"
        )
    row = rows[iou.argmax()]
    place = int(records.boxes["place"][row])
    if records.label_files is None:
        return str(records.source), place
    return str(records.label_files[image]), place


def _numbers(box: Sequence[float]) -> str:
    return "x {:g}, y {:g}, width {:g}, height {:g}".format(*box)
