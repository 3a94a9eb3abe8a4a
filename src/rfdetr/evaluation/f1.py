"""F1, precision and recall as functions of the confidence threshold, at IoU 0.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.matching import IGNORED, PART, Array, MatchTable

CONFIDENCES: Array = np.linspace(0.0, 1.0, 1001)


class Rates(NamedTuple):
    """Per class (K,), or per class and threshold (K, C), in [0, 1]; nan for a class without
    objects. Precision is 0 where nothing is predicted.
    """

    f1: Array
    precision: Array
    recall: Array


@dataclass(frozen=True)
class F1Sweep:
    """What the best thresholds reach; a threshold is nan where no detection is right."""

    best_threshold: float  # where the mean F1 over the classes with objects is highest
    at_best: Rates  # of each class at `best_threshold`
    class_threshold: Array  # (K,) where each class alone does best
    class_f1: Array  # (K,) of each class at its own `class_threshold`
    curves: Rates  # (K, 1001) of each class at every threshold of `CONFIDENCES`


class _Verdicts(NamedTuple):
    """Detections that count, in descending order of score, and the number of objects per class."""

    scores: Array  # (N,)
    labels: Array  # (N,)
    correct: Array  # (N,) bool
    objects: Array  # (K,)


def sweep_f1(table: MatchTable, num_classes: int) -> F1Sweep:
    """Match within classes once, then try every threshold that separates two scores."""
    objects = np.bincount(table.truth_labels[~table.truth_crowd], minlength=num_classes)
    matched = table.match(same_class=True)
    counted, correct = (matched != IGNORED) & (objects > 0)[table.labels], matched >= 0
    del matched
    scores, labels = table.scores, table.labels
    if not counted.all():
        scores, labels, correct = scores[counted], labels[counted], correct[counted]
    verdicts = _Verdicts(scores, labels, correct, objects)
    threshold, _ = _best_threshold(verdicts)
    alone = []
    for label in range(num_classes):
        own = np.flatnonzero(labels == label)  # as label 0 of a set of one class
        of_class = _Verdicts(scores[own], 0 * own, correct[own], objects[label : label + 1])
        alone.append(_best_threshold(of_class))
    return F1Sweep(
        best_threshold=threshold,
        at_best=Rates(*(rate[:, 0] for rate in _rates(verdicts, np.array([threshold])))),
        class_threshold=np.array([best for best, _ in alone]),
        class_f1=np.where(objects > 0, [f1 for _, f1 in alone], np.nan),
        curves=_rates(verdicts, CONFIDENCES),
    )


def _best_threshold(verdicts: _Verdicts) -> tuple[float, float]:
    """Confidence of the highest mean F1, and that mean, in one pass over the scores.

    Taking one more detection changes the F1 of its class alone, so the mean is a running sum of
    those changes. The threshold lies halfway to the next lower score, so that `>` and `>=` select
    the same detections. Of equal maxima the most confident one is taken.
    """
    scores, labels, correct, objects = verdicts
    taken_before, right_before = np.zeros((2, objects.size), int)  # of each class
    total, top, near = 0.0, 0.0, [np.zeros((2, 0))]
    for start in range(0, scores.size, PART):
        own, is_right = labels[start : start + PART], correct[start : start + PART]
        by_class = np.argsort(own, kind="stable")
        grouped, right = own[by_class], np.append(0, np.cumsum(is_right[by_class]))
        first = np.searchsorted(grouped, grouped)  # where the class begins
        taken = np.arange(1, grouped.size + 1) - first + taken_before[grouped]
        hits = right[1:] - right[first] + right_before[grouped]
        before = 2 * (hits - is_right[by_class]) / np.maximum(taken - 1 + objects[grouped], 1)
        change = np.empty(grouped.size)
        change[by_class] = 2 * hits / (taken + objects[grouped]) - before
        sums = np.cumsum(np.append(total, change))[1:]
        mean = sums / max(np.count_nonzero(objects), 1)
        # Equal scores come together: only the last of them is a choice.
        following = scores[start + 1 : start + PART + 1]
        mean[: following.size][scores[start : start + following.size] == following] = 0.0
        top, total = max(top, mean.max()), sums[-1]
        high = np.flatnonzero(mean >= top - 1e-9) if top > 0 else by_class[:0]
        near.append(np.stack([high + start, mean[high]]))
        taken_before += np.bincount(own, minlength=objects.size)
        right_before += np.bincount(own[is_right], minlength=objects.size)
    if top <= 0:
        return float("nan"), 0.0
    places, means = np.concatenate(near, axis=1)
    best = int(places[means >= top - 1e-9][0])  # the running sum rounds
    return float(np.append(scores[best : best + 2], 0.0)[:2].mean(dtype=np.float64)), float(top)


def _rates(verdicts: _Verdicts, thresholds: Array) -> Rates:
    """Of the detections with score >= each of the C ascending thresholds: (K, C)."""
    scores, labels, correct, objects = verdicts
    side = thresholds.size + 1
    counts = np.zeros((2, objects.size * side), int)  # of all detections, of the right ones
    for start in range(0, scores.size, PART):
        part = slice(start, start + PART)
        # How many thresholds a score passes.
        passed = np.searchsorted(thresholds, scores[part], side="right")
        cells = labels[part] * side + passed
        counts[0] += np.bincount(cells, minlength=objects.size * side)
        counts[1] += np.bincount(cells[correct[part]], minlength=objects.size * side)
    predicted, right = (
        np.cumsum(count[:, :0:-1], axis=1)[:, ::-1] for count in counts.reshape(2, -1, side)
    )
    total = np.where(objects > 0, objects, np.nan)[:, None]
    # The total of a class without objects is nan, and so are its F1 and recall. Precision has no
    # total in its formula: adding 0 * total makes it nan for such a class and changes no other.
    precision = right / np.maximum(predicted, 1) + 0 * total
    return Rates(2 * right / (predicted + total), precision, right / total)
