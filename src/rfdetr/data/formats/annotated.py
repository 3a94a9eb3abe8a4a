"""Folders of Pascal VOC, LabelMe, CVAT for images 1.1 and Label Studio, as records of their splits.

Each reader in `xml_formats` and `json_formats` yields the pictures of one annotation file. What is
the same for all is here: which files belong to which split, the list of classes (the names that
objects have, in order: no such format has a sure one), and the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from rfdetr.data.files import head_of, is_hidden, is_image, leaves
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.formats.json_formats import read_label_studio, read_labelme
from rfdetr.data.formats.shapes import Picture, Tell
from rfdetr.data.formats.xml_formats import read_cvat, read_voc
from rfdetr.data.records import BOX, IMAGE, NO_ID, SplitRecords
from rfdetr.data.segmentations import OutlineRecorder

Reader: TypeAlias = Callable[[Path, Tell], Iterator[Picture]]
_HEAD = 4096  # bytes of a file that tell what it is


class Format(NamedTuple):
    """How the files of a format are known, and what reads one."""

    suffix: str
    sign: re.Pattern[bytes]
    read: Reader


FORMATS = {
    "voc": Format(".xml", re.compile(rb"<annotation[\s>]"), read_voc),
    "cvat": Format(".xml", re.compile(rb"<annotations[\s>]"), read_cvat),
    "labelme": Format(".json", re.compile(rb'"(shapes|imagePath)"\s*:'), read_labelme),
    "label studio": Format(".json", re.compile(rb"^(\xef\xbb\xbf)?\s*\["), read_label_studio),
}


@dataclass(frozen=True)
class AnnotatedSplit:
    """Annotation files of a split; `subset` is the name that its pictures have in them, where they
    are divided so (CVAT). `unlisted` pictures lie beside the annotated ones and are of no split.
    """

    format: str
    path: Path  # the dataset's folder
    files: tuple[Path, ...]
    class_names: tuple[str, ...]
    subset: str | None = None
    unlisted: tuple[Path, ...] = ()

    def pictures(self, findings: Findings) -> Iterator[Picture]:
        """What the files hold; what is wrong with them are findings."""
        for file in self.files:

            def tell(rule: str, record: str, found: str, at: int | None, file: Path = file) -> None:
                findings.add(rule, file, record, found, at)

            try:
                for picture in FORMATS[self.format].read(file, tell):
                    if self.subset in (None, picture.subset):
                        yield picture
            except DatasetError as error:
                findings.add("dataset-unreadable", file, "", str(error).removeprefix(f"{file}: "))


def find_annotated(
    root: Path, spellings: Mapping[str, tuple[str, ...]]
) -> dict[str, AnnotatedSplit]:
    """The splits of a folder in one of `FORMATS`, none if it is in no such format: folders of the
    splits' names, else one set of annotations, divided by the lists of ImageSets/Main (VOC) or by
    subsets (CVAT), else all train.
    """
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    splits: dict[str, AnnotatedSplit] = {}
    for split, names in spellings.items():
        for folder in (folders[name] for name in names if name in folders):
            if found := _annotations(folder, root):
                splits.setdefault(split, found)
    if not splits and (whole := _annotations(root, root)):
        splits = _divided(whole, spellings)
    sets = {place.files: replace(place, subset=None) for place in splits.values()}
    subsets = {place.subset for place in splits.values()}
    labels, listed, beside = set[str](), set[Path](), set[Path]()
    for picture in (picture for place in sets.values() for picture in place.pictures(Findings(0))):
        labels.update(shape.label for shape in picture.shapes)
        beside.add(picture.image.parent)
        if subsets & {None, picture.subset}:
            listed.add(picture.image)
    files = {path for place in beside if place.is_dir() for path in place.iterdir()}
    rest = sorted(path for path in files - listed if is_image(path) and not is_hidden(path.name))
    splits = {
        split: replace(place, class_names=tuple(sorted(labels))) for split, place in splits.items()
    }
    for split in [*splits][:1]:  # which tells of all
        splits[split] = replace(splits[split], unlisted=tuple(rest))
    return splits


def _annotations(folder: Path, root: Path) -> AnnotatedSplit | None:
    """The annotation files in a folder, or in its `annotations`, as one split."""
    inner = [path for path in folder.iterdir() if path.name.lower() == "annotations"]
    for place in (folder, *filter(Path.is_dir, inner)):
        files = [path for path in sorted(place.iterdir()) if not is_hidden(path.name)]
        for name, kind in FORMATS.items():
            own = [path for path in files if path.suffix.lower() == kind.suffix and path.is_file()]
            if any(kind.sign.search(head_of(path, _HEAD)) for path in own):
                return AnnotatedSplit(name, root, tuple(own), ())
    return None


def _divided(
    whole: AnnotatedSplit, spellings: Mapping[str, tuple[str, ...]]
) -> dict[str, AnnotatedSplit]:
    """The splits into which one set of annotations says that it is divided."""
    splits: dict[str, AnnotatedSplit] = {}
    if whole.format == "cvat":
        subsets = {picture.subset for picture in whole.pictures(Findings(0))}
        for split, names in spellings.items():
            for subset in (one for one in sorted(subsets) if one.lower() in names):
                splits.setdefault(split, replace(whole, subset=subset))
    else:
        lists = whole.path / "ImageSets" / "Main"
        for split, names in spellings.items():
            names += ("trainval",) if split == "train" else ()
            for path in filter(Path.is_file, (lists / f"{name}.txt" for name in names)):
                lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
                listed = {line.split()[0] for line in lines if line.strip()}
                files = tuple(file for file in whole.files if file.stem in listed)
                splits.setdefault(split, replace(whole, files=files))
        splits = {split: place for split, place in splits.items() if place.files}
    return splits or {"train": whole}


def read_annotated(
    place: AnnotatedSplit, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    """Read the files of a split; image ids are 0, 1, ... in their order. Faulty objects go to
    `findings` instead. `masks`: record the outlines.
    """
    raises = findings is None
    findings = Findings(SHOWN) if findings is None else findings
    root, outlines = place.path, OutlineRecorder()
    label_of = {name: label for label, name in enumerate(place.class_names)}
    names, seen = list[str](), set[str]()
    files, sizes, rows = [], [], []
    for picture in place.pictures(findings):
        inside = picture.image.is_relative_to(root)
        name = str(picture.image.relative_to(root) if inside else picture.image)
        if leaves(root, picture.image):
            findings.add("path-outside", picture.file, name, f"{name} is not in {root}")
        for label, box, outline, _, crowd, at in picture.shapes:
            numbers = NO_ID, len(names), label_of[label], -1, crowd
            rows.append((*numbers, box, np.nan, at))
            if masks:
                outlines.add(outline)
        if name in seen:
            findings.add("image-listed-twice", picture.file, name, "it is listed before")
        seen.add(name)
        names.append(name)
        files.append(picture.file)
        sizes.append(picture.size)
    if not names:
        told = f"{root}: its annotations ({place.format}) list no images"
        if raises:
            findings.stop_on_errors(root)
            told += "".join(f"\n  {finding}" for finding in findings.kept()[:SHOWN])
        raise DatasetError(told)
    for path in place.unlisted:
        found = "no annotation, or of no split (ImageSets/Main, subset)"
        findings.add("image-unlisted", root, str(path), found)
    boxes, images = np.array(rows, BOX), np.zeros(len(names), IMAGE)
    boxes["outline"] = np.arange(len(rows)) if masks else -1
    images["id"] = images["place"] = np.arange(len(names))
    images["annotated"] = sizes
    return SplitRecords(
        source=root,
        root=root,
        class_names=place.class_names,
        category_ids=np.arange(len(place.class_names)),
        names=names,
        image_keys=range(len(names)),
        images=images,
        boxes=boxes,
        label_files=files,
        outlines=outlines,
        masks=masks,
        findings=findings,
    )
