"""The figures that a report adds to `Metrics`: how sure they are, what costs most, what they depend
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rfdetr.config.fields import input_size
from rfdetr.data.index import DatasetIndex
from rfdetr.evaluation.found import LEAST_SCORE, UNKNOWN_TONE
from rfdetr.evaluation.matching import IGNORED, IOU_THRESHOLDS, Array, MatchTable
from rfdetr.evaluation.metrics import Metrics
from rfdetr.report.hints import calibrated
from rfdetr.report.judged import Judged, to_xywh

RESAMPLES = 200
THRESHOLDS: Array = np.linspace(0, 1, 101)
SIDES = (16, 32, 64, 128)  # square roots of areas in the network's pixels, that part objects
COUNTS = (2, 6, 11, 21, 51)  # objects of an image, that part images
LEAST_IMAGES = 5  # of a part of the images by their tone; a tenth, where there are enough
_MOST_IMAGES = 400  # that the bootstrap draws from; of more, so many stand for all
_MOST_CELLS = 4_000_000  # of one array of the bootstrap


def bootstrap(metrics: Metrics, seed: int = 0) -> tuple[float, float]:
    """The interval in which 95 of 100 mAP_50_95 lie when images are drawn anew, with replacement.

    Of the likely detections alone, with the area under the curve in place of COCO's 101 points:
    the interval is that of the difference, around the exact figure. It narrows with the root of the
    number of images, by which that of a part of them stands for all.
    """
    table, rng, exact = metrics.matches, np.random.default_rng(seed), metrics.overall["mAP_50_95"]
    images = np.unique(np.concatenate([table.image, table.truth_image]))
    if not len(images) or np.isnan(exact):
        return float("nan"), float("nan")
    narrower = min(_MOST_IMAGES / len(images), 1) ** 0.5
    images = np.sort(rng.permutation(images)[:_MOST_IMAGES])
    draws = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(images)), int), draws]).astype(np.float32)
    right, counted = _right_at_each_iou(table)
    counted &= (table.scores >= LEAST_SCORE) & np.isin(table.image, images)
    detections = np.flatnonzero(counted)
    image_of = np.searchsorted(images, table.image)
    truth_image = np.searchsorted(images, table.truth_image)
    objects_drawn = ~table.truth_crowd & np.isin(table.truth_image, images)
    sums, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for label in np.unique(table.truth_labels[objects_drawn]):
        real = (table.truth_labels == label) & objects_drawn
        objects = weights[:, truth_image[real]].sum(axis=1)
        own = detections[table.labels[detections] == label]
        part = max(_MOST_CELLS // (10 * max(len(own), 1)), 1)
        for start in range(0, len(weights), part):
            rows = slice(start, start + part)
            drawn = weights[rows][:, image_of[own]]
            sums[rows] += _area(drawn, right[own], np.maximum(objects[rows], 1))
        classes += objects > 0
    maps = sums / np.maximum(classes, 1)
    low, high = np.quantile(maps[1:] - maps[0], (0.025, 0.975)) * narrower + exact
    return float(max(low, 0)), float(min(high, 1))


def _right_at_each_iou(table: MatchTable) -> tuple[Array, Array]:
    """(N, 10) whether a detection is right at each IoU, and (N,) whether it counts at all."""
    right = np.zeros((len(table.scores), len(IOU_THRESHOLDS)), np.float32)
    counted = np.ones(len(table.scores), bool)
    for column in range(len(IOU_THRESHOLDS)):
        matched = table.match(same_class=True, level=column + 1)
        right[:, column] = matched >= 0
        if column == 0:
            counted = matched != IGNORED
    return right, counted


def _area(weights: Array, right: Array, objects: Array) -> Array:
    """(R,) mean over IoUs of the area under precision over recall, precision made to fall: of n
    detections, best first, `right` (n, 10), that occur `weights` (R, n) times.
    """
    hits = weights[:, :, None] * right[None]
    found = np.cumsum(hits, axis=1)
    precision = found / np.maximum(np.cumsum(weights, axis=1), 1)[:, :, None]
    falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area: Array = (falling * hits).sum(axis=1).mean(axis=1) / objects
    return area


def errors_and_calibration(judged: Judged) -> dict[str, Any]:
    """hotcoco's TIDE errors (mAP at IoU 0.5 that each kind costs, and how many) and calibration."""
    from hotcoco import COCO, COCOeval

    index, table = judged.index, judged.table
    sizes = index.sizes.tolist()
    objects = zip(
        table.truth_image.tolist(), index.labels.tolist(), to_xywh(index.boxes).tolist(),
        index.areas.tolist(), index.crowd.tolist(), strict=True,
    )  # fmt: skip
    truth = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(index.class_names)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": area}
            | {"iscrowd": int(crowd)}
            for i, (image, label, box, area, crowd) in enumerate(objects, 1)
        ],
    }
    columns = table.image.astype(float), to_xywh(judged.boxes), table.scores, table.labels
    none: dict[str, Any] = {"errors": {}, "counts": {}, "ece": None, "ece_after": None, "bins": []}
    if not len(table.scores) or not truth["annotations"]:
        return none
    known = COCO(truth)
    evaluation = COCOeval(known, known.loadRes(np.column_stack(columns)), "bbox")
    evaluation.evaluate()
    tide, calibration = evaluation.tide_errors(), evaluation.calibration()
    bins = [
        {"confidence": one["avg_confidence"], "right": one["avg_accuracy"], "count": one["count"]}
        for one in calibration["bins"]
        if one["count"]
    ]
    return {
        "errors": tide["delta_ap"],
        "counts": tide["counts"],
        "ece": calibration["ece"],
        "ece_after": _halves_error(judged),
        "bins": bins,
    }


