"""A data set out of nothing: COCO folders of synthetic scenes, with boxes and outlines, for demo,
tests, pre-training.

    generate("shapes")          # shapes/{train,valid,test}/_annotations.coco.json and pictures

The same arguments give the same bytes (with the same Pillow). What is drawn:
`data.synthetic_scenes`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rfdetr.errors import InputError
from rfdetr.geometry.rle import runs_of_bitmap
from rfdetr.synthetic.kinds import ALL_KINDS, DEMO_KINDS, PRETRAIN_KINDS
from rfdetr.synthetic.outlines import trace_pixels
from rfdetr.synthetic.scenes import Scene, render_scene

DEMO_CLASSES: tuple[str, ...] = tuple(DEMO_KINDS)
"""Classes that the bundled weights have not seen."""
PRETRAIN_CLASSES: tuple[str, ...] = tuple(PRETRAIN_KINDS)
"""Classes that the bundled weights were trained on."""
DEMO_DISTRACTORS: tuple[str, ...] = (
    "drop",
    "disc",
    "arc",
    "bean",
    "magnifier",
    "pentagon",
    "kite",
    "shield",
)
"""Shapes that resemble a demo class and are none."""

_SPLITS = {"train": 0.7, "valid": 0.15, "test": 0.15}
_RECORD = "synthetic.json"


def generate(  # noqa: PLR0913 - what a set is made of, each with a default
    out_dir: str | Path,
    num_images: int = 600,
    classes: Sequence[str] = DEMO_CLASSES,
    seed: int = 0,
    sides: tuple[int, int] = (160, 320),
    distractors: Sequence[str] = DEMO_DISTRACTORS,
    plain: bool = False,
) -> Path:
    """Writes train, valid and test folders (70, 15 and 15 %) in COCO form and returns the folder.

    Pictures are JPEG, each side between `sides` pixels; `plain` ones are easier (see
    `render_scene`). A folder that these same arguments made is left as it is; one that holds
    anything else is an error (`FileExistsError`), for nothing is ever overwritten.
    """
    unknown = [name for name in (*classes, *distractors) if name not in ALL_KINDS]
    if unknown or not classes or num_images < len(_SPLITS):
        raise InputError(
            f"unknown kinds {unknown}, no classes, or fewer than {len(_SPLITS)} images; kinds: {sorted(ALL_KINDS)}"
        )
    record = {
        "generator": __name__, "num_images": num_images, "classes": list(classes), "seed": seed, "sides": list(sides),
        "distractors": [name for name in distractors if name not in classes], "plain": plain,
    }  # fmt: skip
    folder = Path(out_dir)
    if folder.is_dir() and any(folder.iterdir()):
        _check_same(folder, record)
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        _write_splits(partial, record)
        if folder.is_dir():
            folder.rmdir()  # empty, as checked above
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_same(folder: Path, record: dict[str, Any]) -> None:
    path = folder / _RECORD
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found != record:
        raise FileExistsError(
            f"{folder} is not empty and is not the set asked for (its {_RECORD}: {found}; asked for: {record}); "
            "choose another folder, or remove this one"
        )


def _write_splits(folder: Path, record: dict[str, Any]) -> None:
    total, start = int(record["num_images"]), 0
    counts = {split: max(int(total * share), 1) for split, share in _SPLITS.items()}
    counts["train"] += total - sum(counts.values())
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        _write_split(folder / split, range(start, start + count), record)
        start += count
    (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _write_split(folder: Path, indexes: range, record: dict[str, Any]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indexes:
        rng = np.random.default_rng((record["seed"], index))
        low, high = record["sides"]
        height, width = rng.integers(low, high + 1, 2).tolist()
        scene = render_scene(
            rng, record["classes"], (height, width), record["distractors"], record["plain"]
        )
        name = f"{index:06d}.jpg"
        Image.fromarray(scene.image).save(folder / name, quality=92)
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations += _annotations(scene, index, len(annotations) + 1)
    categories = [
        {"id": i, "name": name, "supercategory": "shape"}
        for i, name in enumerate(record["classes"], 1)
    ]
    document = {
        "info": {"description": "synthetic scenes"}, "licenses": [], "categories": categories, "images": images,
        "annotations": annotations,
    }  # fmt: skip
    (folder / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO records; polygons and run lengths are those of the pixels that show the object."""
    records = []
    for i, (box, label) in enumerate(
        zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        entry: dict[str, Any] = {
            "id": first_id + i, "image_id": image_id, "category_id": label + 1, "iscrowd": 0,
            "bbox": [left, top, right - left, bottom - top], "area": float(scene.areas[i]),
        }  # fmt: skip
        entry["segmentation"] = _segmentation(scene.owner == i, scene.boxes_xyxy[i])
        records.append(entry)
    return records


def _segmentation(
    shown: NDArray[np.bool_], box_xyxy: NDArray[np.float32]
) -> list[list[float]] | dict[str, Any]:
    """Polygons, or run lengths where there is a hole, which polygons cannot say."""
    left, top, right, bottom = box_xyxy.astype(int).tolist()
    rings = trace_pixels(np.pad(shown[top:bottom, left:right], 1))
    if not all(ring.filled for ring in rings):
        return {"size": list(shown.shape), "counts": runs_of_bitmap(shown)}
    return [(ring.points + np.array((left - 1, top - 1))).ravel().tolist() for ring in rings]
