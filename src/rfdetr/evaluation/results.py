"""What an evaluation leaves to read: results.json, and the table of classes for the console."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from rfdetr.evaluation.metrics import Metrics
from rfdetr.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1


def write_results(path: str | PathLike[str], splits: Mapping[str, Metrics], weights: str) -> None:
    """Write the figures of one set of weights (`weights`: their file or name) on one or more
    splits.

    {"schema_version": 1, "weights": str, "iou_type": "bbox",
     "splits": {"valid" or "test": `as_record`}}, where a segmentation model's splits have "masks" of IoU type "segm".
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "weights": weights,
        "iou_type": "bbox",
        "splits": {name: as_record(metrics) for name, metrics in splits.items()},
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def as_record(metrics: Metrics) -> dict[str, Any]:
    """{"images": int, "boxes": int, "max_dets": int, "overall": {...}, "per_class": [{"name": str,
    ...}, ...]}.

    `Metrics` and `ClassMetrics` name the keys of overall and per_class. Undefined figures are None.
    The figures of masks are a record like it under "masks", where "boxes" counts the objects that
    have one.
    """
    masks = {} if metrics.masks is None else {"masks": as_record(metrics.masks)}
    return {
        "images": metrics.num_images,
        "boxes": metrics.num_boxes,
        "max_dets": metrics.max_dets,
        "overall": _without_nan(metrics.overall),
        "per_class": [_without_nan(row) for row in metrics.per_class],
        **masks,
    }


def metrics_table(metrics: Metrics, title: str | None = None) -> Table:
    """One row per class and one of means, for `rich.print`."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    overall = metrics.overall
    threshold = overall["best_threshold"]
    at = (
        "no detection is right"
        if math.isnan(threshold)
        else f"at confidence {threshold:.3f}, IoU 0.5"
    )
    table = Table(
        title=title,
        caption=f"Precision, recall, F1 {at}; at most {metrics.max_dets} detections per image",
    )
    table.add_column("class", overflow="fold")
    masks = metrics.masks
    of_boxes: tuple[str, ...] = ("mAP 50:95", "mAP 50")
    if masks:  # all of it in 80 columns
        table.box, table.pad_edge, table.collapse_padding = SIMPLE_HEAD, False, True
        of_boxes = ("mask\nmAP\n50:95", "mask\nmAP\n50", "mAP\n50:95", "mAP\n50")
    for name in ("images", "boxes", *of_boxes, "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for at_row, row in enumerate(metrics.per_class):
        figures = [row["AP"], row["AP50"], row["precision"], row["recall"], row["F1"]]
        if masks:
            figures = [masks.per_class[at_row]["AP"], masks.per_class[at_row]["AP50"], *figures]
        table.add_row(
            escape(row["name"]), str(row["images"]), str(row["boxes"]), *map(_percent, figures)
        )
    table.add_section()
    means = [overall[key] for key in ("mAP_50_95", "mAP_50", "precision", "recall", "F1")]
    if masks:
        means = [masks.overall["mAP_50_95"], masks.overall["mAP_50"], *means]
    table.add_row(
        "all", str(metrics.num_images), str(metrics.num_boxes), *map(_percent, means), style="bold"
    )
    return table


def _without_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in figures.items()
    }


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
