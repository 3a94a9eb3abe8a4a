"""`Metrics`: the figures of one evaluation, to log, to print as a table and to write as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rfdetr.evaluation.f1 import F1Sweep
from rfdetr.evaluation.found import Found
from rfdetr.evaluation.matching import Array, MatchTable, confusion_matrix
from rfdetr.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

MASK_PREFIX = "segm_"  # of the names of figures and plots of masks


class ClassMetrics(TypedDict):
    """One class. Figures are nan for a class without objects, and then in no mean."""

    name: str
    AP: float  # average precision over IoU 0.50:0.05:0.95
    AP50: float
    AR: float  # average recall over the same IoU thresholds
    precision: float  # at IoU 0.5 and the overall best threshold, as recall and F1
    recall: float
    F1: float
    best_F1: float  # highest F1 of this class alone, reached at its own `best_threshold`
    best_threshold: float
    images: int  # that show the class; crowd regions do not count, here and in boxes
    boxes: int


@dataclass(frozen=True, repr=False, eq=False)
class Metrics(dict[str, float]):
    """Result of `CocoEvaluator.compute`; its defined figures as a dict too.

    `metrics["mAP_50_95"]`, `metrics["AP/cat"]`, `metrics["segm_mAP_50"]`. Where `evaluate` has
    measured a split, the dict's names start with it, as those of the published package do, and may
    be looked up without: "test/mAP_50_95", "val/F1".

    `overall` has mAP_50_95, mAP_50, mAP_75, mAP_small, mAP_medium, mAP_large, mAR, F1, precision,
    recall and best_threshold with `max_dets` detections per image and class, and mAP_50_95_max100
    with COCO's own 100. F1, precision and recall are means over classes at the one threshold with
    the highest mean F1, at IoU 0.5. What is undefined (no object of that size, no right detection)
    is nan.
    """

    overall: dict[str, float]
    per_class: list[ClassMetrics]
    num_images: int
    num_boxes: int
    max_dets: int
    pr_precision: Array  # (K, 101) interpolated, at IoU 0.5, for recall 0, 0.01, ... 1
    sweep: F1Sweep
    matches: MatchTable  # every detection and object of the split
    masks: Metrics | None = None  # the same figures of masks, for a segmentation model
    prefix: str = ""  # of the dict's names: "train/", "val/" or "test/"
    found: Mapping[int, Found] = field(default_factory=dict)  # likely detections, by image id

    def __post_init__(self) -> None:
        self.update(self.logged(self.prefix))

    def __repr__(self) -> str:
        """One line of figures: the arrays are for code."""
        named = ("mAP_50_95", "mAP_50", "F1", "precision", "recall")
        parts = [f"{k} {self.overall[k]:.4f}" for k in named if not math.isnan(self.overall[k])]
        seen = f"{self.num_images} images, {self.num_boxes} objects"
        masks = "" if self.masks is None else f", masks {self.masks!r}"
        return f"Metrics({', '.join(parts)}; {seen}{masks})"

    def __missing__(self, name: str) -> float:
        if name.startswith(self.prefix):  # as the name above without a prefix does
            raise KeyError(name)
        return self[self.prefix + name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or super().__contains__(f"{self.prefix}{name}")

    def get(self, name: str, default: Any = None) -> Any:
        with suppress(KeyError):
            return self[name]
        return default

    def confusion(self, threshold: float | None = None) -> Array:
        """`confusion_matrix` of detections with a score >= `threshold`, the best by default."""
        score = self.overall["best_threshold"] if threshold is None else threshold
        return confusion_matrix(self.matches, len(self.per_class), score)

    def logged(self, prefix: str = "val/", per_class: bool = True) -> dict[str, float]:
        """The defined figures by logged name: `val/mAP_50_95`, `val/AP/<class>`; those of masks are
        `val/segm_mAP_50_95`, `val/segm_AP/<class>`.
        """
        figures = dict(self.overall)
        if per_class:
            figures |= {f"AP/{row['name']}": row["AP"] for row in self.per_class}
        named = {prefix + key: value for key, value in figures.items() if not math.isnan(value)}
        masks = self.masks.logged(prefix + MASK_PREFIX, per_class) if self.masks is not None else {}
        return named | masks


def write_results(path: Path, splits: Mapping[str, Metrics], weights: str) -> None:
    """Write results.json: the figures of one set of `weights` (their file or name) by split.

    {"schema_version": 1, "weights": str, "iou_type": "bbox",
     "splits": {"valid" or "test": `as_record`}}
    """
    content = {
        "schema_version": 1,
        "weights": weights,
        "iou_type": "bbox",
        "splits": {name: as_record(metrics) for name, metrics in splits.items()},
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def as_record(metrics: Metrics) -> dict[str, Any]:
    """Plain values for JSON; undefined figures are None.

    "overall" and "per_class" have the keys of `Metrics` and `ClassMetrics`. Figures of masks are
    such a record under "masks", where "boxes" counts the objects that have a mask.
    """

    def defined(figures: Mapping[str, Any]) -> dict[str, Any]:
        return {key: None if value != value else value for key, value in figures.items()}  # nan

    return {
        "images": metrics.num_images,
        "boxes": metrics.num_boxes,
        "max_dets": metrics.max_dets,
        "overall": defined(metrics.overall),
        "per_class": [defined(row) for row in metrics.per_class],
        **({"masks": as_record(metrics.masks)} if metrics.masks is not None else {}),
    }


def metrics_table(metrics: Metrics, title: str | None = None) -> Table:
    """One row per class and one of means, for `rich.print`."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    threshold, masks = metrics.overall["best_threshold"], metrics.masks
    at = f"at confidence {threshold:.3f}, IoU 0.5" if threshold >= 0 else "no detection is right"
    limit = f"at most {metrics.max_dets} detections per image"
    table = Table(title=title, caption=f"Precision, recall, F1 {at}; {limit}")
    table.add_column("class", overflow="fold")
    names = ["mAP 50:95", "mAP 50"]
    if masks:  # all of it in 80 columns
        table.box, table.pad_edge, table.collapse_padding = SIMPLE_HEAD, False, True
        names = ["mask\nmAP\n50:95", "mask\nmAP\n50", "mAP\n50:95", "mAP\n50"]
    for name in ("images", "boxes", *names, "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    of_masks = _rows(masks) if masks else []
    for number, row in enumerate(_rows(metrics)):
        if number == len(metrics.per_class):
            table.add_section()
        figures = [row[key] for key in ("AP", "AP50", "precision", "recall", "F1")]
        if masks:
            figures = [of_masks[number]["AP"], of_masks[number]["AP50"], *figures]
        shown = ("-" if math.isnan(value) else f"{value:.3f}" for value in figures)
        style = "bold" if number == len(metrics.per_class) else None
        counts = (str(row["images"]), str(row["boxes"]))
        table.add_row(escape(row["name"]), *counts, *shown, style=style)
    return table


def _rows(metrics: Metrics) -> list[dict[str, Any]]:
    """The classes' figures, then the means under the same keys."""
    means = {"AP": metrics.overall["mAP_50_95"], "AP50": metrics.overall["mAP_50"]}
    counts = {"name": "all", "images": metrics.num_images, "boxes": metrics.num_boxes}
    return [*map(dict, metrics.per_class), {**metrics.overall, **counts, **means}]