def _halves_error(judged: Judged) -> float:
    """The calibration error that is left after isotonic regression: fitted on the images of even
    number, measured in ten bins on the others.
    """
    even, counted = judged.table.image % 2 == 0, judged.matched != IGNORED
    scores, right = judged.table.scores, judged.matched >= 0
    fitted = calibrated(judged, even)
    known, other = even & counted, ~even & counted
    if not known.any() or not other.any():
        return float("nan")
    order = np.argsort(scores[known], kind="stable")
    told = np.interp(scores[other], scores[known][order], fitted[known][order])
    place = np.minimum((told * 10).astype(int), 9)
    gaps = np.bincount(place, told - right[other], 10)
    return float(np.abs(gaps).sum() / len(told))


def sweep(metrics: Metrics) -> dict[str, Any]:
    """Right and wrong detections of each class at each of the 101 `THRESHOLDS`, and its objects."""
    table, classes = metrics.matches, len(metrics.per_class)
    matched = table.match(same_class=True)
    passed = np.searchsorted(THRESHOLDS, table.scores.astype(float), side="right")

    def counts(which: Array) -> list[list[int]]:
        cells = table.labels[which] * 102 + passed[which]
        by_class = np.bincount(cells, minlength=classes * 102).reshape(classes, 102)
        at_least: list[list[int]] = np.cumsum(by_class[:, :0:-1], axis=1)[:, ::-1].tolist()
        return at_least

    wrong = (matched < 0) & (matched != IGNORED)
    objects = [row["boxes"] for row in metrics.per_class]
    return {"right": counts(matched >= 0), "wrong": counts(wrong), "objects": objects}


def recall_by(judged: Judged, threshold: float, resolution: int | Sequence[int]) -> dict[str, Any]:
    """The share of objects found from `threshold` on, by their size, shape, place and company, and
    by the brightness and sharpness of their images.
    """
    index, table = judged.index, judged.table
    matched = judged.matched[table.scores >= threshold]
    found = np.zeros(len(index.labels), bool)
    found[matched[matched >= 0]] = True
    real = ~index.crowd
    side = network_sides(index, resolution)
    width, height = (index.boxes[:, 2:] - index.boxes[:, :2]).T
    aspect = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1e-6)
    edges = index.sizes[table.truth_image][:, ::-1]
    at_edge = (index.boxes[:, :2] <= 1).any(1) | (index.boxes[:, 2:] >= edges - 1).any(1)
    company = np.diff(index.offsets)[table.truth_image]
    names = _ranges(SIDES, " px")
    return {
        "size": _shares(np.digitize(side, SIDES), names, found, real),
        "shape": _shares(np.digitize(aspect, (1.5, 3)), ["square", "longish", "long"], found, real),
        "place": _shares(at_edge.astype(int), ["inside", "at the edge"], found, real),
        "objects": _shares(np.digitize(company, COUNTS), _ranges(COUNTS, ""), found, real),
        **_by_tone(judged, threshold, found & real),
    }


