"""Which detection found which object, in a whole split: the base of all figures.

The rule is COCO's: detections choose in descending order of score, and each takes the free object
of highest IoU (the later one on ties). A detection left without an object but on a crowd region is
ignored: neither right nor wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

IOU_THRESHOLDS: Array = np.linspace(0.5, 0.95, 10)  # COCO's; nothing is matched below the first
IOU_THRESHOLD = 0.5
UNMATCHED, IGNORED = -1, -2
PART = 2**16  # detections that are looked at together where what is in between takes many bytes


@dataclass(frozen=True)
class MatchTable:
    """All images of a split in one table; detections in descending order of score (stable).

    Pairs of a detection and an object follow one another by detection, and those of one detection
    from the object that it prefers: the highest IoU, and the later object on ties.
    """

    scores: Array  # (N,)
    labels: Array  # (N,)
    image: Array  # (N,) number of the detection's image
    truth_labels: Array  # (M,)
    truth_crowd: Array  # (M,)
    truth_image: Array  # (M,)
    pair_detection: Array  # (P,) index into the N detections
    pair_truth: Array  # (P,) index into the M objects
    pair_level: Array  # (P,) uint8, how many of `IOU_THRESHOLDS` the IoU reaches

    def match(self, same_class: bool, min_score: float = -np.inf, level: int = 1) -> Array:
        """Per detection the index of its object, UNMATCHED or IGNORED: (N,) int32.

        With `same_class`, a detection takes objects of its own label only. Detections with a score
        below `min_score` are UNMATCHED. The IoU is at least the `level`-th of `IOU_THRESHOLDS`.
        """
        usable = (self.pair_level >= level) & (self.scores[self.pair_detection] >= min_score)
        if same_class:
            usable &= self.labels[self.pair_detection] == self.truth_labels[self.pair_truth]
        crowd = self.truth_crowd[self.pair_truth]
        on_objects, on_crowd = usable & ~crowd, self.pair_detection[usable & crowd]
        detection, truth = self.pair_detection[on_objects], self.pair_truth[on_objects]
        matched = np.full(self.scores.size, UNMATCHED, np.int32)
        taken = chosen(detection, truth)
        matched[detection[taken]] = truth[taken]
        matched[on_crowd[matched[on_crowd] == UNMATCHED]] = IGNORED
        return matched

    def without(self, dropped: Array) -> MatchTable:
        """The table without the detections where `dropped` (N,) bool, and without their pairs."""
        if not dropped.any():
            return self
        kept, rank = ~dropped, np.cumsum(~dropped, dtype=np.int32) - 1
        pairs = kept[self.pair_detection]
        return MatchTable(
            scores=self.scores[kept],
            labels=self.labels[kept],
            image=self.image[kept],
            truth_labels=self.truth_labels,
            truth_crowd=self.truth_crowd,
            truth_image=self.truth_image,
            pair_detection=rank[self.pair_detection[pairs]],
            pair_truth=self.pair_truth[pairs],
            pair_level=self.pair_level[pairs],
        )


def by_preference(iou: Array, least: float) -> tuple[Array, Array, Array]:
    """Pairs with an IoU >= `least` of a matrix (D, T), as `MatchTable` orders them: detections,
    objects, levels.
    """
    detection, truth = np.nonzero(iou >= least)
    values = iou[detection, truth]
    order = np.lexsort((-truth, -values, detection))
    levels = IOU_THRESHOLDS.searchsorted(values[order], side="right").astype(np.uint8)
    return detection[order], truth[order], levels


def firsts(detection: Array) -> Array:
    """(P,) bool: where the pairs of another detection begin."""
    begins = np.ones(detection.size, bool)
    np.not_equal(detection[1:], detection[:-1], out=begins[1:])
    return begins


def chosen(detection: Array, truth: Array, shared: Array | None = None) -> Array:
    """Greedy choice in the order of detection indexes, for all images at once: (n,) which of the
    pairs, in the order of `MatchTable`, come about. Where `shared`, an object has room for all.

    Every detection asks for its best object; an object keeps the first-ranked asker; who is refused
    asks for the next best, until nobody is refused (deferred acceptance). All objects prefer askers
    in the same order, so the outcome is the one of letting the detections choose one after another.
    """
    choice = np.flatnonzero(firsts(detection)).astype(np.int32)
    nobody, end = choice.size, np.append(choice[1:], np.int32(detection.size))
    keeper = np.full(truth.max(initial=-1) + 1, nobody, np.int32)
    first = np.empty_like(keeper)
    asking = np.arange(nobody, dtype=np.int32)
    while asking.size:
        if shared is not None:
            asking = asking[~shared[choice[asking]]]
        wanted = truth[choice[asking]]
        # Of equal indexes the last assignment stays; reversed, that is the first-ranked asker.
        first[wanted[::-1]] = asking[::-1]
        before, now = keeper[wanted], np.minimum(keeper[wanted], first[wanted])
        keeper[wanted] = now
        given_up = before[(now == asking) & (before < nobody)]
        asking = np.sort(np.concatenate([asking[now != asking], given_up]))
        choice[asking] += 1
        asking = asking[choice[asking] < end[asking]]
    return choice[choice < end]


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
