"""Everything that a report tells, as plain values: `build`; report.json is just that."""

from __future__ import annotations

import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rfdetr._version import __version__
from rfdetr.data.index import DatasetIndex
from rfdetr.evaluation.metrics import Metrics, as_record
from rfdetr.report import advice, cases, figures, hints
from rfdetr.report.judged import Judged, threshold_of
from rfdetr.report.pictures import Album, Shown

MOST_WORST, MOST_OF_CELL, MOST_OF_CELLS, MOST_HINT_PICTURES = 36, 6, 40, 44
MOST_HINTS = 200  # in the file
_CURVES = (
    "epoch", "seconds", "train/loss", "val/loss", "val/mAP_50_95", "val/ema_mAP_50_95",
    "val/segm_mAP_50_95", "val/ema_segm_mAP_50_95", "val/F1", "val/precision", "val/recall",
    "train/lr",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a report cannot see in the figures: where they come from."""

    model: str  # the variant
    weights: str  # their file
    resolution: int | Sequence[int]  # the side of a square, or height and width
    dataset: str
    best: Mapping[str, Any] | None = None  # {"kind": "ema", "regular" or "mean", "epoch": from 0}
    history: Sequence[Mapping[str, Any]] = ()  # a row of logged figures for each epoch
    config: Mapping[str, Any] = field(default_factory=dict)
    forecast: Mapping[str, Any] = field(default_factory=dict)  # what the run was to take
    records: Mapping[str, Any] | None = None  # results.json's splits, where figures are known


def build(
    results: Mapping[str, Metrics], indexes: Mapping[str, DatasetIndex], facts: Facts
) -> tuple[dict[str, Any], Album]:
    """The report of figures by split ("valid", "test"), and its pictures.

    `indexes` may hold splits without figures, whose classes and sizes are compared. The last split
    of `results` is shown, with the threshold that was best on valid.
    """
    shown = [*results][-1]
    splits = {name: Judged.join(name, indexes[name], found) for name, found in results.items()}
    judged, metrics = splits[shown], results[shown]
    threshold = threshold_of(results.get("valid", metrics))
    rated = metrics.masks or metrics
    album = Album(splits, threshold)
    records = facts.records or {name: as_record(found) for name, found in results.items()}
    counts = figures.sweep(metrics)
    found = cases.find_cases(judged, threshold)
    data: dict[str, Any] = {
        "schema_version": 1,
        "model": facts.model,
        "weights": facts.weights,
        "resolution": facts.resolution,
        "split": shown,
        "masks": metrics.masks is not None,
        "threshold": threshold,
        "threshold_from": "valid" if "valid" in results else shown,
        "interval": [None if math.isnan(x) else x for x in figures.bootstrap(rated)],
        "best": _best(facts),
        "splits": dict(records),
        "sweep": {**counts, "images": metrics.num_images},
        "at_threshold": {
            **{
                n: sum(row[round(threshold * 100)] for row in counts[n]) for n in ("right", "wrong")
            },
            "objects": sum(counts["objects"]),
            "images": metrics.num_images,
        },
        "classes": _classes(records[shown], indexes),
        "errors": figures.errors_and_calibration(judged),
        "confusion": _confusion(judged, found, threshold, album),
        "worst": _worst(judged, found, album),
        "recall": figures.recall_by(judged, threshold, facts.resolution),
        "drift": figures.drift(indexes, facts.resolution),
        "unlabelled": _unlabelled(judged),
        "hints": _hints(splits, album),
        "curves": [{k: row[k] for k in _CURVES if k in row} for row in facts.history],
        "pace": _pace(facts),
        "reproduce": _reproduce(indexes, facts),
    }
    data["next"] = advice.next_steps(data)
    data["verdict"] = advice.verdict(data)
    album.draw()
    data["pictures"] = album.records
    return _plain(data), album


def _best(facts: Facts) -> dict[str, Any] | None:
    if not facts.best:
        return None
    epoch = int(facts.best["epoch"]) + 1
    return {"kind": facts.best["kind"], "epoch": epoch, "epochs": max(len(facts.history), epoch)}


def _pace(facts: Facts) -> dict[str, Any] | None:
    """What was forecast after some updates beside what was taken: seconds of an epoch, bytes."""
    seconds = [row["seconds"] for row in facts.history if row.get("seconds")]
    if not facts.forecast or not seconds:
        return None
    training, judging = facts.forecast["seconds"]
    every = facts.config.get("train", {}).get("eval_interval", 1)
    return {
        "seconds": [training + judging / every, sum(seconds) / len(seconds)],
        "memory": [facts.forecast.get(name) for name in ("memory", "memory_taken")],
    }


def _classes(record: dict[str, Any], indexes: Mapping[str, DatasetIndex]) -> list[dict[str, Any]]:
    """The rows of results.json, each with its boxes in the splits, and its masks' AP."""
    boxes = {
        split: np.bincount(index.labels[~index.crowd], minlength=len(index.class_names)).tolist()
        for split, index in indexes.items()
    }
    masks = record.get("masks", {}).get("per_class")
    rows: list[dict[str, Any]] = []
    for label, row in enumerate(record["per_class"]):
        counted = {split: count[label] for split, count in boxes.items() if label < len(count)}
        rows.append({**row, **counted, **({"mask_AP": masks[label]["AP"]} if masks else {})})
    return rows


def _confusion(
    judged: Judged, found: list[cases.Case], threshold: float, album: Album
) -> dict[str, Any]:
    """The matrix, and pictures of its cells: first the errors, commonest first."""
    names = [*(row["name"] for row in judged.metrics.per_class), "background"]
    counts = judged.metrics.confusion(threshold)
    cells = cases.by_cell(judged, found)
    order = sorted(cells, key=lambda cell: (cell[0] == cell[1], -len(cells[cell])))
    # Each cell gets some before the common ones get more.
    per_cell = min(max(MOST_OF_CELLS // max(len(order), 1), 1), MOST_OF_CELL)
    left, pictures = MOST_OF_CELLS, {}
    for cell in order:
        chosen = cells[cell][: min(per_cell, left)]
        left -= len(chosen)
        numbers = [album.ask(_around(judged, case)) for case in chosen]
        pictures[f"{cell[0]},{cell[1]}"] = [number for number in numbers if number is not None]
    return {"names": names, "counts": counts.tolist(), "pictures": pictures}


def _around(judged: Judged, case: cases.Case | hints.Hint) -> Shown:
    """A picture of a case or a hint."""
    truths = [case.truth] if case.truth >= 0 else []
    detections = [case.detection] if case.detection >= 0 else []
    boxes = [judged.index.boxes[row] for row in truths] + [judged.boxes[d] for d in detections]
    return Shown(judged.split, case.image, np.stack(boxes), truths, detections)


def _worst(judged: Judged, found: list[cases.Case], album: Album) -> list[dict[str, Any]]:
    wrong = [case for case in found if case.kind != "right"]
    rows = []
    for image, badness, counts in cases.worst_images(found)[:MOST_WORST]:
        own = [case for case in wrong if case.image == image]
        truths, detections = [case.truth for case in own], [case.detection for case in own]
        picture = album.ask(Shown(judged.split, image, None, truths, detections))
        row = {"image": judged.image_names[image], "badness": badness, "counts": counts}
        rows.append({**row, "picture": picture})
    return rows


def _unlabelled(judged: Judged) -> list[dict[str, Any]]:
    """About how many detections of each class that no label is near are objects, if scores mean the
    same there as elsewhere; classes with five or more.
    """
    lone = hints.lone_detections(judged)
    likely = hints.calibrated(judged)[lone]
    counts = np.bincount(
        judged.table.labels[lone], likely * (likely >= 0.5), len(judged.index.class_names)
    )
    order = np.argsort(-counts)
    names = judged.index.class_names
    return [{"class": names[k], "count": round(counts[k])} for k in order if counts[k] >= 5]


def _hints(splits: dict[str, Judged], album: Album) -> list[dict[str, Any]]:
    """The likeliest hints of all splits, the first with a picture."""
    wholes = [judged for judged in splits.values() if judged.index.tiles is None]
    found = [(hint, judged) for judged in wholes for hint in hints.find_hints(judged)]
    found.sort(key=lambda pair: (-pair[0].probability, -pair[0].strength))
    rows: list[dict[str, Any]] = []
    for hint, judged in found[:MOST_HINTS]:
        wants = len(rows) < MOST_HINT_PICTURES
        picture = album.ask(_around(judged, hint)) if wants else None
        rows.append({**hints.as_record(hint, judged), "picture": picture})
    return rows


def _reproduce(indexes: Mapping[str, DatasetIndex], facts: Facts) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("torch", "numpy", "pytorch-lightning", "hotcoco")
    versions = {"rfdetr": __version__, "python": platform.python_version()}
    return {
        "command": shlex.join(["python", *sys.argv] if sys.argv[0] == "-c" else sys.argv),
        "dataset": facts.dataset,
        "fingerprints": {split: index.fingerprint() for split, index in indexes.items()},
        "seed": facts.config.get("train", {}).get("seed"),
        "versions": {**versions, **{name: version(name) for name in packages}},
        "config": dict(facts.config),
    }


def _plain(value: Any) -> Any:
    """The same for JSON: undefined figures None, NumPy's numbers Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
