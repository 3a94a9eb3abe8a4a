"""Labelled folders as training and evaluation take them: one or several, all of their classes or
some, with a valid split of their own or one that is divided off train.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rfdetr.checks import nearest
from rfdetr.data.division import Division, divide
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import SPLITS, DatasetLayout, find_splits, load_index, read_split
from rfdetr.data.selecting import joined, with_images, with_labels

Classes: TypeAlias = Mapping[str, Sequence[str]]
"""By new name the classes that become one: {"vehicle": ["car", "truck"], "person": ["person"]}."""


class LeftOut(NamedTuple):
    """What `classes` has left out of a split."""

    objects: int
    of_objects: int
    emptied: int  # images that are left without an object
    of_images: int


class Folders:
    """What a configuration calls its data.

    `dataset_dir` is a folder, or several by the share of train's images that an epoch takes of each
    (0 to 1]; `known` says that `classes` are those of a model, of which the data may lack some.
    Without `divides`, nothing is kept back of train where there is no valid split. `record` is a
    file of `as_record`: what it says was kept back of train is kept back again.
    """

    def __init__(
        self,
        dataset_dir: Any,
        dataset_file: str = "roboflow",
        classes: Classes | None = None,
        *,
        known: bool = False,
        divides: bool = True,
        record: Path | None = None,
    ) -> None:
        shares = dataset_dir if isinstance(dataset_dir, Mapping) else {dataset_dir: 1.0}
        self.layouts = [find_splits(folder, dataset_file) for folder in shares]
        self.shares = list(shares.values())
        self.classes, self._known, self._divides = classes, known, divides
        self.left_out: dict[str, LeftOut] = {}
        self.counts: dict[str, list[int]] = {}
        """Images of each folder, by split that was indexed."""
        self.divisions: dict[str, Division] = {}
        """By folder; of those that have no valid split, when train or valid was indexed."""
        if record is not None and record.is_file():
            self.divisions = _read_record(record)

    @property
    def splits(self) -> list[str]:
        """The splits that any folder has."""
        found = [split for layout in self.layouts for split in layout.splits]
        found += ["valid"] if any(map(self._is_whole, self.layouts)) else []
        return [split for split in SPLITS if split in found]

    @property
    def names(self) -> str:
        return ", ".join(str(layout.dataset_dir) for layout in self.layouts)

    def __str__(self) -> str:
        """The folders, their formats and shares, in words."""
        told = zip(self.layouts, self.shares, strict=True)
        return ", ".join(
            f"{layout.dataset_dir} ({layout.format.upper()})" + f" at {share:g}" * (share < 1)
            for layout, share in told
        )

    def index(
        self, split: str, findings: Findings | None = None, masks: bool | None = False
    ) -> DatasetIndex:
        """The index of a split of all folders that have it, with the classes asked for; faults are
        raised, or left in `findings` where these are given. `masks` are those of `load_index`.
        """
        having = [one for one in self.layouts if split in one.splits or self._halves(one, split)]
        having = self.layouts if split == "train" else having or self.layouts[:1]  # or it is told
        parts = [self._part(layout, split, findings, masks) for layout in having]
        self.counts[split] = [len(part) for part in parts]
        if len(self.layouts) == 1 and self.classes is None:
            return parts[0]
        lists = [part.class_names for part in parts]
        for layout in self.layouts:
            if layout not in having:
                lists.append(read_split(layout, next(iter(layout.splits)), Findings(0)).class_names)
        own = list(dict.fromkeys(name for names in lists for name in names))
        new_of, names = self._taken(own)
        whole = joined([with_labels(part, new_of, names) for part in parts])
        if self.classes is not None:
            objects = np.concatenate([np.diff(part.offsets) for part in parts])
            emptied = int(((np.diff(whole.offsets) == 0) & (objects > 0)).sum())
            left, total = int(objects.sum()) - len(whole.boxes), int(objects.sum())
            self.left_out[split] = LeftOut(left, total, emptied, len(whole))
        return whole

    def _is_whole(self, layout: DatasetLayout) -> bool:
        """Whether train is to be divided, as there are no images to validate with."""
        return self._divides and "train" in layout.splits and "valid" not in layout.splits

    def _halves(self, layout: DatasetLayout, split: str) -> bool:
        return split in ("train", "valid") and self._is_whole(layout)

    def _part(
        self, layout: DatasetLayout, split: str, findings: Findings | None, masks: bool | None
    ) -> DatasetIndex:
        """The split of one folder, in its own classes; of what is divided, faults are told once."""
        if not self._halves(layout, split):
            return load_index(layout, split, None, findings, masks)
        if findings is not None and split == "valid":
            findings = Findings(SHOWN)
        whole = load_index(layout, "train", None, findings, masks)
        key = os.path.abspath(layout.dataset_dir)
        if key not in self.divisions:
            if findings is not None:
                findings.stop_on_errors(layout.dataset_dir)  # before every image is decoded
            self.divisions[key] = divide(whole)
        held_out = self.divisions[key].held_out
        chosen = [whole.file_name(image) in held_out for image in range(len(whole))]
        return with_images(whole, np.array(chosen) == (split == "valid"))

    def _taken(self, own: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """The new name of each class that is taken, and the new names in order."""
        if self.classes is None:
            return {name: name for name in own}, list(own)
        if self._known:  # data labelled with the model's names is as good
            new_of = {new: new for new in self.classes}
            new_of |= {old: new for new, olds in self.classes.items() for old in olds}
            new_of = {name: new_of[name] for name in own if name in new_of}
            if not new_of:
                told = f"the data has the classes {', '.join(own)}, none of those of the model"
                raise DatasetError(f"{told}: {', '.join(self.classes)}; classes= takes others")
            return new_of, [new for new in self.classes if new in new_of.values()]
        return take_classes(self.classes, own)

    def as_record(self) -> bytes | None:
        """What was kept back of train, for a file; None where no folder was divided."""
        kept = {
            folder: {"valid": sorted(division.held_out), "alike": division.alike}
            for folder, division in self.divisions.items()
        }
        content = {"schema_version": 1, "folders": kept}
        return json.dumps(content, indent=1).encode() if kept else None


def take_classes(classes: Classes, own: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The new name of each of the data's `own` classes that is taken, and the new names; a
    `DatasetError` names a class that the data has not.
    """
    new_of = {old: new for new, olds in classes.items() for old in olds}
    for name in new_of:
        if name not in own:
            near = nearest(name, own)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(own)}"
            raise DatasetError(f"classes: the data has no class {name!r}; {hint}")
    return new_of, list(classes)


def _read_record(path: Path) -> dict[str, Division]:
    try:
        folders = json.loads(path.read_text(encoding="utf-8"))["folders"]
        return {
            folder: Division(frozenset(kept["valid"]), int(kept["alike"]))
            for folder, kept in folders.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{path}: not the record of a run's division: {error!r}"
        raise DatasetError(f"{told}; delete it to divide anew") from error
