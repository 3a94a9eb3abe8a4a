"""Rules about whole splits: how classes are spread over them, and what the model to train can see
of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rfdetr.data.findings import Description, Findings
from rfdetr.data.index import DatasetIndex

RARE = 100  # times as many boxes of another class


def check_classes(indexes: Mapping[str, DatasetIndex], findings: Findings) -> None:
    """A train split without objects; classes without, or in some splits only, or far rarer than
    others.

    Crowds are no objects: nothing is learned of them. The splits have the same classes.
    """
    first = next(iter(indexes.values()))
    learned = {split: index.labels[~index.crowd] for split, index in indexes.items()}
    counts = {
        split: np.bincount(labels, minlength=len(first.class_names))
        for split, labels in learned.items()
    }
    if "train" in indexes and not len(learned["train"]):
        train = indexes["train"]
        findings.add(
            "objects-none",
            train.source,
            "split train",
            f"{len(train)} images, {len(train.labels)} crowds",
        )
    most = max(int(counts.get("train", next(iter(counts.values()))).max()), 1)
    for label, name in enumerate(first.class_names):
        of_split = {split: int(count[label]) for split, count in counts.items()}
        text = ", ".join(f"{count} in {split}" for split, count in of_split.items())
        needed = [of_split.get(split, 1) for split in ("train", "valid")]
        if not any(of_split.values()):
            findings.add("class-empty", first.source, f"class {name}", "no objects in any split")
        elif 0 in needed:
            findings.add("class-missing", first.source, f"class {name}", f"objects: {text}")
        elif needed[0] * RARE <= most:
            findings.add(
                "class-imbalance",
                first.source,
                f"class {name}",
                f"{text}; the commonest has {most}",
            )


def check_for_model(
    index: DatasetIndex, findings: Findings, *, resolution: int, patch_size: int, num_queries: int
) -> None:
    """Images with more objects than the model has queries, objects smaller than one of its patches."""
    objects = np.diff(index.offsets)
    for image in np.flatnonzero(objects > num_queries).tolist():
        found = f"{objects[image]} objects, {num_queries} queries"
        findings.add("objects-over-queries", index.source, index.path(image).name, found)
    image_of_box = np.repeat(np.arange(len(index)), objects)
    sides = (
        (index.boxes[:, 2:] - index.boxes[:, :2])
        / np.maximum(index.sizes[image_of_box][:, ::-1], 1)
        * resolution
    )

    def describe(row: int) -> Description:
        width, height = sides[row]
        found = f"{width:.1f}x{height:.1f} pixels at {resolution}, a patch has {patch_size}"
        name = index.class_names[index.labels[row]]
        return str(index.source), f"{index.path(int(image_of_box[row])).name}, {name}", found, None

    findings.add_rows("box-tiny", np.flatnonzero((sides < patch_size).all(1)).tolist(), describe)
