"""ByteTrack (arXiv 2110.06864): detections of consecutive frames to objects that keep a number.

A track is a box that moves at constant speed, kept by a Kalman filter. Each frame is associated in
two stages, by the IoU with the boxes where the tracks should be now:

    1. detections with at least `sure` confidence, with all tracks
    2. the others, down to `LEAST_FOLLOWED`, with what is left of the tracks seen just before

What is sure and left over starts a track, which counts from its second frame on (those of the first
frame at once). A track that was not seen for `patience` frames ends.

A detector may take one object for a cup now and for a bowl in the next frame, or for both at once.
So classes decide between boxes, but never end a track: a detection of another class than the track
had so far counts with half of its IoU, and what covers an object that is tracked starts no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rfdetr.errors import needs_extra
from rfdetr.geometry.detections import import_supervision

if TYPE_CHECKING:
    from supervision import Detections

Array: TypeAlias = NDArray[np.float64]

LEAST_FOLLOWED = 0.1
"""Confidence of what may go on with a track."""
FIRST_IOU, SECOND_IOU, NEW_IOU = 0.2, 0.5, 0.3
"""Least IoU of a pair in the two stages, and with a track that was seen once."""
OTHER_CLASS = 0.5
"""Part of the IoU that counts where a detection's class is not the track's."""
SAME_OBJECT = 0.8
"""IoU from which two detections of a frame are one object."""
# Standard deviations, as shares of a box's height: of its place and size, and of their change in a
# frame; those of SORT and its successors.
PLACE_NOISE, SPEED_NOISE = 1 / 20, 1 / 160


@dataclass
class Track:
    """One object: its number from 1, and mean (8,) and covariance (8, 8) of its box cxcywh, in
    pixels, and of the box's change in a frame. `votes` is the sum of confidences by class.
    """

    number: int
    votes: dict[int, float]
    mean: Array
    covariance: Array
    lost: int = 0  # frames since it was seen
    confirmed: bool = False

    @classmethod
    def start(cls, number: int, box_cxcywh: Array, votes: dict[int, float]) -> Track:
        height = box_cxcywh[3]
        deviations = np.repeat((2 * PLACE_NOISE, 10 * SPEED_NOISE), 4) * height
        mean = np.concatenate((box_cxcywh, np.zeros(4)))
        return cls(number, votes, mean, np.diag(deviations**2))

    @property
    def label(self) -> int:
        """The class that it has been taken for most."""
        return max(self.votes, key=self.votes.__getitem__)

    def predict(self) -> None:
        """Move on by one frame."""
        step = np.eye(8) + np.eye(8, k=4)
        noise = np.repeat((PLACE_NOISE, SPEED_NOISE), 4) * self.mean[3]
        self.mean = step @ self.mean
        self.mean[2:4] = self.mean[2:4].clip(min=1)
        self.covariance = step @ self.covariance @ step.T + np.diag(noise**2)
        self.lost += 1

    def update(self, box_cxcywh: Array, label: int, score: float) -> None:
        """Take the box where it was seen, and as what, in the frame that `predict` has moved to."""
        noise = np.eye(4) * (PLACE_NOISE * self.mean[3]) ** 2
        gain = np.linalg.solve(self.covariance[:4, :4] + noise, self.covariance[:4]).T
        self.mean = self.mean + gain @ (box_cxcywh - self.mean[:4])
        self.covariance = self.covariance - gain @ self.covariance[:4]
        self.votes[label] = self.votes.get(label, 0) + score
        self.lost, self.confirmed = 0, True

    @property
    def box_xyxy(self) -> Array:
        centre, half = self.mean[:2], self.mean[2:4] / 2
        return np.concatenate((centre - half, centre + half))


class Tracker:
    """Gives the detections of one frame after the other their tracks' numbers.

    What has at least `sure` confidence, one for all or (labels,) by label, may start a track.
    `patience` is in frames: a track that has not been seen for longer has ended.
    """

    def __init__(self, sure: float | NDArray[Any] = 0.5, patience: int = 30) -> None:
        self.sure, self.patience = np.asarray(sure), patience
        self.tracks: list[Track] = []
        self._started, self._frames = 0, 0

    def update(self, found: Detections) -> Detections:
        """The detections of the next frame that belong to a track, with `tracker_id`."""
        sides = found.xyxy[:, 2:] - found.xyxy[:, :2]
        boxes = np.concatenate((found.xyxy[:, :2] + sides / 2, sides), 1).astype(np.float64)
        kept: Any = found
        scores, labels = np.asarray(kept.confidence), np.asarray(kept.class_id)
        numbers = np.zeros(len(found), np.int64)  # 0: of no track
        for track in self.tracks:
            track.predict()
        enough = scores >= (self.sure[labels] if self.sure.ndim else self.sure)
        sure = np.flatnonzero(enough)
        unsure = np.flatnonzero((scores >= LEAST_FOLLOWED) & ~enough)

        def associate(tracks: list[Track], rows: NDArray[np.int64], least: float) -> list[Track]:
            """Gives tracks their detections of `rows`; the tracks that have found none."""
            pairs = match(tracks, found.xyxy[rows], labels[rows], least)
            for at, row in ((at, rows[row]) for at, row in pairs):
                tracks[at].update(boxes[row], int(labels[row]), float(scores[row]))
                numbers[row] = tracks[at].number
            seen = {at for at, _ in pairs}
            return [track for at, track in enumerate(tracks) if at not in seen]

        known = [track for track in self.tracks if track.confirmed]
        new = [track for track in self.tracks if not track.confirmed]
        left = associate(known, sure, FIRST_IOU)
        associate([track for track in left if track.lost == 1], unsure, SECOND_IOU)
        gone = associate(new, sure[numbers[sure] == 0], NEW_IOU)
        taken = numbers > 0
        iou = import_supervision().box_iou_batch(found.xyxy, found.xyxy)
        for row in sure[np.argsort(-scores[sure], kind="stable")].tolist():
            if taken[row] or (iou[row, taken] >= SAME_OBJECT).any():
                continue
            self._started += 1
            first = self._frames == 0
            track = Track.start(self._started, boxes[row], {int(labels[row]): float(scores[row])})
            track.confirmed = first
            self.tracks.append(track)
            numbers[row], taken[row] = self._started * first, True
        self._frames += 1
        over = {track.number for track in gone}
        self.tracks = [t for t in self.tracks if t.lost <= self.patience and t.number not in over]
        tracked: Any = found[numbers > 0]
        tracked.tracker_id = numbers[numbers > 0]
        return tracked  # type: ignore[no-any-return]


def match(
    tracks: list[Track], boxes_xyxy: NDArray[Any], labels: NDArray[Any], least: float
) -> list[tuple[int, int]]:
    """Pairs of a track and a detection with the largest sum of IoU, each at least `least`."""
    if not tracks or not len(boxes_xyxy):
        return []
    with needs_extra("train", "tracking"):
        from scipy.optimize import linear_sum_assignment
    expected = np.array([track.box_xyxy for track in tracks])
    iou = import_supervision().box_iou_batch(expected, boxes_xyxy.astype(np.float64))
    same = np.array([track.label for track in tracks])[:, None] == labels
    iou = iou * np.where(same, 1, OTHER_CLASS)
    rows, columns = linear_sum_assignment(np.where(iou >= least, iou, 0), maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if iou[row, column] >= least]
