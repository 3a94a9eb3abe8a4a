"""A labelled data set out of nothing: COCO folders of drawn scenes, with boxes and outlines.

    generate("shapes")          # shapes/{train,valid,test}/_annotations.coco.json and pictures

The same arguments give the same bytes (with the same Pillow). `synthetic.shapes` says what is
drawn, `synthetic.scenes` how.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rfdetr.errors import InputError
from rfdetr.geometry.rle import runs_of_bitmap
from rfdetr.synthetic import shapes
from rfdetr.synthetic.scenes import Scene, render_scene

DEMO_CLASSES: tuple[str, ...] = tuple(shapes.DEMO_KINDS)
"""Classes that the bundled weights have not seen."""
DEMO_DISTRACTORS: tuple[str, ...] = tuple(shapes.DISTRACTOR_KINDS)
"""Shapes that resemble a demo class and are none."""

_KINDS = shapes.DEMO_KINDS | shapes.DISTRACTOR_KINDS | shapes.CLUTTER_KINDS
_RECORD = "synthetic.json"  # the arguments a folder was made with


def generate(  # noqa: PLR0913 - what a set is made of, each with a default
    out_dir: str | Path,
    num_images: int = 600,
    classes: Sequence[str] = DEMO_CLASSES,
    seed: int = 0,
    sides: tuple[int, int] = (160, 320),
    distractors: Sequence[str] = DEMO_DISTRACTORS,
    plain: bool = False,
    shape: float | None = None,
) -> Path:
    """Write train, valid and test folders (70, 15 and 15 %) in COCO form; returns the folder.

    `num_images` is for all three, and each side of a picture (JPEG) has `sides[0]` to `sides[1]`
    pixels. `classes` and `distractors`, which have no labels, are names of shapes. `plain` pictures
    are easier, see `render_scene`. With a `shape`, width by height, `sides` are those of the height
    alone: 2.0 draws wide pictures. A folder that the same arguments made is left as it is; one that
    holds anything else is a `FileExistsError`, for nothing is ever overwritten.
    """
    unknown = [name for name in (*classes, *distractors) if name not in _KINDS]
    if unknown or not classes or num_images < 3:
        fault = f"unknown kinds {unknown}, no classes, or fewer than 3 images"
        raise InputError(f"{fault}; kinds: {sorted(_KINDS)}")
    record = {
        "generator": "rfdetr.data.synthetic", "num_images": num_images, "classes": list(classes),
        "seed": seed, "sides": list(sides),
        "distractors": [name for name in distractors if name not in classes], "plain": plain,
    }  # fmt: skip
    record |= {} if shape is None else {"shape": shape}
    folder = Path(out_dir)
    if folder.is_dir() and any(folder.iterdir()):
        path = folder / _RECORD
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if found == record:
            return folder
        differ = f"its {_RECORD}: {found}; asked for: {record}"
        text = f"{folder} is not empty and is not the set asked for ({differ})"
        raise FileExistsError(f"{text}; choose another folder, or remove this one")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    held_out, start = max(int(num_images * 0.15), 1), 0
    counts = {"train": num_images - 2 * held_out, "valid": held_out, "test": held_out}
    try:
        for split, count in counts.items():
            _write_split(partial / split, range(start, start + count), record)
            start += count
        (partial / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()  # empty, as checked above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_split(folder: Path, indexes: range, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    kinds = [_KINDS[name] for name in record["classes"]]
    distractors = [_KINDS[name] for name in record["distractors"]]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    low, high = record["sides"]
    for index in indexes:
        rng = np.random.default_rng((record["seed"], index))
        height, width = rng.integers(low, high + 1, 2).tolist()
        width = round(height * record["shape"]) if "shape" in record else width
        scene = render_scene(rng, kinds, (height, width), distractors, record["plain"])
        name = f"{index:06d}.jpg"
        Image.fromarray(scene.image).save(folder / name, quality=92)
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations += coco_annotations(scene, index, len(annotations) + 1)
    named = enumerate(record["classes"], 1)
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in named]
    document = {
        "info": {"description": "synthetic scenes"}, "licenses": [], "categories": categories,
        "images": images, "annotations": annotations,
    }  # fmt: skip
    (folder / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")


def coco_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """A COCO record of each object; box, area and segmentation are of the pixels that show it."""
    records = []
    for i, label in enumerate(scene.labels.tolist()):
        left, top, right, bottom = scene.boxes_xyxy[i].astype(int).tolist()
        shown = scene.owner == i
        segmentation: Any = []
        for ring in shapes.pixel_rings(np.pad(shown[top:bottom, left:right], 1)):
            if shapes.signed_area(ring) < 0:  # a hole, which polygons cannot say
                segmentation = {"size": list(shown.shape), "counts": runs_of_bitmap(shown)}
                break
            step = np.roll(ring, -1, axis=0) - ring
            turns = ring[(step != np.roll(step, 1, axis=0)).any(axis=1)]  # no corners on a straight
            segmentation.append((turns + np.array((left - 1, top - 1))).ravel().tolist())
        bbox = [float(side) for side in (left, top, right - left, bottom - top)]
        records.append(
            {"id": first_id + i, "image_id": image_id, "category_id": label + 1, "iscrowd": 0}
            | {"bbox": bbox, "area": float(scene.areas[i]), "segmentation": segmentation}
        )
    return records
