"""Precision over recall by COCO's rules, of a whole split at once: equal to pycocotools to the bit.

Its axes are COCO's: IoU 0.50:0.05:0.95, recall 0, 0.01, ... 1, class, and areas of any size, below
32^2, to 96^2 and above, in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.matching import IOU_THRESHOLDS, PART, Array, MatchTable, chosen, firsts

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
    pairs = _Pairs.within_classes(table)
    labels = table.labels[pairs.rivals]
    by_class = np.argsort(labels, kind="stable").astype(np.int32)
    # Of the rivals of each class, in order of score: where they start and end.
    ends = np.searchsorted(labels[by_class], np.arange(num_classes + 1))
    others = _others_ahead(table.labels, sizes.detections, beyond, pairs.rivals, areas, num_classes)
    for area in range(areas):
        real = ~table.truth_crowd & (sizes.truths >> area & 1 == 0)
        objects = np.bincount(table.truth_labels[real], minlength=num_classes)
        precision[..., objects > 0, area] = 0
        recall[:, objects > 0, area] = 0
        of_other_area = sizes.detections[pairs.rivals] >> area & 1 == 1
        for level, (right, ignored) in enumerate(_verdicts(pairs, ~real, of_other_area)):
            counted = (~ignored & ~beyond[pairs.rivals])[by_class]
            right = (right & ~beyond[pairs.rivals])[by_class]
            taken = np.append(np.int32(0), np.cumsum(counted, dtype=np.int32))
            taken[1:] += others[area][by_class]
            for label in np.unique(labels[by_class[right]]):
                own = slice(ends[label], ends[label + 1])
                before = np.count_nonzero(counted[: own.start])
                found = taken[1:][own][right[own]] - before
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


class _Pairs(NamedTuple):
    """The pairs of a detection and an object of one class, in the order of `MatchTable`. The R
    detections in them, rivals for the objects, are few beside all.
    """

    rivals: Array  # (R,) index into the N detections, ascending
    rival: Array  # (P,) index into the rivals
    truth: Array  # (P,)
    level: Array  # (P,)
    shared: Array  # (P,) bool: a crowd, in which there is room for many

    @classmethod
    def within_classes(cls, table: MatchTable) -> _Pairs:
        same = table.labels[table.pair_detection] == table.truth_labels[table.pair_truth]
        detection, truth = table.pair_detection[same], table.pair_truth[same]
        first = firsts(detection)
        rival = np.cumsum(first, dtype=np.int32) - np.int32(1)
        crowd = table.truth_crowd[truth]
        return cls(detection[first], rival, truth, table.pair_level[same], crowd)


def _others_ahead(
    labels: Array, outside_bits: Array, beyond: Array, rivals: Array, areas: int, num_classes: int
) -> Array:
    """(areas, R) how many detections of its class, of the area and none of the rivals, come before
    each rival; counted part by part, so that memory does not grow with the detections.
    """
    ahead = np.zeros((areas, rivals.size), np.int32)
    counts = np.zeros((areas, num_classes), np.int32)
    for start in range(0, labels.size, PART):
        part, low = slice(start, start + PART), np.searchsorted(rivals, start)
        own = rivals[low : np.searchsorted(rivals, start + PART)] - start
        at = slice(low, low + own.size)
        order = np.argsort(labels[part], kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        starts = np.searchsorted(labels[part][order], np.arange(num_classes))
        of_own = labels[part][own]
        for area in range(areas):
            counted = ~beyond[part] & (outside_bits[part] >> area & 1 == 0)
            counted[own] = False
            before = np.append(0, np.cumsum(counted[order]))
            ahead[area, at] = counts[area, of_own] + before[place[own]] - before[starts[of_own]]
            counts[area] += np.bincount(labels[part][counted], minlength=num_classes)
    return ahead


def _verdicts(
    pairs: _Pairs, passed_over: Array, of_other_area: Array
) -> Iterator[tuple[Array, Array]]:
    """At each IoU which of the rivals are right, (R,) bool, and which neither right nor wrong.

    Objects that are `passed_over` (M,) bool, crowds and those outside the area, make nothing right:
    a rival takes one of them only if no other object is left to it.
    """
    last = passed_over[pairs.truth]
    _, rival, truth, levels, shared = pairs
    if last.any():
        order = np.lexsort((last, rival))
        rival, truth, levels, shared = (column[order] for column in pairs[1:])
        del order
    for level in range(1, len(IOU_THRESHOLDS) + 1):
        enough = np.flatnonzero(levels >= level)
        taken = enough[chosen(rival[enough], truth[enough], shared[enough])]
        on_none = passed_over[truth[taken]]
        right, ignored = np.zeros(of_other_area.size, bool), of_other_area.copy()
        right[rival[taken[~on_none]]] = True
        ignored[right] = False
        ignored[rival[taken[on_none]]] = True
        yield right, ignored
