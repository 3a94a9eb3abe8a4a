"""What a report computes itself, against what the evaluation says and hand-made cases."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.report.conftest import found_in, judged, with_rows

from rfdetr.data.index import DatasetIndex
from rfdetr.report import advice, cases, figures, svg
from rfdetr.report.judged import Judged, threshold_of


@pytest.fixture(scope="module")
def split(index: DatasetIndex) -> Judged:
    """Twelve labels gone, ten of another class, eight moved: errors of every kind."""
    rows = np.arange(12, len(index.labels))
    labels, boxes = index.labels[rows].copy(), index.boxes[rows].copy()
    labels[:10] = (labels[:10] + 1) % 3
    boxes[20:28, 0] += 0.5 * (boxes[20:28, 2] - boxes[20:28, 0])
    return judged(with_rows(index, rows, labels=labels, boxes=boxes), found_in(index))


def test_cases_fill_the_confusion_matrix(split: Judged) -> None:
    for threshold in (0.06, 0.5, 0.8):
        found = cases.find_cases(split, threshold)
        counts = np.zeros((4, 4), int)
        for (real, told), own in cases.by_cell(split, found).items():
            counts[real, told] = len(own)
        np.testing.assert_array_equal(counts, split.metrics.confusion(threshold))
    kinds = Counter(case.kind for case in cases.find_cases(split, 0.3))
    assert kinds["confused"] == 10 and kinds["badly placed"] >= 6 and kinds["false"] >= 10


def test_worst_images_are_ranked_by_their_errors(split: Judged) -> None:
    found = cases.find_cases(split, 0.5)
    ranked = cases.worst_images(found)
    assert [row.badness for row in ranked] == sorted((row.badness for row in ranked), reverse=True)
    counts = Counter(case.kind for case in found if case.kind != "right")
    assert sum((Counter(row.counts) for row in ranked), Counter()) == counts


def test_the_sweep_agrees_with_precision_and_recall(split: Judged) -> None:
    counts, curves = figures.sweep(split.metrics), split.metrics.sweep.curves
    right, wrong = np.array(counts["right"]), np.array(counts["wrong"])
    objects = np.array(counts["objects"])[:, None]
    np.testing.assert_allclose(right / objects, curves.recall[:, ::10])
    np.testing.assert_allclose(right / np.maximum(right + wrong, 1), curves.precision[:, ::10])


def test_the_interval_is_around_the_figure_and_narrow_where_images_are_alike(
    split: Judged, index: DatasetIndex
) -> None:
    low, high = figures.bootstrap(split.metrics)
    assert 0 < low < split.metrics.overall["mAP_50_95"] < high < 1
    assert (low, high) == figures.bootstrap(split.metrics)  # seeded
    sure = [
        {
            **found,
            "boxes": found["boxes"][:-2],
            "scores": found["scores"][:-2],
            "labels": found["labels"][:-2],
        }
        for found in found_in(index)
    ]
    sound = judged(index, sure)
    width = np.diff(figures.bootstrap(sound.metrics))[0]
    assert width < high - low


def test_errors_are_those_that_were_planted(split: Judged, index: DatasetIndex) -> None:
    errors = figures.errors_and_calibration(split)
    assert {"Cls", "Bkg", "Loc"} == {*sorted(errors["errors"], key=errors["errors"].get)[-6:]} & {
        "Cls", "Bkg", "Loc",
    }  # fmt: skip
    sound = figures.errors_and_calibration(judged(index, found_in(index)))
    assert sound["errors"]["Cls"] < errors["errors"]["Cls"] / 5
    assert 0 <= sound["ece_after"] < sound["ece"]


def test_recall_by_size_counts_every_object_once(split: Judged) -> None:
    rows = figures.recall_by(split, 0.5, 64)
    for group in rows.values():
        assert sum(row["objects"] for row in group) == len(split.index.labels)
    found = sum(row["found"] for row in rows["size"])
    assert found == sum(row[50] for row in figures.sweep(split.metrics)["right"])


def test_images_are_parted_by_their_tone(index: DatasetIndex) -> None:
    answers = found_in(index)
    for found in answers[:16]:  # the darkest and sharpest: nothing is found, something is false
        found["scores"] = found["scores"].flip(0)
    split = judged(index, answers)
    rows = figures.recall_by(split, 0.5, 64)
    for group in (rows["brightness"], rows["sharpness"][::-1]):
        assert [row["images"] for row in group] == [8] * 10
        assert group[0]["name"] in ("100 to 107", "-7 to 0")
        assert all(row["found"] == row["objects"] and not row["false"] for row in group[2:])
        assert all(row["found"] < row["objects"] and row["false"] for row in group[:2])
    few = judged(index, found_in(index)[:9])
    assert figures.recall_by(few, 0.5, 64)["brightness"] == []


def test_drift_is_the_share_that_would_have_to_move(index: DatasetIndex) -> None:
    rows = np.flatnonzero(index.labels == 1)
    one_class = with_rows(index, rows)
    told = figures.drift({"train": index, "valid": one_class}, 64)
    expected = 1 - np.mean(index.labels == 1)
    assert told["valid"]["classes_distance"] == pytest.approx(expected)
    assert "classes_distance" not in told["train"]


def test_the_recommended_threshold_has_two_decimals(split: Judged) -> None:
    best = split.metrics.overall["best_threshold"]
    assert threshold_of(split.metrics) == round(best, 2)


def test_masks_far_behind_their_boxes_are_advice() -> None:
    rows = [
        {"name": name, "AP": 0.5, "mask_AP": mask, "train": 99}
        for name, mask in (("key", 0.1), ("heart", 0.45), ("leaf", None))
    ]
    data = {"errors": {"errors": {}}, "best": None, "hints": [], "drift": {}, "classes": rows}
    (item,) = advice.next_steps(data)
    assert item["title"] == "Masks of key are coarse" and "0.10" in item["text"]


def test_a_chart_of_one_point_has_it_in_the_middle() -> None:
    drawn = svg.chart("mAP", [svg.Line("live", [(4, 0.3)], "a")], "epoch")
    assert [text for text in ("3", "4", "5") if f">{text}</text>" in drawn] == ["3", "4", "5"]
