"""F1, precision and recall as functions of the confidence threshold, at IoU 0.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.matching import IGNORED, Array, MatchTable

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
    counted = (matched != IGNORED) & (objects > 0)[table.labels]
    scores, labels, correct = table.scores[counted], table.labels[counted], matched[counted] >= 0
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
    by_class = np.argsort(labels, kind="stable")
    grouped = labels[by_class]
    start = np.searchsorted(grouped, grouped)  # where the class begins
    right = np.concatenate([[0], np.cumsum(correct[by_class])])
    taken = np.arange(1, grouped.size + 1) - start
    f1 = 2 * (right[1:] - right[start]) / (taken + objects[grouped])
    change = np.empty_like(f1)
    change[by_class] = f1 - np.where(taken > 1, np.roll(f1, 1), 0.0)
    mean = np.cumsum(change) / max(np.count_nonzero(objects), 1)
    # Equal scores come together: only the last of them is a choice.
    mean[:-1][scores[1:] == scores[:-1]] = 0.0
    top = mean.max(initial=0.0)
    if top <= 0:
        return float("nan"), 0.0
    best = np.flatnonzero(mean >= top - 1e-9)[0]  # the running sum rounds
    return float(np.append(scores, 0.0)[best : best + 2].mean(dtype=np.float64)), float(top)


def _rates(verdicts: _Verdicts, thresholds: Array) -> Rates:
    """Of the detections with score >= each of the C ascending thresholds: (K, C)."""
    scores, labels, correct, objects = verdicts
    side = thresholds.size + 1
    passed = np.searchsorted(thresholds, scores, side="right")  # how many thresholds a score passes
    counts = (
        np.bincount(labels * side + passed, weight, objects.size * side).reshape(-1, side)
        for weight in (None, correct)
    )
    predicted, right = (np.cumsum(count[:, :0:-1], axis=1)[:, ::-1] for count in counts)
    total = np.where(objects > 0, objects, np.nan)[:, None]
    # The total of a class without objects is nan, and so are its F1 and recall. Precision has no
    # total in its formula: adding 0 * total makes it nan for such a class and changes no other.
    precision = right / np.maximum(predicted, 1) + 0 * total
    return Rates(2 * right / (predicted + total), precision, right / total)
