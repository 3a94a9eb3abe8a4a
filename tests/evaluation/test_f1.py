"""F1 sweep and confusion matrix against the obvious slow way: one detection, one object, one
threshold at a time.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdetr.evaluation.f1 import CONFIDENCES, sweep_f1
from rfdetr.evaluation.matching import confusion_matrix


def iou(box, other, crowd: bool) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / (area if crowd else area + other_area - width * height)


def slow_matches(made, min_score: float, same_class: bool):
    """(true label, predicted label) of each pair; None for none; detections on a crowd left out."""
    for found, target in zip(made.detections, made.targets, strict=True):
        boxes, truth = found["boxes"].double().tolist(), target["boxes_xyxy"].tolist()
        labels, crowd = target["labels"].tolist(), target["iscrowd"].tolist()
        free = {k for k in range(len(truth)) if not crowd[k]}
        for d in sorted(range(len(boxes)), key=lambda d: -found["scores"][d]):
            label, score = int(found["labels"][d]), float(found["scores"][d])
            if label >= len(made.class_names) or score < min_score:
                continue
            allowed = [k for k in range(len(truth)) if labels[k] == label or not same_class]
            near = [k for k in allowed if iou(boxes[d], truth[k], crowd[k]) >= 0.5]
            options = [k for k in near if k in free]
            if options:
                taken = max(options, key=lambda k: (iou(boxes[d], truth[k], False), k))
                free.remove(taken)
                yield labels[taken], label
            elif not any(crowd[k] for k in near):
                yield None, label
        for k in free:
            yield labels[k], None


def slow_rates(made, threshold: float):
    """Per class F1, precision, recall."""
    pairs = list(slow_matches(made, threshold, same_class=True))
    for label in range(len(made.class_names)):
        objects = sum(true == label for true, _ in pairs)
        predicted = sum(guess == label for _, guess in pairs)
        right = sum(true == guess == label for true, guess in pairs)
        if objects:
            yield 2 * right / (predicted + objects), right / max(predicted, 1), right / objects
        else:
            yield np.nan, np.nan, np.nan


def slow_best(made) -> np.ndarray:
    """Highest F1 over all thresholds: of the mean, then of each class."""
    scores = np.unique(np.concatenate([found["scores"].numpy() for found in made.detections]))
    f1 = np.array([[rates[0] for rates in slow_rates(made, s)] for s in [2.0, *scores]])
    return np.append(np.nanmean(f1, axis=1).max(), f1.max(axis=0))


def test_sweep_equals_the_slow_way(made, sets):
    metrics = sets.evaluated(made).compute()
    sweep, threshold = metrics.sweep, metrics.overall["best_threshold"]
    np.testing.assert_allclose(
        [metrics.overall["F1"], *sweep.class_f1], slow_best(made), atol=1e-12
    )
    for row in metrics.per_class[:-1]:
        at_own = list(slow_rates(made, row["best_threshold"]))[metrics.per_class.index(row)]
        assert at_own[0] == pytest.approx(row["best_F1"], abs=1e-12)
    at_best = np.array(list(slow_rates(made, threshold))).T
    np.testing.assert_allclose(sweep.at_best, at_best, atol=1e-12)
    for k in (0, 200, 333, 900, 1000):
        curves = [curve[:, k] for curve in sweep.curves]
        np.testing.assert_allclose(
            curves, np.array(list(slow_rates(made, CONFIDENCES[k]))).T, atol=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 4), st.booleans())
def test_small_random_sweeps_equal_the_slow_way(sets, seed, images, classes, ties):
    made = sets.random_set(seed, images, classes, ties)
    sweep = sweep_f1(sets.evaluated(made).compute().matches, classes)
    if np.isnan(sweep.at_best.f1).all():
        assert not any((~target["iscrowd"]).any() for target in made.targets)
    else:
        np.testing.assert_allclose(
            [np.nanmean(sweep.at_best.f1), *sweep.class_f1], slow_best(made), atol=1e-12
        )


def test_no_score_lies_on_the_threshold(made, sets):
    metrics = sets.evaluated(made).compute()
    assert not any(
        (found["scores"] == metrics.overall["best_threshold"]).any() for found in made.detections
    )


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 2.0])
def test_confusion_equals_the_slow_way(made, sets, threshold):
    metrics = sets.evaluated(made).compute()
    score = metrics.overall["best_threshold"] if threshold is None else threshold
    side = len(made.class_names) + 1
    expected = np.zeros((side, side), int)
    for true, guess in slow_matches(made, score, same_class=False):
        expected[side - 1 if true is None else true, side - 1 if guess is None else guess] += 1
    assert np.array_equal(confusion_matrix(metrics.matches, side - 1, score), expected)
    if threshold is None:
        assert np.array_equal(metrics.confusion(), expected)


def test_detection_on_a_crowd_is_neither_right_nor_wrong(sets):
    made = sets.DetectionSet(["a"])
    made.targets = [sets.target(1, [0, 0], [[0, 0, 10, 10], [100, 100, 300, 300]], [False, True])]
    boxes = [[0, 0, 10, 10], [110, 110, 130, 130], [120, 120, 150, 150]]
    made.detections = [sets.detection([0.4, 0.9, 0.8], [0, 0, 0], boxes)]
    metrics = sets.evaluated(made).compute()
    assert (metrics.overall["F1"], metrics.overall["best_threshold"]) == (1.0, pytest.approx(0.2))
    assert metrics.confusion().tolist() == [[1, 0], [0, 0]]


def test_equal_scores_are_taken_together(sets):
    """One of two detections of the same score is right: no threshold separates them."""
    made = sets.DetectionSet(["a"])
    made.targets = [sets.target(1, [0], [[0, 0, 10, 10]])]
    made.detections = [sets.detection([0.5, 0.5], [0, 0], [[0, 0, 10, 10], [50, 50, 60, 60]])]
    metrics = sets.evaluated(made).compute()
    assert (metrics.overall["F1"], metrics.overall["precision"]) == (pytest.approx(2 / 3), 0.5)


def test_a_refused_detection_takes_its_next_best_object(sets):
    """The weaker detection prefers the object that the stronger one took."""
    made = sets.DetectionSet(["a"])
    made.targets = [sets.target(1, [0, 0], [[0, 0, 10, 10], [0, 3, 10, 13]])]
    made.detections = [sets.detection([0.6, 0.9], [0, 0], [[0, 1, 10, 11], [0, 0, 10, 10]])]
    assert sets.evaluated(made).compute().overall["F1"] == 1.0


def test_of_equally_near_objects_the_later_is_taken_as_in_pycocotools(sets):
    """Only so is the first object free for the weaker detection, and average precision 1."""
    made = sets.DetectionSet(["a"])
    made.targets = [sets.target(1, [0, 0], [[0, 0, 10, 10], [0, 4, 10, 14]])]
    made.detections = [sets.detection([0.9, 0.6], [0, 0], [[0, 2, 10, 12], [0, 0, 10, 10]])]
    metrics = sets.evaluated(made).compute()
    assert sets.pycocotools_eval(made, 500).eval["precision"][
        0, :, 0, 0, -1
    ].mean() == pytest.approx(1.0)
    assert (metrics.overall["mAP_50"], metrics.overall["F1"]) == (pytest.approx(1.0), 1.0)


def test_f1_counts_the_same_detections_as_average_precision(sets):
    made = sets.DetectionSet(["a", "b"])
    made.targets = [sets.target(1, [0, 1], [[0, 0, 10, 10], [50, 50, 60, 60]])]
    boxes = [[0, 0, 10, 10], [30, 30, 40, 40], [50, 50, 60, 60], [70, 70, 80, 80]]
    made.detections = [sets.detection([0.8, 0.9, 0.7, 0.6], [0, 0, 1, 1], boxes)]
    assert sets.evaluated(made, max_dets=2).compute().per_class[0]["recall"] == 1
    limited = sets.evaluated(made, max_dets=1).compute()  # per image and class
    assert [row["AP50"] for row in limited.per_class] == pytest.approx([0, 1])
    assert [row["recall"] for row in limited.per_class] == [0, 1]