def _by_tone(judged: Judged, threshold: float, found: Array) -> dict[str, list[dict[str, Any]]]:
    """Parts of the images, as many images in each, from dark to bright and from blurred to sharp:
    their range in gray levels, their objects, those `found` (M,) bool, and false detections.
    """
    index, table, kept = judged.index, judged.table, judged.metrics.found
    tones = np.stack(
        [kept[i].tone if i in kept else UNKNOWN_TONE for i in index.image_ids.tolist()]
    )
    counted = (table.scores >= threshold) & (judged.matched < 0) & (judged.matched != IGNORED)
    false = np.bincount(table.image[counted], minlength=len(index))
    owner = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    objects = np.bincount(owner[~index.crowd], minlength=len(index))
    right = np.bincount(owner[found], minlength=len(index))
    told: dict[str, list[dict[str, Any]]] = {}
    for name, values in zip(("brightness", "sharpness"), tones.T, strict=True):
        order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # nan comes last
        parts = np.array_split(order, min(10, max(len(order) // LEAST_IMAGES, 1)))
        told[name] = [
            {
                "name": f"{values[part[0]]:.4g} to {values[part[-1]]:.4g}",
                "images": len(part),
                "objects": int(objects[part].sum()),
                "found": int(right[part].sum()),
                "false": int(false[part].sum()),
            }
            for part in parts
            if len(parts) > 1 and objects[part].any()
        ]
    return told


def network_sides(index: DatasetIndex, resolution: int | Sequence[int]) -> Array:
    """(M,) square roots of the objects' areas, in pixels of the network's input."""
    images = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    scale = input_size(resolution) / index.sizes[images].astype(float)
    extent = (index.boxes[:, 2:] - index.boxes[:, :2]) * scale[:, ::-1]
    sides: Array = np.sqrt(extent.prod(axis=1))
    return sides


def _ranges(limits: tuple[int, ...], unit: str) -> list[str]:
    """ "under 16 px", "16 to 31 px", ..., "128 px or more"; of counts "1", "2 to 5", ..."""
    middle = [f"{low} to {high - 1}{unit}" for low, high in pairwise(limits)]
    first = "1" if limits[0] == 2 else f"under {limits[0]}{unit}"
    return [first, *middle, f"{limits[-1]}{unit} or more"]


def _shares(group: Array, names: list[str], found: Array, real: Array) -> list[dict[str, Any]]:
    whole = np.bincount(group[real], minlength=len(names))
    part = np.bincount(group[real & found], minlength=len(names))
    return [
        {"name": name, "objects": int(n), "found": int(f)}
        for name, n, f in zip(names, whole, part, strict=True)
        if n
    ]


def drift(indexes: Mapping[str, DatasetIndex], resolution: int | Sequence[int]) -> dict[str, Any]:
    """What the splits are made of: classes, sizes, objects an image; `distance` is the share of a
    split's objects that would have to change to be spread over classes (sizes) as in train.
    """
    splits: dict[str, Any] = {}
    for split, index in indexes.items():
        real = ~index.crowd
        labels = np.bincount(index.labels[real], minlength=len(index.class_names))
        sides = network_sides(index, resolution)[real]
        sizes = np.bincount(np.digitize(sides, SIDES), minlength=len(SIDES) + 1)
        splits[split] = {
            "images": len(index),
            "boxes": int(labels.sum()),
            "classes": dict(zip(index.class_names, labels.tolist(), strict=True)),
            "sizes": dict(zip(_ranges(SIDES, " px"), sizes.tolist(), strict=True)),
        }
    for name, facts in splits.items():
        for kind in ("classes", "sizes"):
            if name != "train" and "train" in splits:
                counts = (np.array([*part[kind].values()]) for part in (splits["train"], facts))
                first, own = (count / max(count.sum(), 1) for count in counts)
                facts[f"{kind}_distance"] = float(np.abs(first - own).sum() / 2)
    return splits
