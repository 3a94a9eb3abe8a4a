"""Tracks of known trajectories, and HOTA (arXiv 2009.07736) on a moving scene."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment

from rfdetr import RFDETRMini
from rfdetr.inference.tracking import Tracker

Boxes = dict[int, list[float]]  # xyxy by the object's own number


def track(frames: list[Boxes], scores: dict[tuple[int, int], float] | None = None) -> list[Boxes]:
    """Boxes by the tracker's numbers; `scores` by frame and object, 0.9 otherwise."""
    tracker, tracked = Tracker(), []
    for number, boxes in enumerate(frames):
        confidence = [(scores or {}).get((number, name), 0.9) for name in boxes]
        xyxy = np.array(list(boxes.values()), np.float32).reshape(-1, 4)
        columns = np.array(confidence), np.zeros(len(boxes), np.int64)
        found = tracker.update(sv.Detections(xyxy, None, *columns))
        ids = np.asarray(found.tracker_id).tolist()
        tracked.append(dict(zip(ids, found.xyxy.tolist(), strict=True)))
    return tracked


def moving(start: tuple[float, float], step: tuple[float, float], frames: range) -> list[Boxes]:
    at = np.array(start)
    return [{0: [*(at + np.array(step) * t), *(at + np.array(step) * t + 20)]} for t in frames]


def joined(*scenes: list[Boxes]) -> list[Boxes]:
    return [{n: boxes[0] for n, boxes in enumerate(frame) if 0 in boxes} for frame in zip(*scenes)]  # noqa: B905


def hota(truth: list[Boxes], found: list[Boxes], alpha: float = 0.5) -> float:
    """The score at one localisation threshold: sqrt(DetA x AssA)."""
    pairs, sizes = [], ({}, {})
    for real, seen in zip(truth, found, strict=True):
        for counts, boxes in zip(sizes, (real, seen), strict=True):
            for name in boxes:
                counts[name] = counts.get(name, 0) + 1
        if real and seen:
            iou = sv.box_iou_batch(np.array(list(real.values())), np.array(list(seen.values())))
            rows, columns = linear_sum_assignment(iou, maximize=True)
            names, numbers = list(real), list(seen)
            hits = zip(rows, columns, strict=True)
            pairs += [(names[r], numbers[c]) for r, c in hits if iou[r, c] >= alpha]
    times = {pair: pairs.count(pair) for pair in set(pairs)}
    association = [times[p] / (sizes[0][p[0]] + sizes[1][p[1]] - times[p]) for p in pairs]
    total = sum(sizes[0].values()) + sum(sizes[1].values()) - len(pairs)
    return float(np.sqrt(len(pairs) / total * np.mean(association)))


def test_two_that_cross_keep_their_numbers() -> None:
    frames = range(40)
    scene = joined(moving((0, 0), (4, 4), frames), moving((0, 160), (4, -4), frames))
    tracked = track(scene)
    assert all(set(boxes) == {1, 2} for boxes in tracked)
    for number in (1, 2):
        assert tracked[0][number] == pytest.approx(scene[0][number - 1])
        assert tracked[-1][number] == pytest.approx(scene[-1][number - 1])
    assert hota(scene, tracked) == 1


def test_who_is_hidden_comes_back_and_who_is_long_gone_is_another() -> None:
    scene = moving((0, 0), (3, 1), range(100))
    hidden = [{} if 20 <= t < 30 else boxes for t, boxes in enumerate(scene)]
    assert {number for boxes in track(hidden) for number in boxes} == {1}
    gone = [{} if 20 <= t < 60 else boxes for t, boxes in enumerate(scene)]
    tracked = track(gone)
    assert set(tracked[19]) == {1} and tracked[60] == {} and set(tracked[61]) == {2}


def test_unsure_detections_go_on_with_a_track_and_start_none() -> None:
    scene = moving((0, 0), (3, 1), range(20))
    faint = {(t, 0): 0.2 for t in range(5, 20)}
    assert all(set(boxes) == {1} for boxes in track(scene, faint))
    assert not any(track(scene, {(t, 0): 0.4 for t in range(20)}))
    flash = [{0: [0.0, 0, 20, 20]} if t == 3 else {} for t in range(6)]
    assert not any(track(flash))  # seen once


