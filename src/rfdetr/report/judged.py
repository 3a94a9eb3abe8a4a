"""`Judged`: one split's objects beside what was found there, which every part of a report reads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from rfdetr.data.index import DatasetIndex
from rfdetr.evaluation.found import LEAST_SCORE
from rfdetr.evaluation.matching import Array, MatchTable, by_preference
from rfdetr.evaluation.metrics import Metrics

NEAR = 0.1  # least IoU at which a detection and an object may have to do with each other
UNSURE = 0.5  # threshold where no detection is right


@dataclass(frozen=True)
class Judged:
    """The M objects of a split (as its index has them) and the D likely detections, best first.

    `table` has the pairs with IoU >= `NEAR`, of which it matches those with IoU >= 0.5. Its images
    are rows of the index.
    """

    split: str
    index: DatasetIndex
    metrics: Metrics
    table: MatchTable
    iou: Array  # (P,) of the table's pairs
    boxes: Array  # (D, 4) float32 xyxy in pixels of the original image
    own_rank: Array  # (D,) the detection's place in its image's `Found`

    @classmethod
    def join(cls, split: str, index: DatasetIndex, metrics: Metrics) -> Judged:
        """What was found, by the ids of images, joined to the split's objects."""
        from hotcoco.primitives import bbox_iou

        columns: list[list[Any]] = [[] for _ in range(5)]
        pairs: list[list[Any]] = [[] for _ in range(4)]
        start = 0
        for image, image_id in enumerate(index.image_ids.tolist()):
            found = metrics.found.get(image_id)
            if found is None or not len(found.scores):
                continue
            boxes, rows = found.boxes_xyxy(*index.sizes[image].tolist()), index.rows(image)
            count = len(boxes)
            ranks, places = np.arange(count), np.full(count, image)
            row = (found.scores, found.labels.astype(np.int64), places, boxes, ranks)
            for column, values in zip(columns, row, strict=True):
                column.append(values)
            iou = bbox_iou(to_xywh(boxes), to_xywh(index.boxes[rows]), index.crowd[rows])
            iou = iou.reshape(count, -1)
            detection, truth, level = by_preference(iou, NEAR)
            found_pairs = detection + start, truth + rows.start, level, iou[detection, truth]
            for column, part in zip(pairs, found_pairs, strict=True):
                column.append(part)
            start += count
        none = (np.zeros(0), np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int))
        scores, labels, image_of, boxes, ranks = (
            np.concatenate([first, *rest]) for first, rest in zip(none, columns, strict=True)
        )
        detection, truth, level, iou = (
            np.concatenate([np.zeros(0, kind), *part])
            for kind, part in zip((int, int, np.uint8, float), pairs, strict=True)
        )
        order = np.argsort(-scores, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        detection = place[detection]
        by_detection = np.argsort(detection, kind="stable")  # keeps the order of preference
        table = MatchTable(
            scores=scores[order],
            labels=labels[order],
            image=image_of[order],
            truth_labels=index.labels,
            truth_crowd=index.crowd,
            truth_image=np.repeat(np.arange(len(index)), np.diff(index.offsets)),
            pair_detection=detection[by_detection],
            pair_truth=truth[by_detection],
            pair_level=level[by_detection],
        )
        at_pair = iou[by_detection]
        return cls(split, index, metrics, table, at_pair, boxes[order], ranks[order])

    @functools.cached_property
    def matched(self) -> Array:
        """(D,) the object of its class that each detection found at IoU 0.5, or `match`'s signs."""
        return self.table.match(same_class=True)

    @functools.cached_property
    def nearest(self) -> tuple[Array, Array]:
        """(D,) the object nearest to each detection, -1 for none, and its IoU, 0 for none."""
        table, count = self.table, len(self.table.scores)
        found, first = np.unique(table.pair_detection, return_index=True)
        nearest, iou = np.full(count, -1), np.zeros(count)
        nearest[found], iou[found] = table.pair_truth[first], self.iou[first]
        return nearest, iou

    @functools.cached_property
    def image_names(self) -> list[str]:
        """Paths of the images from the split's folder, as the annotations name them."""
        return [self.index.name(i) for i in range(len(self.index))]


def threshold_of(metrics: Metrics) -> float:
    """The threshold that a report recommends: the best one on a split, to two decimals as a slider
    has them, and not below what is kept of detections.
    """
    best = metrics.overall["best_threshold"]
    return max(round(best, 2), LEAST_SCORE) if best == best else UNSURE


def to_xywh(boxes_xyxy: Array) -> Array:
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
