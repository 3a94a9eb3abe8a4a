"""F1, precision and recall as functions of the confidence threshold, at IoU 0.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rfdetr.evaluation.matching import IGNORED, Array, MatchTable

CONFIDENCES: Array = np.linspace(0.0, 1.0, 1001)


class Rates(NamedTuple):
    """Per class, and per threshold if there are several: (K,) or (K, C). nan for a class without
    objects.

    Precision is 0 where nothing is predicted.
    """

    f1: Array
    precision: Array
    recall: Array


@dataclass(frozen=True)
class F1Sweep:
    """The threshold of the highest mean F1 over the classes with objects, and what the classes
    reach there.

    Thresholds are nan where no detection is right.
    """

    best_threshold: float
    at_best: Rates
    class_threshold: Array
    """Where each class alone does best (K,), with the F1 it then reaches:"""
    class_f1: Array
    curves: Rates
    """Along `CONFIDENCES`."""


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
    verdicts = _Verdicts(
        table.scores[counted], table.labels[counted], matched[counted] >= 0, objects
    )
    threshold, _ = _best_threshold(verdicts)
    at_best = _rates(verdicts, np.array([threshold]))
    alone = [_best_threshold(_of_class(verdicts, label)) for label in range(num_classes)]
    return F1Sweep(
        best_threshold=threshold,
        at_best=Rates(*(rate[:, 0] for rate in at_best)),
        class_threshold=np.array([best for best, _ in alone]),
        class_f1=np.where(objects > 0, [f1 for _, f1 in alone], np.nan),
        curves=_rates(verdicts, CONFIDENCES),
    )


def _of_class(verdicts: _Verdicts, label: int) -> _Verdicts:
    mine = np.flatnonzero(verdicts.labels == label)
    objects = verdicts.objects[label : label + 1]
    return _Verdicts(verdicts.scores[mine], np.zeros_like(mine), verdicts.correct[mine], objects)


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
    mean[:-1][scores[1:] == scores[:-1]] = (
        0.0  # equal scores come together: only the last of them is a choice
    )
    top = mean.max(initial=0.0)
    if top <= 0:
        return float("nan"), 0.0
    best = np.flatnonzero(mean >= top - 1e-9)[0]  # the running sum rounds
    return float(np.append(scores, 0.0)[best : best + 2].mean(dtype=np.float64)), float(top)


def _rates(verdicts: _Verdicts, thresholds: Array) -> Rates:
    """Of the detections with score >= each of the ascending thresholds: (K, C)."""
    scores, labels, correct, objects = verdicts
    side = thresholds.size + 1
    cell = labels * side + np.searchsorted(
        thresholds, scores, side="right"
    )  # a score passes that many thresholds
    counts = (
        np.bincount(cell, weight, objects.size * side).reshape(-1, side)
        for weight in (None, correct)
    )
    predicted, right = (np.cumsum(count[:, :0:-1], axis=1)[:, ::-1] for count in counts)
    total = np.where(objects > 0, objects, np.nan)[:, None]  # nan spreads from here
    return Rates(
        2 * right / (predicted + total), right / np.maximum(predicted, 1) + 0 * total, right / total
    )
