"""What an evaluation keeps of its images: how many bytes, and that nothing is lost in packing."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rfdetr.evaluation import average_precision, f1, kept
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.evaluation.found import LEAST_SCORE
from rfdetr.evaluation.kept import SHELF, Columns

CLASSES, DETECTIONS, OBJECTS = 80, 100, 7
Image = tuple[dict[str, Tensor], dict[str, Tensor]]


def images(count: int, masks: bool = False) -> Iterator[Image]:
    """As of a trained network: five detections around each object, and the rest is noise; a third
    of all are likely, a tenth have a mask to show. With masks, at an eighth of the size, as quick.
    """
    rng, scale = np.random.default_rng(0), 1 / 8 if masks else 1
    size, side = torch.tensor([480, 640]) * scale, np.array([120.0, 90.0])
    for image_id in range(count):
        truth = rng.uniform(0, 1, (OBJECTS, 2)) * (500, 380)
        corners = np.concatenate([truth.repeat(5, 0), rng.uniform(0, 380, (65, 2))])
        corners += rng.normal(0, 6, corners.shape)
        labels = np.append(np.arange(OBJECTS).repeat(5), rng.integers(0, CLASSES, 65))
        scores = rng.random(DETECTIONS) * np.where(np.arange(DETECTIONS) % 3, LEAST_SCORE, 0.43)
        found = {
            "scores": torch.from_numpy(scores.astype(np.float32)),
            "labels": torch.from_numpy(labels),
            "boxes": torch.from_numpy(np.hstack([corners, corners + side]) * scale).float(),
        }
        target = {
            "image_id": torch.tensor(image_id),
            "orig_size": size.int(),
            "labels": torch.arange(OBJECTS),
            "boxes_xyxy": torch.from_numpy(np.hstack([truth, truth + side]) * scale),
        }
        if masks:
            found["mask_logits"] = torch.from_numpy(rng.normal(0, 1, (DETECTIONS, 4, 4))).float()
            target["rle_bytes"] = torch.zeros(0, dtype=torch.uint8)
            target["rle_offsets"] = torch.zeros(OBJECTS + 1, dtype=torch.int64)
        yield found, target


@contextmanager
def traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """Bytes that Python and NumPy have taken since, and the most that they had at once."""
    gc.collect()
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()


def streamed(made: list[Image], masks: bool = False) -> CocoEvaluator:
    evaluator = CocoEvaluator([f"class {k}" for k in range(CLASSES)], masks=masks)
    for found, target in made:
        evaluator.update([found], [target])
    return evaluator


# The bytes are those of docs/architecture.md, "What an evaluation keeps".
@pytest.mark.parametrize(("masks", "most"), [(False, 1200), (True, 2450)])
def test_an_image_costs_no_more_than_told(masks: bool, most: int) -> None:
    few, many = SHELF, (3 if masks else 9) * SHELF
    made = list(images(many, masks))
    streamed(made[:1], masks)
    with traced() as taken:
        first = streamed(made[:few], masks)
        held_of_few = taken()[0]
        second = streamed(made, masks)
        held_of_many = taken()[0] - held_of_few
    an_image = (held_of_many - held_of_few) / (many - few)
    assert 500 < an_image < most
    assert len(first._rows) == few and len(second._rows) == many


def test_figures_are_computed_in_little_memory() -> None:
    """What two sizes differ by, so that what does not grow is no part of it. Of 44 pairs an image,
    which take most of it.
    """
    peaks, sizes = [], (4 * SHELF, 12 * SHELF)
    made = list(images(sizes[-1]))
    streamed(made[:2]).compute()
    for size in sizes:
        evaluator = streamed(made[:size])
        with traced() as taken:
            evaluator.compute()
            peaks.append(taken()[1])
    an_image = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    assert an_image < 5000


@pytest.mark.parametrize("max_dets", [500, 3])
def test_parts_and_shelves_change_no_figure(
    made: Any, sets: Any, max_dets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sets.evaluated(made, max_dets).compute()
    all_found = dict(whole.found)
    for module, name, value in (
        (f1, "PART", 7),
        (average_precision, "PART", 7),
        (kept, "SHELF", 3),
    ):
        monkeypatch.setattr(module, name, value)
    parted = sets.evaluated(made, max_dets).compute()
    assert parted.overall == whole.overall and repr(parted.per_class) == repr(whole.per_class)
    assert np.array_equal(parted.pr_precision, whole.pr_precision, equal_nan=True)
    for curves, others in zip(parted.sweep.curves, whole.sweep.curves, strict=True):
        assert np.array_equal(curves, others, equal_nan=True)
    assert np.array_equal(parted.confusion(), whole.confusion())
    assert list(parted.found) == list(all_found)
    for image_id, found in all_found.items():
        for column, other in zip(parted.found[image_id], found, strict=True):
            assert np.array_equal(column, other, equal_nan=True)


def test_the_order_of_images_and_shards_changes_nothing(made: Any, sets: Any) -> None:
    """Scores are equal across images where there are ties: the images' ids then decide."""
    whole = sets.evaluated(made).compute()
    order = np.random.default_rng(0).permutation(len(made.targets)).tolist()
    mixed = [
        sets.DetectionSet(made.class_names, *([rows[k] for k in part] for rows in columns))
        for part in (order[:7], order[7:])
        for columns in [(made.detections, made.targets)]
    ]
    merged = CocoEvaluator.merge([sets.evaluated(part) for part in mixed]).compute()
    assert merged.overall == whole.overall and repr(merged.per_class) == repr(whole.per_class)
    assert np.array_equal(merged.pr_precision, whole.pr_precision, equal_nan=True)
    assert np.array_equal(merged.matches.scores, whole.matches.scores)
    assert np.array_equal(merged.matches.image, whole.matches.image)


