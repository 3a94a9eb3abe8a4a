"""Rules about labels: each object's outline, the classes of the splits, what the model can see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfdetr.config.fields import input_size, size_text
from rfdetr.data.findings import Description, Findings
from rfdetr.data.index import DatasetIndex
from rfdetr.data.segmentations import OutlineRecorder

RARE = 100  # times as many boxes of another class
_SLACK = 1.0  # pixels outside the image that tools write by habit
_TOUCH = 1e-6  # pixels between a corner and an edge that touch
_MOST_POINTS = 1000  # of a ring that is looked at for crossings, which costs their square


def outline_faults(segmentation: Any, height: int, width: int) -> Iterator[tuple[str, str]]:
    """Rule and what was found, for a COCO `segmentation` that is not empty.

    `height` and `width` are the image's, in pixels; 0: not known.
    """
    parts = segmentation if isinstance(segmentation, list) else []
    pairs = [part for part in parts if isinstance(part, list) and len(part) % 2 == 0]
    rings = [part for part in pairs if len(part) >= 6]
    if len(rings) < len(pairs):
        yield "outline-points", f"{min(map(len, pairs)) // 2} points"
    if len(pairs) < len(parts):
        yield "outline-numbers", "not a list of x y pairs"
    if not parts or rings:
        recorder = OutlineRecorder()
        recorder.add(rings or segmentation)
        if recorder.faults:
            yield recorder.faults[0]
            return
    if isinstance(segmentation, dict):
        size = [int(side) for side in segmentation["size"]]
        if height and size != [height, width]:
            yield "outline-rle", f"size is {size}, the image's is {[height, width]}"
    for ring in rings:
        yield from ring_faults(np.array(ring, np.float64).reshape(-1, 2), height, width)


def ring_faults(points: NDArray[np.float64], height: int, width: int) -> Iterator[tuple[str, str]]:
    """Rule and what was found, for a polygon's corners (n, 2) in pixels."""
    (left, top), (right, bottom) = low, high = points.min(0), points.max(0)
    if height and ((low < -_SLACK).any() or (high > np.array((width, height)) + _SLACK).any()):
        found = f"x {left:g} to {right:g}, y {top:g} to {bottom:g} in {width}x{height} pixels"
        yield "outline-outside", found
    if len(points) <= _MOST_POINTS and (met := crossing(points)) is not None:
        yield met[0], f"near x {met[1][0]:g}, y {met[1][1]:g}"


def crossing(points: NDArray[np.float64]) -> tuple[str, NDArray[np.float64]] | None:
    """The rule that a closed polygon (n, 2) breaks by meeting itself, and a corner near that place.

    "outline-crossing": two edges cross. "outline-touching": a corner lies on an edge that is not
    its own, or occurs twice (a pinched ring, of which traced masks have many). None: it does not.
    """
    points = points[(points != np.roll(points, 1, axis=0)).any(1)]  # without repeated corners
    n = len(points)
    if n < 4:
        return None
    start, end = points, np.roll(points, -1, axis=0)
    edge, to_corner = (end - start)[:, None], points - start[:, None]  # (n, 1, 2), (n, n, 2)
    # Twice the area of the triangle of edge i and corner j: its sign tells the corner's side.
    turn = edge[..., 0] * to_corner[..., 1] - edge[..., 1] * to_corner[..., 0]
    sides = np.sign(turn)
    separates = sides * np.roll(sides, -1, axis=1) < 0  # edge i separates the ends of edge j
    own = np.isin((np.arange(n) - np.arange(n)[:, None]) % n, (0, 1))  # corner j is edge i's
    crosses = separates & separates.T & ~(own | own.T)
    low, high = np.minimum(start, end)[:, None] - _TOUCH, np.maximum(start, end)[:, None] + _TOUCH
    on_line = np.abs(turn) <= _TOUCH * np.linalg.norm(edge, axis=2)
    touches = on_line & ((low <= points) & (points <= high)).all(2) & ~own
    for rule, edges in (("outline-crossing", crosses), ("outline-touching", touches)):
        if edges.any():
            return rule, start[np.argwhere(edges)[0][0]]
    return None


def check_classes(indexes: Mapping[str, DatasetIndex], findings: Findings) -> None:
    """Find a train split without objects, and classes that splits lack or that are far rarer.

    The splits have the same classes. Crowds are no objects: nothing is learned of them.
    """
    first = next(iter(indexes.values()))
    counts: dict[str, list[int]] = {
        split: np.bincount(index.labels[~index.crowd], minlength=len(first.class_names)).tolist()
        for split, index in indexes.items()
    }
    if "train" in indexes and not any(counts["train"]):
        train = indexes["train"]
        found = f"{len(train)} images, {len(train.labels)} crowds"
        findings.add("objects-none", train.source, "split train", found)
    most = max(*counts.get("train", next(iter(counts.values()))), 1)
    for label, name in enumerate(first.class_names):
        objects = {split: count[label] for split, count in counts.items()}
        text = ", ".join(f"{count} in {split}" for split, count in objects.items())
        needed = [objects.get(split, 1) for split in ("train", "valid")]
        if not any(objects.values()):
            rule, found = "class-empty", "no objects in any split"
        elif 0 in needed:
            rule, found = "class-missing", f"objects: {text}"
        elif needed[0] * RARE <= most:
            rule, found = "class-imbalance", f"{text}; the commonest has {most}"
        else:
            continue
        findings.add(rule, first.source, f"class {name}", found)


def check_for_model(
    index: DatasetIndex,
    findings: Findings,
    *,
    resolution: int | Sequence[int],
    patch_size: int,
    num_queries: int,
) -> None:
    """Find images with more objects than queries, and objects smaller than a patch of the model."""
    objects = np.diff(index.offsets)
    for image in np.flatnonzero(objects > num_queries).tolist():
        found = f"{objects[image]} objects, {num_queries} queries"
        findings.add("objects-over-queries", index.source, index.path(image).name, found)
    image_of_box = np.repeat(np.arange(len(index)), objects)
    sizes = np.maximum(index.sizes[image_of_box][:, ::-1], 1)  # (M, 2) width, height
    sides = (index.boxes[:, 2:] - index.boxes[:, :2]) / sizes * input_size(resolution)[::-1]

    def describe(row: int) -> Description:
        width, height = sides[row]
        found = (
            f"{width:.1f}x{height:.1f} pixels at {size_text(resolution)}, a patch has {patch_size}"
        )
        name = index.class_names[index.labels[row]]
        return str(index.source), f"{index.path(int(image_of_box[row])).name}, {name}", found, None

    findings.add_rows({"box-tiny": (sides < patch_size).all(1)}, describe)