def test_what_starts_a_track_may_differ_by_class() -> None:
    tracker = Tracker(np.array([0.5, 0.2, 0.5]))
    for _ in range(3):
        xyxy = np.array([[0, 0, 20, 20], [100, 0, 130, 30]], np.float32)
        scores, classes = np.array([0.3, 0.3]), np.array([0, 1])
        seen = tracker.update(sv.Detections(xyxy, None, scores, classes))
        assert np.asarray(seen.class_id).tolist() == [1]


def test_a_class_that_flickers_or_is_given_twice_makes_no_other_object() -> None:
    tracker, cup, bowl = Tracker(), [0.0, 0, 20, 20], [100.0, 0, 130, 30]
    for t in range(12):
        xyxy = np.array([cup, bowl, bowl], np.float32) + t
        classes, scores = np.array([t % 3 == 2, 4, 5], np.int64), np.array([0.9, 0.7, 0.6])
        seen = tracker.update(sv.Detections(xyxy, None, scores, classes))
        assert np.asarray(seen.tracker_id).tolist() == [1, 2]
        assert np.asarray(seen.class_id).tolist() == [t % 3 == 2, 4]  # what was found in the frame
    assert [track.label for track in tracker.tracks] == [0, 4]


def test_where_two_boxes_fit_the_class_decides() -> None:
    tracker = Tracker()
    for t in range(6):
        left, right = [10.0 + 2 * t, 0, 30 + 2 * t, 20], [40.0 - 2 * t, 0, 60 - 2 * t, 20]
        xyxy = np.array([left, right], np.float32)
        tracker.update(sv.Detections(xyxy, None, np.full(2, 0.9), np.array([0, 1])))
    swapped = np.array([[26.0, 0, 46, 20], [24.0, 0, 44, 20]], np.float32)  # classes 1 and 0
    seen = tracker.update(sv.Detections(swapped, None, np.full(2, 0.9), np.array([1, 0])))
    assert np.asarray(seen.tracker_id).tolist() == [2, 1]


def test_hota_of_a_scene_with_noise_misses_and_false_alarms() -> None:
    rng = np.random.default_rng(0)
    paths = [
        moving(tuple(rng.uniform(0, 600, 2)), tuple(rng.uniform(-4, 4, 2)), range(60))
        for _ in range(12)
    ]
    scene = joined(*paths)
    seen = [
        {n: (np.array(box) + rng.normal(0, 0.7, 4)).tolist() for n, box in boxes.items()
         if rng.random() > 0.1}
        | {99: [*(low := rng.uniform(0, 600, 2)), *(low + 20)]}
        for boxes in scene
    ]  # fmt: skip
    tracked = track(seen)
    assert hota(scene, tracked) > 0.85
    alone = [{t * 100 + n: box for n, box in boxes.items()} for t, boxes in enumerate(seen)]
    assert hota(scene, alone) < 0.3


def drawn(frame: Boxes) -> np.ndarray:
    """A disc, a square, a triangle and a ring in their boxes, on gray."""
    picture = Image.new("RGB", (256, 256), (150, 150, 145))
    draw = ImageDraw.Draw(picture)
    for name, (left, top, right, bottom) in frame.items():
        if name == 0:
            draw.ellipse((left, top, right, bottom), fill=(200, 40, 40))
        elif name == 1:
            draw.rectangle((left, top, right, bottom), fill=(30, 60, 190))
        elif name == 2:
            draw.polygon(
                [(left, bottom), (right, bottom), ((left + right) / 2, top)], (30, 120, 40)
            )
        else:
            draw.ellipse((left, top, right, bottom), outline=(250, 230, 60), width=9)
    return np.asarray(picture)


@pytest.mark.scheduled
def test_hota_of_a_rendered_scene_seen_by_a_detector() -> None:
    """The bundled weights, which take a ring for a washer at times, and for both at once."""
    paths = [((10, 10), (3, 2)), ((190, 20), (-2, 1)), ((20, 190), (2, -2)), ((180, 190), (-2, -2))]
    scene = joined(*(moving(start, step, range(60)) for start, step in paths))
    scene = [{n: [x, y, x + 44, y + 44] for n, (x, y, *_) in frame.items()} for frame in scene]
    tracker, tracked = Tracker(0.4), []
    for found in RFDETRMini().predict([drawn(frame) for frame in scene], 0.1, batch_size=8):
        seen = tracker.update(found)
        numbers = np.asarray(seen.tracker_id).tolist()
        tracked.append(dict(zip(numbers, seen.xyxy.tolist(), strict=True)))
    assert len({number for frame in tracked for number in frame}) <= 5
    assert hota(scene, tracked) > 0.55
