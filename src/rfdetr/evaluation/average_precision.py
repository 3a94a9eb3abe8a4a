"""Precision over recall by COCO's rules, of a whole split at once: equal to pycocotools to the bit.

Its axes are COCO's: IoU 0.50:0.05:0.95, recall 0, 0.01, ... 1, class, and areas of any size, below
32^2, to 96^2 and above, in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.matching import IOU_THRESHOLDS, Array, MatchTable, chosen

RECALLS: Array = np.linspace(0, 1, 101)
_LEAST: Array = np.array([0, 0, 32**2, 96**2])
_MOST: Array = np.array([1e10, 32**2, 96**2, 1e10])  # an area on a border is on both its sides
AREAS = len(_LEAST)


class Curves(NamedTuple):
    """Of K classes; -1 where a class has no object of the area."""

    precision: Array  # (10, 101, K, 4)
    recall: Array  # (10, K, 4)


class Sizes(NamedTuple):
    """Which of the `AREAS` the detections and objects of a `MatchTable` are outside of."""

    detections: Array  # (N,) uint8 of `outside`
    truths: Array  # (M,) the same


def outside(areas: Array) -> Array:
    """(n,) uint8: bit k is set where an area, in pixels, is not one of the k-th of `AREAS`."""
    misses = (areas[:, None] < _LEAST) | (areas[:, None] > _MOST)
    bits: Array = np.packbits(misses, axis=1, bitorder="little")[:, 0]
    return bits


def curves(
    table: MatchTable, sizes: Sizes, num_classes: int, beyond: Array, areas: int = AREAS
) -> Curves:
    """The curves of the first so many `areas`, without the detections where `beyond` (N,) bool:
    past COCO's limit of detections per image and class.
    """
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), num_classes, areas), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), num_classes, areas), -1.0)
    by_class = np.argsort(table.labels, kind="stable")
    place = np.empty(by_class.size, np.int32)
    place[by_class] = np.arange(by_class.size)
    starts = np.searchsorted(table.labels[by_class], np.arange(num_classes))
    for area in range(areas):
        real = ~table.truth_crowd & (sizes.truths >> area & 1 == 0)
        objects = np.bincount(table.truth_labels[real], minlength=num_classes)
        precision[..., objects > 0, area] = 0
        recall[:, objects > 0, area] = 0
        for level, (right, ignored) in enumerate(_verdicts(table, sizes, area)):
            # (N + 1,) how many detections count before each, those of a class together
            counted = np.zeros(by_class.size + 1, np.int32)
            np.cumsum(~(ignored | beyond)[by_class], out=counted[1:])
            places = np.sort(place[right[~beyond[right]]])
            labels = table.labels[by_class[places]]
            taken = counted[places + 1] - counted[starts[labels]]
            ends = np.searchsorted(labels, np.arange(num_classes + 1))
            for label in np.unique(labels):
                found = taken[ends[label] : ends[label + 1]]
                at = (level, slice(None), label, area)
                precision[at], recall[level, label, area] = _curve(found, objects[label])
    return Curves(precision, recall)


def _curve(taken: Array, objects: int) -> tuple[Array, float]:
    """Precision (101,) at each of `RECALLS` and the recall reached by one class, of which the n-th
    object was found by detection `taken[n - 1]` of those that count.

    Between two right detections precision only falls, so that the right ones tell its maxima.
    """
    right = np.arange(1, taken.size + 1)
    recall, precision = right / objects, right / (taken + np.spacing(1))
    falling = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return falling[np.searchsorted(recall, RECALLS)], float(recall[-1])


def _verdicts(table: MatchTable, sizes: Sizes, area: int) -> Iterator[tuple[Array, Array]]:
    """At each IoU: the indexes of the detections that are right, and (N,) bool those that are
    neither right nor wrong.

    Crowds, which have room for many detections, and objects outside the `area` make nothing right.
    A detection takes one of them only if no other object is left to it.
    """
    detection, truth = table.pair_detection, table.pair_truth
    same = np.flatnonzero(table.labels[detection] == table.truth_labels[truth])
    passed_over = table.truth_crowd | (sizes.truths >> area & 1 == 1)
    last = passed_over[truth[same]]
    pairs = same[np.lexsort((last, detection[same]))] if last.any() else same
    detection, truth, levels = detection[pairs], truth[pairs], table.pair_level[pairs]
    of_other_area = sizes.detections >> area & 1 == 1
    for level in range(1, len(IOU_THRESHOLDS) + 1):
        enough = np.flatnonzero(levels >= level)
        taken = enough[chosen(detection[enough], truth[enough], table.truth_crowd[truth[enough]])]
        on_none = passed_over[truth[taken]]
        right, ignored = detection[taken[~on_none]], of_other_area.copy()
        ignored[right] = False
        ignored[detection[taken[on_none]]] = True
        yield right, ignored
