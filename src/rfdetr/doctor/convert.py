"""A dataset of any layout that is read, written anew in COCO or YOLO layout, with links to the
images, which are not touched.

Boxes and outlines are those of the upright image, clipped to it, as training has them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from rfdetr.checks import check_new_folder
from rfdetr.config.fields import as_classes, as_folders
from rfdetr.data.findings import Findings
from rfdetr.data.folders import Folders
from rfdetr.data.formats.yolo import SPLIT_KEYS
from rfdetr.data.index import DatasetIndex
from rfdetr.doctor.fix import link_image
from rfdetr.errors import InputError
from rfdetr.geometry.polygons import Segmentation
from rfdetr.geometry.rle import rle_dict


class Converted(NamedTuple):
    """What was written, by split (images, objects), and what was found and left out on the way."""

    splits: dict[str, tuple[int, int]]
    findings: Findings


def convert(
    dataset_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: Literal["coco", "yolo"] = "coco",
    *,
    dataset_file: str = "roboflow",
    classes: Any = None,
    split: bool = False,
) -> Converted:
    """Write a dataset into a new folder; `classes` are those of training, and `split` divides a
    valid split off train where there is none, as training would.

    A folder `out` that is not empty is a `FileExistsError`.
    """
    folder = check_new_folder("the folder of the copy", out)
    if to not in ("coco", "yolo"):
        raise InputError(f"to is {to!r}: expected 'coco' or 'yolo'")
    source, findings = as_folders("dataset_dir", dataset_dir), Findings()
    folders = Folders(source, dataset_file, as_classes(classes), divides=split)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    written: dict[str, tuple[int, int]] = {}
    names: tuple[str, ...] | None = None
    try:
        for one in folders.splits:
            index = folders.index(one, findings, masks=None)
            index = index if names is None else index.with_classes(names, "the other splits")
            names = index.class_names
            images = _link_images(index, partial / one / ("images" if to == "yolo" else ""))
            objects = (_write_coco if to == "coco" else _write_yolo)(
                index, images, partial / one, findings
            )
            written[one] = len(images), objects
        if to == "yolo":
            places = {SPLIT_KEYS[one][0]: f"{one}/images" for one in written}
            content: dict[str, Any] = {**places, "nc": len(names or ()), "names": list(names or ())}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            (partial / "data.yaml").write_text(text, encoding="utf-8")
        with suppress(FileNotFoundError):
            folder.rmdir()  # empty, as checked above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Converted(written, findings)


def _link_images(index: DatasetIndex, folder: Path) -> dict[int, str]:
    """The names under which the images that can be read are linked; their stems differ."""
    paths = {image: index.path(image) for image in np.flatnonzero(index.sizes.all(1)).tolist()}
    stems = Counter(path.stem for path in paths.values())
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for image, path in paths.items():
        names[image] = path.name if stems[path.stem] == 1 else f"{image:06d}-{path.name}"
        link_image(path, folder / names[image])
    return names


def _objects(
    index: DatasetIndex, image: int
) -> Iterator[tuple[int, list[float], Segmentation | None]]:
    """Row, box xyxy and outline of each object."""
    rows = np.arange(*index.offsets[image : image + 2])
    outlines = index.outlines_of(image, rows)
    return zip(rows.tolist(), index.boxes[rows].astype(np.float64).tolist(), outlines, strict=True)


def _write_coco(index: DatasetIndex, images: dict[int, str], folder: Path, _: Findings) -> int:
    annotations: list[dict[str, Any]] = []
    records = []
    for image, name in images.items():
        height, width = index.sizes[image].tolist()
        records.append({"id": image + 1, "file_name": name, "height": height, "width": width})
        for row, (left, top, right, bottom), outline in _objects(index, image):
            parts = () if outline is None else outline.polygons
            segmentation: Any = [[round(x, 4) for x in part.ravel().tolist()] for part in parts]
            if outline is not None and outline.rle:
                segmentation = rle_dict(outline.rle, height, width)
                segmentation["counts"] = outline.rle.decode()
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": image + 1,
                "category_id": int(index.labels[row]) + 1,
                "bbox": [round(x, 4) for x in (left, top, right - left, bottom - top)],
                "area": round(float(index.areas[row]), 4),
                "iscrowd": int(index.crowd[row]),
                "segmentation": segmentation,
            })  # fmt: skip
    categories = [
        {"id": label + 1, "name": name, "supercategory": "none"}
        for label, name in enumerate(index.class_names)
    ]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    return len(annotations)


def _write_yolo(
    index: DatasetIndex, images: dict[int, str], folder: Path, findings: Findings
) -> int:
    """Boxes, or polygons where there are outlines. Crowds, which lines cannot tell, are left out;
    of masks of run lengths the boxes are written.
    """
    (folder / "labels").mkdir()
    objects = 0
    for image, name in images.items():
        (height, width), lines = index.sizes[image].tolist(), []
        for row, (left, top, right, bottom), outline in _objects(index, image):
            if index.crowd[row]:
                findings.add("crowd-left-out", index.source, name)
                continue
            points = np.array(_ring(outline) if outline and outline.polygons else [])
            values = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            if len(points):
                values = points.clip(0, (width, height)).ravel().tolist()
            elif outline is not None:
                findings.add("mask-as-box", index.source, name)
            sides = (width, height) * (len(values) // 2)
            shares = [f"{value / side:.8g}" for value, side in zip(values, sides, strict=True)]
            lines.append(" ".join([str(index.labels[row]), *shares]) + "\n")
        (folder / "labels" / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
        objects += len(lines)
    return objects


def _ring(outline: Segmentation) -> list[Any]:
    """One ring of several polygons: from the first's first corner each other one is reached, and
    left, along one line, which encloses nothing.
    """
    ring: list[Any]
    ring, *others = (part.tolist() for part in outline.polygons)
    for part in others:
        ring += [ring[0], *part, part[0]]
    return ring + [ring[0]] * bool(others)
