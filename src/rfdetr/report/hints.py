"""Label hints: where a split's labels are likely wrong, each with the probability that they are.

Five kinds, four of them after ObjectLab (arXiv 2309.00832): an object that was overlooked, one of
swapped class, one badly placed, a spurious label where nothing is; and a duplicate, the second
label of an object. Scores of this family are no probabilities, and how much they tell differs by
data set. So the split's own labels are spoiled in memory, each once in each of these ways, and an
isotonic regression tells how likely a place with such evidence is a spoiled one, if `PRIOR` of all
labels have a fault of each kind.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from hotcoco.primitives import bbox_iou

from rfdetr.evaluation.matching import IGNORED, IOU_THRESHOLD, Array
from rfdetr.report.judged import NEAR, Judged, to_xywh

OVERLOOKED, SWAPPED, MISPLACED, SPURIOUS = "overlooked", "swapped", "badly placed", "spurious"
DUPLICATE = "duplicate"
TO_REMOVE = (SPURIOUS, DUPLICATE)  # kinds that need no detection
PRIOR = 0.01  # of the labels are taken to have a fault of each kind
LEAST_PROBABILITY = 0.05
MOST_HINTS = 300  # of a split
MOST_SPOILED = 5000  # labels of a split, about
OWN_OBJECT = 0.3  # IoU with every label below which a detection is of an object of its own
BESIDE, FITS = 0.2, 0.65  # IoU from which a label overlaps an object, and is well placed


class Hint(NamedTuple):
    """One suspected label; the object or the detection is -1 where there is none."""

    kind: str
    probability: float
    strength: float  # of the evidence, to order hints of equal probability
    image: int
    truth: int
    detection: int


class _Evidence(NamedTuple):
    """What speaks for a fault of each of n places (labels, or lone detections)."""

    strength: Array  # (n,) the higher, the likelier
    truth: Array  # (n,) -1 where there is none, as in detection
    detection: Array  # (n,)
    spoiled: Array  # strengths of spoiled labels; nan for one of which nothing is seen


def find_hints(judged: Judged) -> list[Hint]:
    """The most likely faults of a split's labels, most likely first; one for each fault."""
    table, hints = judged.table, list[Hint]()
    num_labels = int(np.count_nonzero(~table.truth_crowd))
    for kind, found in _gather(judged).items():
        for place, likely in enumerate(_likelihood(found, num_labels)):
            truth, detection = int(found.truth[place]), int(found.detection[place])
            image = table.image[detection] if truth < 0 else table.truth_image[truth]
            if likely >= LEAST_PROBABILITY and (kind in TO_REMOVE or detection >= 0):
                strength = float(found.strength[place])
                hints.append(Hint(kind, float(likely), strength, int(image), truth, detection))
    hints.sort(key=lambda hint: (-hint.probability, -hint.strength))
    told: set[tuple[str, int]] = set()
    kept = []
    for hint in hints:
        marks = {("label", hint.truth), ("detection", hint.detection)}
        marks -= {("label", -1), ("detection", -1)}
        if not marks & told:
            told |= marks
            kept.append(hint)
    return kept[:MOST_HINTS]


def calibrated(judged: Judged, among: Array | None = None) -> Array:
    """(D,) the share of detections of such a score that are right, isotonic: of the split, or of
    those `among` them (D,) bool. 0 for the others and for what is neither right nor wrong.
    """
    from scipy.optimize import isotonic_regression

    counted = judged.matched != IGNORED
    counted &= True if among is None else among
    probability = np.zeros(len(counted))
    if counted.any():
        right = (judged.matched[counted] >= 0).astype(float)
        probability[counted] = isotonic_regression(right, increasing=False).x  # best first
    return probability


def lone_detections(judged: Judged) -> Array:
    """Detections of an object of its own, far from every label; of one place the best alone."""
    table, kept = judged.table, []
    lone = np.flatnonzero(judged.nearest[1] < OWN_OBJECT)[: 20 * MOST_HINTS]  # the best, by score
    for image in np.unique(table.image[lone]):
        own = lone[table.image[lone] == image]
        boxes = to_xywh(judged.boxes[own])
        overlaps = _iou(boxes, boxes) >= IOU_THRESHOLD
        free = np.ones(len(own), bool)
        for place in range(len(own)):
            if free[place]:
                kept.append(own[place])
                free[place:] &= ~overlaps[place, place:]
    return np.sort(np.array(kept, int))