def test_rows_come_back_as_they_went_in() -> None:
    rng, columns = np.random.default_rng(0), Columns()
    rows = [(rng.random(n % 4), rng.integers(0, 9, (n % 3, 2))) for n in range(SHELF * 2 + 5)]
    for row in rows:
        columns.append(row)
    assert len(columns) == len(rows)
    for number in (0, 1, SHELF - 1, SHELF, 2 * SHELF - 1, 2 * SHELF, len(rows) - 1):
        for stored, given in zip(columns[number], rows[number], strict=True):
            assert np.array_equal(stored, given)
    for number in range(2):
        whole, lengths = columns.column(number)
        assert np.array_equal(whole, np.concatenate([row[number] for row in rows]))
        assert lengths.tolist() == [len(row[number]) for row in rows]


def test_what_was_found_is_no_more_than_is_counted(sets: Any) -> None:
    count = 250
    boxes, scores = [[0, 0, 9, 9]] * count, np.linspace(0.9, 0.1, count)
    found = sets.detection(scores, np.arange(count) % 2, boxes)
    for max_dets, kept_of_all in ((500, count), (110, 220), (3, 200)):  # COCO's own 100 are needed
        evaluator = CocoEvaluator(["a", "b"], max_dets)
        evaluator.update([found], [sets.target(4, [0], [[0, 0, 9, 9]])])
        shown = evaluator.compute().found[4]
        assert len(shown.scores) == len(shown.labels) == len(shown.boxes) == kept_of_all
        assert (np.diff(shown.scores) < 0).all()


def test_more_classes_and_detections_than_a_byte_counts(sets: Any) -> None:
    """300 classes and 300 detections of an image: each finds its own object, the last class too."""
    classes = 300
    places = np.arange(classes) * 20.0
    boxes = np.stack([places, places, places + 10, places + 10], axis=1)
    made = sets.DetectionSet([f"class {k}" for k in range(classes)])
    made.targets = [sets.target(1, np.arange(classes), boxes)]
    made.detections = [sets.detection(np.linspace(0.9, 0.1, classes), np.arange(classes), boxes)]
    metrics = sets.evaluated(made).compute()
    assert metrics.overall["mAP_50_95"] == pytest.approx(1)
    assert metrics.overall["F1"] == pytest.approx(1)
    assert metrics.confusion().trace() == classes
    assert metrics.found[1].labels.tolist() == list(range(classes))


def test_a_score_that_is_nan_and_an_unknown_label_are_refused(sets: Any) -> None:
    box = [[0, 0, 9, 9]]
    evaluator = CocoEvaluator(["a", "b"])
    with pytest.raises(ValueError, match=r"image 5: .* nan"):
        evaluator.update([sets.detection([math.nan], [0], box)], [sets.target(5, [0], box)])
    with pytest.raises(ValueError, match=r"image 6 has labels \[2\]; they must be 0 to 1"):
        evaluator.update([sets.detection([0.5], [0], box)], [sets.target(6, [2], box)])
    assert evaluator.compute().num_images == 0
    # The spare logit names no class: whatever its score.
    evaluator.update([sets.detection([math.nan], [2], box)], [sets.target(7, [1], box)])
    assert evaluator.compute().num_images == 1
