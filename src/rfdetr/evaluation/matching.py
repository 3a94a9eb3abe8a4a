"""Which detection found which object at IoU 0.5, in a whole split: the base of F1 and confusion.

The rule is COCO's: detections choose in descending order of score, and each takes the free object
of highest IoU (the later one on ties). A detection left without an object but on a crowd region is
ignored: neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

IOU_THRESHOLD = 0.5
UNMATCHED, IGNORED = -1, -2


class ImageRecord(NamedTuple):
    """One image's detections, objects, and the pairs of them with IoU >= `IOU_THRESHOLD`."""

    scores: Array  # (D,) float32
    labels: Array  # (D,) int32
    truth_labels: Array  # (T,) int32
    truth_crowd: Array  # (T,) bool
    pair_detection: Array  # (P,) int32, index into the detections
    pair_truth: Array  # (P,) int32, index into the objects
    pair_iou: Array  # (P,) float64


_EMPTY = ImageRecord(
    *(np.zeros(0, t) for t in (np.float32, np.int32, np.int32, np.bool_, np.int32, np.int32, float))
)


@dataclass(frozen=True)
class MatchTable:
    """All images of a split in one table; detections in descending order of score (stable)."""

    scores: Array  # (N,)
    labels: Array  # (N,)
    image: Array  # (N,) number of the detection's image, 1 for the first record
    truth_labels: Array  # (M,)
    truth_crowd: Array  # (M,)
    truth_image: Array  # (M,)
    pair_detection: Array  # (P,) index into the N detections
    pair_truth: Array  # (P,) index into the M objects
    pair_iou: Array  # (P,)

    @classmethod
    def from_records(cls, records: Iterable[ImageRecord]) -> MatchTable:
        """Concatenate, shift indexes, and sort detections by score."""
        rows = [_EMPTY, *records]
        detections, truths, pairs = (np.array([len(row[k]) for row in rows]) for k in (0, 2, 4))
        scores, labels, truth_labels, crowd, detection, truth, iou = map(
            np.concatenate, zip(*rows, strict=True)
        )
        order = np.argsort(-scores, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        return cls(
            scores=scores[order],
            labels=labels[order],
            image=np.repeat(np.arange(len(rows)), detections)[order],
            truth_labels=truth_labels,
            truth_crowd=crowd,
            truth_image=np.repeat(np.arange(len(rows)), truths),
            pair_detection=rank[detection + np.repeat(np.cumsum(detections) - detections, pairs)],
            pair_truth=truth + np.repeat(np.cumsum(truths) - truths, pairs),
            pair_iou=iou,
        )

    def match(self, same_class: bool, min_score: float = -np.inf) -> Array:
        """Per detection the index of its object, UNMATCHED or IGNORED: (N,) int64.

        With `same_class`, a detection takes objects of its own label only. Detections with a score
        below `min_score` are UNMATCHED.
        """
        usable = self.scores[self.pair_detection] >= min_score
        if same_class:
            usable &= self.labels[self.pair_detection] == self.truth_labels[self.pair_truth]
        crowd = self.truth_crowd[self.pair_truth]
        pairs = (self.pair_detection, self.pair_truth, self.pair_iou)
        on_objects = (column[usable & ~crowd] for column in pairs)
        matched = _choose_by_rank(self.scores.size, *on_objects)
        on_crowd = self.pair_detection[usable & crowd]
        matched[on_crowd[matched[on_crowd] == UNMATCHED]] = IGNORED
        return matched


def _choose_by_rank(num_detections: int, detection: Array, truth: Array, iou: Array) -> Array:
    """Greedy choice in the order of detection indexes, for all images at once: (N,) objects.

    Every detection asks for its best object; an object keeps the first-ranked asker; who is refused
    asks for the next best, until nobody is refused (deferred acceptance). All objects prefer askers
    in the same order, so the outcome is the one of letting the detections choose one after another.
    """
    order = np.lexsort((-truth, -iou, detection))
    detection, truth = detection[order], truth[order]
    ranks = np.arange(num_detections)
    choice = np.searchsorted(detection, ranks)
    end = np.searchsorted(detection, ranks, side="right")
    keeper = np.zeros(truth.max(initial=-1) + 1, np.int64)
    asking = np.flatnonzero(choice < end)
    while True:
        wanted = truth[choice[asking]]
        # Of equal indexes the last assignment stays; reversed, that is the first-ranked asker.
        keeper[wanted[::-1]] = asking[::-1]
        refused = asking[keeper[wanted] != asking]
        if not refused.size:
            break
        choice[refused] += 1
        asking = asking[choice[asking] < end[asking]]
    matched = np.full(num_detections, UNMATCHED)
    matched[asking] = wanted
    return matched


def confusion_matrix(table: MatchTable, num_classes: int, min_score: float) -> Array:
    """Counts (K + 1, K + 1) int64: rows are true classes, columns predicted ones, last background.

    Detections of at least `min_score` are matched whatever their class. A matched pair counts at
    (true, predicted), an object that nothing found at (true, background), a detection without an
    object at (background, predicted); crowd regions count nowhere.
    """
    matched = table.match(same_class=False, min_score=min_score)
    found = np.flatnonzero(matched >= 0)
    spurious = (matched == UNMATCHED) & (table.scores >= min_score)
    missed = ~table.truth_crowd
    missed[matched[found]] = False
    side = num_classes + 1
    cells = (
        table.truth_labels[matched[found]] * side + table.labels[found],
        table.truth_labels[missed] * side + num_classes,
        num_classes * side + table.labels[spurious],
    )
    return np.bincount(np.concatenate(cells), minlength=side * side).reshape(side, side)
