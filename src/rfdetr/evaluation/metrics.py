"""`Metrics`: the figures of one evaluation, ready to log, write and plot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from rfdetr.evaluation.f1 import F1Sweep
from rfdetr.evaluation.matching import Array, MatchTable, confusion_matrix

MASKS = "segm_"  # what the figures of masks are called by


class ClassMetrics(TypedDict):
    """One class. Figures are nan for a class without objects, and then in no mean."""

    name: str
    AP: float
    """Average precision over IoU 0.50:0.05:0.95."""
    AP50: float
    AR: float
    """Average recall over the same IoU thresholds."""
    precision: float
    """At IoU 0.5 and the overall best threshold, as recall and F1."""
    recall: float
    F1: float
    best_F1: float
    """Highest F1 of this class alone, reached at its own `best_threshold`."""
    best_threshold: float
    images: int
    """Images that show the class; crowd regions do not count, here and in boxes."""
    boxes: int


@dataclass(frozen=True, repr=False)
class Metrics:
    """Result of `CocoEvaluator.compute`.

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
    pr_precision: Array
    """Interpolated precision at IoU 0.5 (K, 101), for recall 0, 0.01, ... 1."""
    sweep: F1Sweep
    matches: MatchTable
    """Every detection and object of the split, and which overlap at IoU 0.5."""
    masks: Metrics | None = None
    """The same figures of masks, for a segmentation model."""

    def __repr__(self) -> str:
        """One line of figures: the arrays are for code."""
        named = ("mAP_50_95", "mAP_50", "F1", "precision", "recall")
        parts = [
            f"{name} {self.overall[name]:.4f}"
            for name in named
            if not math.isnan(self.overall[name])
        ]
        masks = "" if self.masks is None else f", masks {self.masks!r}"
        return f"Metrics({', '.join(parts)}; {self.num_images} images, {self.num_boxes} objects{masks})"

    def confusion(self, threshold: float | None = None) -> Array:
        """`matching.confusion_matrix` (K + 1, K + 1) at a confidence, by default the best one of
        these images.
        """
        score = self.overall["best_threshold"] if threshold is None else threshold
        return confusion_matrix(self.matches, len(self.per_class), score)

    def logged(self, prefix: str = "val/", per_class: bool = True) -> dict[str, float]:
        """Flat figures under their logged names, `val/mAP_50_95` or `val/AP/<class>`; undefined
        ones are left out.

        Those of masks are `val/segm_mAP_50_95` or `val/segm_AP/<class>`.
        """
        figures = dict(self.overall)
        if per_class:
            figures |= {f"AP/{row['name']}": row["AP"] for row in self.per_class}
        named = {prefix + key: value for key, value in figures.items() if not math.isnan(value)}
        return named if self.masks is None else named | self.masks.logged(prefix + MASKS, per_class)