def _likelihood(found: _Evidence, num_labels: int) -> Array:
    """(n,) how likely evidence of such strength is that of a fault."""
    from scipy.optimize import isotonic_regression

    seen = found.spoiled[~np.isnan(found.spoiled)]
    counts = len(found.strength), len(seen)
    if not all(counts):
        return np.zeros(counts[0])
    values = np.concatenate([found.strength, seen])
    places, place = np.unique(values, return_inverse=True)
    weight = np.repeat([1.0, PRIOR * num_labels / len(found.spoiled)], counts)
    mass = np.bincount(place, weight)
    share = np.bincount(place, weight * np.repeat([0.0, 1.0], counts)) / mass
    likely: Array = isotonic_regression(share, weights=mass).x[place[: counts[0]]]
    return likely if len(places) > 1 else np.zeros(counts[0])


def _gather(judged: Judged) -> dict[str, _Evidence]:
    """The evidence in all images, by kind."""
    index, table = judged.index, judged.table
    rng = np.random.default_rng(0)
    share = min(MOST_SPOILED / max(len(index.labels), 1), 1.0)
    frequency = np.bincount(index.labels, minlength=len(index.class_names))
    order = np.argsort(table.image, kind="stable")
    ends = np.searchsorted(table.image[order], np.arange(len(index) + 1))
    parts: defaultdict[str, list[_Evidence]] = defaultdict(list)
    spoiled_labels = [index.labels[:0]]
    for image in range(len(index)):
        rows = np.arange(*index.offsets[image : image + 2])
        rows = rows[~index.crowd[rows]]
        if len(rows):
            view = _View(judged, rows, order[ends[image] : ends[image + 1]])
            spoiled = view.spoiled(rng, frequency) if rng.random() < share else {}
            spoiled_labels += [view.labels] * bool(spoiled)
            for kind, found in view.real().items():
                parts[kind].append(found._replace(spoiled=spoiled.get(kind, rows[:0])))
    evidence = {
        kind: _Evidence(*map(np.concatenate, zip(*found, strict=True)))
        for kind, found in parts.items()
    }
    if evidence:
        lone = lone_detections(judged)
        evidence[OVERLOOKED] = _Evidence(
            table.scores[lone], np.full(len(lone), -1), lone, evidence[OVERLOOKED].spoiled
        )
        evidence[SPURIOUS] = _within_class(
            evidence[SPURIOUS], index.labels, np.concatenate(spoiled_labels)
        )
    return evidence


def _within_class(found: _Evidence, labels: Array, spoiled_labels: Array) -> _Evidence:
    """The same evidence less the share of the class's labels that have as much of it: that nothing
    was found says little where the detector misses half of a class.
    """
    own, strength = labels[found.truth], np.zeros(len(found.truth))
    spoiled = np.full(len(found.spoiled), np.nan)
    for label in np.unique(own):
        known = np.sort(found.strength[own == label])
        for values, of_class, sums in (
            (found.strength, own == label, strength),
            (found.spoiled, spoiled_labels == label, spoiled),
        ):
            as_much = len(known) - np.searchsorted(known, values[of_class])
            sums[of_class] = values[of_class] - (as_much + 1) / (len(known) + 1)
    spoiled = spoiled[~np.isnan(found.spoiled)]
    return found._replace(strength=strength, spoiled=spoiled)


