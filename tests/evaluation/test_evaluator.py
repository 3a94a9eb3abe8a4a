"""The evaluator against pycocotools, and what it does with batches, ranks and odd input."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdetr.evaluation.evaluator import CocoEvaluator


def mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else math.nan


def assert_equal_to_reference(metrics, reference) -> None:
    precision, recall = reference.eval["precision"][..., -1], reference.eval["recall"][..., -1]
    expected = {
        "mAP_50_95": mean(precision[..., 0]),
        "mAP_50": mean(precision[0, ..., 0]),
        "mAP_75": mean(precision[5, ..., 0]),
        "mAP_small": mean(precision[..., 1]),
        "mAP_medium": mean(precision[..., 2]),
        "mAP_large": mean(precision[..., 3]),
        "mAR": mean(recall[..., 0]),
    }
    for name, value in expected.items():
        assert metrics.overall[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    for label, row in enumerate(metrics.per_class):
        assert row["AP"] == pytest.approx(mean(precision[:, :, label, 0]), abs=1e-12, nan_ok=True)
        assert row["AP50"] == pytest.approx(mean(precision[0, :, label, 0]), abs=1e-12, nan_ok=True)
        assert row["AR"] == pytest.approx(mean(recall[:, label, 0]), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("max_dets", [500, 100, 3])
def test_figures_equal_pycocotools(made, sets, max_dets):
    metrics = sets.evaluated(made, max_dets).compute()
    assert 0 < metrics.overall["mAP_50_95"] < 1
    assert_equal_to_reference(metrics, sets.pycocotools_eval(made, max_dets))


def test_benchmarks_own_limit_is_reported_beside_ours(sets):
    made = sets.random_set(5, images=4)
    crowded = [torch.cat([made.detections[3][key]] * 30) for key in ("scores", "labels", "boxes")]
    made.detections[3] = dict(zip(("scores", "labels", "boxes"), crowded, strict=True))
    overall = sets.evaluated(made, 10).compute().overall
    reference = sets.pycocotools_eval(made, 100).eval["precision"][..., 0, -1]
    assert overall["mAP_50_95_max100"] == pytest.approx(mean(reference), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 4), st.booleans())
def test_small_random_sets_equal_pycocotools(sets, seed, images, classes, ties):
    made = sets.random_set(seed, images, classes, ties)
    assert_equal_to_reference(sets.evaluated(made).compute(), sets.pycocotools_eval(made, 500))


def test_hand_computed_case(sets):
    made = sets.DetectionSet(["a", "absent"])
    made.targets = [sets.target(1, [0, 0], [[0, 0, 10, 10], [50, 50, 60, 60]])]
    made.detections = [
        sets.detection(
            [0.9, 0.6, 0.3], [0, 0, 0], [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
        )
    ]
    metrics = sets.evaluated(made).compute()
    # Right, duplicate, right: precision 1 up to recall 0.5 (51 of 101 points), 2/3 beyond.
    assert metrics.overall["mAP_50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    # F1 is 2/3 after one, 1/2 after two, 4/5 after three detections; the threshold is half of the
    # lowest score.
    assert metrics.overall["F1"] == pytest.approx(0.8)
    assert metrics.overall["precision"] == pytest.approx(2 / 3)
    assert metrics.overall["recall"] == pytest.approx(1)
    assert metrics.overall["best_threshold"] == pytest.approx(0.15)
    a, absent = metrics.per_class
    assert (a["images"], a["boxes"], a["best_F1"]) == (1, 2, pytest.approx(0.8))
    assert absent["boxes"] == 0
    assert all(
        math.isnan(absent[key])
        for key in ("AP", "AP50", "precision", "recall", "F1", "best_threshold")
    )


def test_normalised_boxes_give_the_same_figures_without_pixel_boxes(made, sets):
    expected = sets.evaluated(made).compute()
    for target in made.targets:
        corners = target.pop("boxes_xyxy")
        centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        target["boxes"] = (
            torch.cat([centre, size], dim=1) / torch.tensor([640, 480, 640, 480])
        ).float()
    # Float32 moves an IoU by 1e-7: only the sets of round numbers, full of IoUs on a threshold, may
    # notice.
    assert sets.evaluated(made).compute().overall["mAP_50"] == pytest.approx(
        expected.overall["mAP_50"], abs=0.02
    )


def test_batches_ranks_and_repeats_make_no_difference(made, sets):
    whole = sets.evaluated(made).compute()
    first, second = (CocoEvaluator(made.class_names) for _ in range(2))
    for start in range(0, 10, 4):
        first.update(made.detections[start : start + 4], made.targets[start : start + 4])
    second.update(made.detections[8:], made.targets[8:])  # overlaps
    second.update(made.detections[8:11], made.targets[8:11])  # again
    merged = CocoEvaluator.merge([first, pickle.loads(pickle.dumps(second))]).compute()
    assert merged.overall == whole.overall
    # Nan is not equal to itself, its text is.
    assert repr(merged.per_class) == repr(whole.per_class)
    assert np.array_equal(merged.confusion(), whole.confusion())
    assert merged.num_images == whole.num_images == 16
    assert merged.num_boxes == whole.num_boxes == whole.confusion()[:-1].sum()


def test_merging_evaluators_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="class_names"):
        CocoEvaluator.merge([CocoEvaluator(["a"]), CocoEvaluator(["b"])])


def test_compute_can_be_called_between_updates(made, sets):
    evaluator = CocoEvaluator(made.class_names)
    evaluator.update(made.detections[:10], made.targets[:10])
    assert evaluator.compute().num_images == 10
    evaluator.update(made.detections[10:], made.targets[10:])
    assert (
        evaluator.compute().overall
        == sets.evaluated(made).compute().overall
        == evaluator.compute().overall
    )


def test_detections_of_the_spare_logit_change_nothing(made, sets):
    expected = sets.evaluated(made).compute().overall
    for found in made.detections:
        keep = found["labels"] < len(made.class_names)
        for key in found:
            found[key] = found[key][keep]
    assert sets.evaluated(made).compute().overall == expected


@pytest.mark.parametrize("images", [0, 3])
def test_nothing_to_evaluate_is_undefined_not_zero(sets, images):
    made = sets.DetectionSet(["a", "b"])
    made.targets = [sets.target(k, [], []) for k in range(images)]
    made.detections = [sets.detection([0.5], [1], [[0, 0, 5, 5]]) for _ in range(images)]
    metrics = sets.evaluated(made).compute()
    assert all(math.isnan(value) for value in metrics.overall.values())
    assert metrics.logged() == {}


def test_no_detections_at_all_is_zero(sets):
    made = sets.DetectionSet(
        ["a"], [sets.detection([], [], [])], [sets.target(3, [0], [[0, 0, 5, 5]])]
    )
    overall = sets.evaluated(made).compute().overall
    assert [overall[key] for key in ("mAP_50_95", "mAR", "F1", "precision", "recall")] == [0] * 5
    assert math.isnan(overall["best_threshold"])


def test_logged_names(made, sets):
    metrics = sets.evaluated(made).compute()
    logged = metrics.logged("val/ema_")
    assert logged["val/ema_mAP_50_95"] == metrics.overall["mAP_50_95"]
    assert logged["val/ema_AP/class 0"] == metrics.per_class[0]["AP"]
    assert "val/ema_AP/class 4" not in logged  # no object of that class
    assert set(metrics.logged(per_class=False)) == {f"val/{key}" for key in metrics.overall}
