"""Each kind of planted label fault is told, first and by its kind, and sound labels hardly ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.report.conftest import found_in, judged, with_rows

from rfdetr.data.index import DatasetIndex
from rfdetr.report.hints import Hint, as_record, calibrated, find_hints, lone_detections

FAULTY = 20  # the row of a label, among 120


def planted(index: DatasetIndex, kind: str) -> DatasetIndex:
    """The index with one fault of a kind at row `FAULTY`."""
    rows = np.arange(len(index.labels))
    labels, boxes = index.labels.copy(), index.boxes.copy()
    if kind == "overlooked":
        return with_rows(index, np.delete(rows, FAULTY))
    if kind == "swapped":
        labels[FAULTY] = (labels[FAULTY] + 1) % 3
    elif kind.startswith("duplicate"):
        rows = np.insert(rows, FAULTY, FAULTY)
        labels, boxes = labels[rows], boxes[rows]
        boxes[FAULTY, 2:] += 1
        labels[FAULTY] = (labels[FAULTY] + ("other" in kind)) % 3
    elif kind == "badly placed":
        boxes[FAULTY, 0] += 0.45 * (boxes[FAULTY, 2] - boxes[FAULTY, 0])
    else:
        boxes[FAULTY] = (0, 20, 7, 30)
    return with_rows(index, rows, labels=labels, boxes=boxes)


@pytest.mark.parametrize("kind", ["overlooked", "swapped", "badly placed"])
def test_a_planted_fault_is_the_first_hint(index: DatasetIndex, kind: str) -> None:
    image = int(np.searchsorted(index.offsets, FAULTY, side="right") - 1)
    hints = find_hints(judged(planted(index, kind), found_in(index)))
    assert (hints[0].kind, hints[0].image) == (kind, image)
    assert hints[0].probability > 0.3


def test_a_label_where_nothing_is_found_is_spurious(index: DatasetIndex) -> None:
    faulty = planted(index, "spurious")
    hints = find_hints(judged(faulty, found_in(index)))
    told = [hint for hint in hints if hint.kind == "spurious"]
    assert told[0].truth == FAULTY and told[0].detection == -1
    record = as_record(told[0], judged(faulty, found_in(index)))
    assert record["label"]["box"] == [0, 20, 7, 10] and record["found"] is None
    assert record["apply"] is False


@pytest.mark.parametrize("kind", ["duplicate", "duplicate of another class"])
def test_the_worse_of_two_labels_of_an_object_is_a_duplicate(
    index: DatasetIndex, kind: str
) -> None:
    faulty = planted(index, kind)
    split = judged(faulty, found_in(index))
    hints = [hint for hint in find_hints(split) if hint.kind == "duplicate"]
    assert [(hint.truth, hint.detection) for hint in hints] == [(FAULTY, -1)]
    assert hints[0].probability > 0.3
    told = find_hints(split)
    assert not [hint for hint in told if hint.truth == FAULTY and hint.kind != "duplicate"]


def test_two_objects_that_overlap_are_no_duplicates(index: DatasetIndex) -> None:
    answers, faulty = found_in(index), planted(index, "duplicate")
    image = int(np.searchsorted(index.offsets, FAULTY, side="right") - 1)
    at = FAULTY - int(index.offsets[image])
    for values in answers[image].values():  # what is found there, twice
        assert len(values) > at
    answers[image] = {
        name: torch.cat([values, values[at : at + 1]]) for name, values in answers[image].items()
    }
    told = find_hints(judged(faulty, answers))
    assert "duplicate" not in {hint.kind for hint in told if hint.image == image}


def test_sound_labels_give_few_hints(index: DatasetIndex) -> None:
    hints = find_hints(judged(index, found_in(index)))
    assert sum(hint.probability > 0.3 for hint in hints) <= 2


def test_one_fault_gives_one_hint(index: DatasetIndex) -> None:
    hints: list[Hint] = find_hints(judged(planted(index, "swapped"), found_in(index)))
    labels = [hint.truth for hint in hints if hint.truth >= 0]
    detections = [hint.detection for hint in hints if hint.detection >= 0]
    assert len(labels) == len(set(labels)) and len(detections) == len(set(detections))


def test_calibration_rises_with_the_score_and_lies_between_the_shares(index: DatasetIndex) -> None:
    split = judged(index, found_in(index))
    probability = calibrated(split)
    assert (np.diff(probability) <= 0).all()  # detections are best first
    assert probability[0] == 1 and probability[-1] < 0.1


def test_nothing_found_and_nothing_labelled_give_no_hints(index: DatasetIndex) -> None:
    empty = [{name: values[:0] for name, values in one.items()} for one in found_in(index)]
    assert find_hints(judged(index, empty)) == []
    unlabelled = judged(with_rows(index, np.arange(0)), found_in(index))
    assert find_hints(unlabelled) == [] and len(lone_detections(unlabelled)) > 0