class _View:
    """One image's n labels (`rows` of the index) and D detections (`found`)."""

    def __init__(self, judged: Judged, rows: Array, found: Array) -> None:
        index, table = judged.index, judged.table
        self.rows, self.labels, self.boxes = rows, index.labels[rows], index.boxes[rows]
        self.size = index.sizes[table.truth_image[rows[0]]]
        self.found, self.scores = found, table.scores[found]
        self.found_labels, self.found_boxes = table.labels[found], to_xywh(judged.boxes[found])
        self.iou = self._with_found(self.boxes)
        # (n, D) the IoU of each detection with the nearest of the other labels
        others = [np.delete(self.iou, place, 0).max(0, initial=0) for place in range(len(rows))]
        self.others = np.array(others).reshape(self.iou.shape)

    def real(self) -> dict[str, _Evidence]:
        """The evidence against each label as it is."""
        worth = {
            SWAPPED: self._of_another_class(self.labels),
            MISPLACED: self._beside(self.iou),
            **dict.fromkeys((SPURIOUS, DUPLICATE, OVERLOOKED), np.zeros_like(self.iou)),
        }
        strength = {
            SWAPPED: self._swapped(self.labels),
            MISPLACED: self._misplaced(self.iou),
            SPURIOUS: self._spurious(self.iou),
            DUPLICATE: self._duplicate(),
            OVERLOOKED: np.zeros(len(self.rows)),
        }
        none = self.rows[:0]
        return {
            kind: _Evidence(strength[kind], self.rows, self._best(worth[kind]), none)
            for kind in strength
        }

    def spoiled(self, rng: np.random.Generator, frequency: Array) -> dict[str, Array]:
        """The evidence against the labels, each spoiled in one way by itself."""
        elsewhere, is_free = self._elsewhere(rng)
        lone = self.scores * (self.iou >= IOU_THRESHOLD) * (self.others < OWN_OBJECT)
        left_over = lone.max(1, initial=0)
        return {
            OVERLOOKED: np.where(left_over > 0, left_over, np.nan),
            SWAPPED: self._swapped(_other_labels(rng, self.labels, frequency)),
            MISPLACED: self._misplaced(self._with_found(_moved(rng, self.boxes, self.size))),
            SPURIOUS: np.where(is_free, self._spurious(elsewhere), np.nan),
            DUPLICATE: self._copied(rng),
        }

    def _of_another_class(self, labels: Array) -> Array:
        """(n, D) what each detection at a label's place is worth, if it is of another class."""
        other = self.found_labels != labels[:, None]
        near = self.iou >= IOU_THRESHOLD
        same = self.found_labels == self.labels[:, None]
        explained = ((near & same).sum(0) - (near & same)) > 0  # by another label, of its own class
        worth: Array = self.scores * self.iou * near * other * ~explained
        return worth

    def _beside(self, iou: Array) -> Array:
        """(n, D) what a detection is worth that overlaps a label of its class, and no other."""
        same = self.found_labels == self.labels[:, None]
        free = self.others < IOU_THRESHOLD
        worth: Array = self.scores * same * free * (iou >= BESIDE) * (iou < FITS)
        return worth

    def _swapped(self, labels: Array) -> Array:
        """How much better another class fits at the same place."""
        own = self.scores * self.iou * (self.iou >= IOU_THRESHOLD)
        own = (own * (self.found_labels == labels[:, None])).max(1, initial=0)
        other = self._of_another_class(labels).max(1, initial=0)
        better: Array = np.sqrt(other) * other / (other + own + 1e-3)
        return better

    def _misplaced(self, iou: Array) -> Array:
        """How much better a place beside the label fits."""
        same = self.found_labels == self.labels[:, None]
        fit = (self.scores * same * (iou >= FITS)).max(1, initial=0)
        best: Array = self._beside(iou).max(1, initial=0) - fit
        return best

    def _spurious(self, iou: Array) -> Array:
        """How little speaks for an object of whatever class."""
        most: Array = (self.scores * iou * (iou >= NEAR)).max(1, initial=0)
        return -most

    def _duplicate(self) -> Array:
        """How much speaks for one object where a label and another are; 0 for the one of the two
        that fits it better, and for labels without another near.
        """
        strength = np.zeros(len(self.rows))
        overlap = np.triu(_iou(to_xywh(self.boxes), to_xywh(self.boxes)), 1)
        same = self.found_labels == self.labels[:, None]
        fit = (self.scores * self.iou * np.where(same, 1, 0.5)).max(1, initial=0)
        for first, second in np.argwhere(overlap >= IOU_THRESHOLD).tolist():
            worse = first if fit[first] < fit[second] else second
            alone = self._one_object(self.iou[[first]], self.iou[[second]])[0]
            strength[worse] = max(strength[worse], overlap[first, second] * alone)
        return strength

    def _copied(self, rng: np.random.Generator) -> Array:
        """`_duplicate` of a second label for each object, a little beside the first."""
        extent = np.tile(self.boxes[:, 2:] - self.boxes[:, :2], 2)
        copies = self.boxes + rng.uniform(-0.1, 0.1, self.boxes.shape) * extent
        overlap = np.diag(_iou(to_xywh(copies), to_xywh(self.boxes)))
        strength: Array = overlap * self._one_object(self._with_found(copies), self.iou)
        return np.where(overlap >= IOU_THRESHOLD, strength, np.nan)

    def _one_object(self, iou: Array, other_iou: Array) -> Array:
        """(n,) from 0 to 1, how alone the best detection is of those on either of two labels, of
        (n, D) IoU each: a second one that is nearly as likely speaks for a second object.
        """
        scores = np.sort(self.scores * (np.maximum(iou, other_iou) >= IOU_THRESHOLD), axis=1)
        none = np.zeros((len(scores), 2))  # where nothing, or one thing, was found
        second, best = np.concatenate([none, scores], 1)[:, -2:].T
        alone: Array = np.where(best > 0, np.sqrt(best) * (best - second) / (best + 1e-3), 0.0)
        return alone

    def _elsewhere(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """(n, D) IoU of the same boxes put anywhere, and (n,) whether they are off all labels."""
        extent = self.boxes[:, 2:] - self.boxes[:, :2]
        corner = rng.uniform(0, 1, extent.shape) * (self.size[::-1] - extent)
        boxes = np.concatenate([corner, corner + extent], 1)
        with_labels = _iou(to_xywh(boxes), to_xywh(self.boxes))
        return self._with_found(boxes), with_labels.max(1, initial=0) < NEAR

    def _with_found(self, boxes_xyxy: Array) -> Array:
        return _iou(to_xywh(boxes_xyxy), self.found_boxes)

    def _best(self, worth: Array) -> Array:
        """(n,) the detection of most worth to each label, -1 where none has any."""
        if not len(self.found):
            return np.full(len(worth), -1)
        return np.where(worth.max(1) > 0, self.found[worth.argmax(1)], -1)


def _iou(first_xywh: Array, second_xywh: Array) -> Array:
    none = np.zeros(len(second_xywh), bool)
    iou: Array = bbox_iou(first_xywh, second_xywh, none).reshape(len(first_xywh), len(second_xywh))
    return iou


def _other_labels(rng: np.random.Generator, labels: Array, frequency: Array) -> Array:
    """Another class for each label, common ones more often; the same where there is but one."""
    weights = np.tile(frequency.astype(float), (len(labels), 1))
    weights[np.arange(len(labels)), labels] = 0
    ends = np.cumsum(weights, axis=1)
    drawn = (ends <= rng.random((len(labels), 1)) * ends[:, -1:]).sum(axis=1)
    return np.where(ends[:, -1] > 0, np.minimum(drawn, len(frequency) - 1), labels)


def _moved(rng: np.random.Generator, boxes: Array, size: Array) -> Array:
    """The boxes moved by a sixth to a half of their sides, and stretched, inside the image."""
    extent = boxes[:, 2:] - boxes[:, :2]
    shift = rng.uniform(0.15, 0.45, extent.shape) * rng.choice([-1, 1], extent.shape) * extent
    low = boxes[:, :2] + shift
    high = low + extent * np.exp(rng.uniform(-0.4, 0.4, extent.shape))
    moved: Array = np.clip(np.concatenate([low, high], 1), 0, np.tile(size[::-1], 2))
    return moved


def as_record(hint: Hint, judged: Judged) -> dict[str, Any]:
    """A hint for JSON, as label_hints.json has it. Boxes are x, y, width, height in pixels."""
    index, table = judged.index, judged.table

    def place(box_xyxy: Array, label: int) -> dict[str, Any]:
        x, y, right, bottom = (round(float(side), 2) for side in box_xyxy)
        box = [x, y, round(right - x, 2), round(bottom - y, 2)]
        return {"class": index.class_names[label], "box": box}

    label = found = None
    if hint.truth >= 0:
        label = place(index.boxes[hint.truth], int(table.truth_labels[hint.truth]))
    if hint.detection >= 0:
        d = hint.detection
        found = place(judged.boxes[d], int(table.labels[d]))
        found["score"] = round(float(table.scores[d]), 3)
    return {
        "apply": False,
        "split": judged.split,
        "image": judged.image_names[hint.image],
        "kind": hint.kind,
        "probability": round(hint.probability, 3),
        "label": label,
        "found": found,
    }
