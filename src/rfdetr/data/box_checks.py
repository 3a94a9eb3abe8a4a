"""Rules about boxes, over all boxes (M, 4) of a split at once; the answers are masks (M,) of rows.

Boxes are xyxy in pixels; `limits` (M, 4) are width, height, width, height of their images, 0 where
the size is unknown.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Boxes: TypeAlias = NDArray[np.floating]
Rows: TypeAlias = NDArray[np.bool_]

_ROUNDING = 0.01  # pixels outside the image that are worth no note
_WHOLE = 0.99  # of both sides: as large as the image
_AREA_SLACK = 0.01  # of an area: as much as annotated areas are rounded
_FAR_OUT = 0.1  # of the image's side: so far outside, a box that fits as x1 y1 x2 y2 is likely one
# All boxes of a file are x1 y1 x2 y2 if so many reach far out, so many fit, and so many there are.
_XYXY_SHARE, _XYXY_FIT, _XYXY_LEAST = 0.2, 0.95, 5
_NEAR = 2.0  # pixels: outlines and boxes closer than that are at one place, however small
_APART_IOU, _APART_SHARE = 0.5, 0.9  # less than both: a box and its outline show different places
_PRIMES = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


def box_faults(boxes: Boxes, clipped: Boxes, limits: Boxes) -> dict[str, Rows]:
    """By rule, the boxes of images of known size that are not as they should be; `clipped` are the
    boxes inside their images.
    """
    known, drawn = np.all(limits > 0, axis=1), has_area(clipped)
    beyond = (boxes[:, :2] >= limits[:, 2:]).any(1) | (boxes[:, 2:] <= 0).any(1)
    outside = beyond & has_area(boxes)
    moved = (np.abs(clipped - boxes) > _ROUNDING).any(1)
    whole = np.all(clipped[:, 2:] - clipped[:, :2] >= _WHOLE * limits[:, 2:], axis=1)
    return {
        "box-no-size": known & ~drawn & ~outside,
        "box-outside": known & outside,
        "box-clipped": known & drawn & moved,
        "box-whole-image": known & whole,
    }


def has_area(boxes: Boxes) -> Rows:
    drawn: Rows = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return drawn


def odd_areas(areas: Boxes, boxes: Boxes) -> Rows:
    """Annotated areas (M,) that are not positive, or larger than their boxes; NaN: none."""
    odd: Rows = (areas <= 0) | (areas > (1 + _AREA_SLACK) * _areas(boxes) + 1)
    return odd & has_area(boxes)  # false for NaN


def repeated_boxes(image_of_box: NDArray[np.int64], boxes: Boxes) -> Rows:
    """Boxes that another one before them in the same image equals, by a 64-bit hash: sorting five
    columns is slow.
    """
    primes = np.array(_PRIMES, np.uint64)
    bits = np.ascontiguousarray(boxes, np.float64).view(np.uint64)
    hashed = (bits * primes).sum(1, dtype=np.uint64) ^ (image_of_box.astype(np.uint64) * primes[0])
    return repeats(hashed ^ (hashed >> np.uint64(29)))


def repeats(values: NDArray[Any]) -> Rows:
    """Which values (M,) occur before: [7, 8, 7] gives [False, False, True]."""
    repeated = np.ones(len(values), np.bool_)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def as_written(boxes: Boxes) -> Boxes:
    """The numbers of a file, of which x y width height were made to `boxes`: x1 y1 x2 y2, if that
    is what it holds.
    """
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def xyxy_boxes(boxes: Boxes, limits: Boxes, right: Rows) -> tuple[Rows, Rows]:
    """Boxes, read as x y width height, that are likely x1 y1 x2 y2; and those that are if the whole
    file is, or none. Those that are proved `right` (`proved_right`) are neither.
    """
    written, sides = as_written(boxes), limits[:, 2:]
    within = (written[:, 2:] <= sides + 1) & (written[:, :2] >= 0)
    fits = has_area(written) & within.all(1) & ~right
    likely = fits & (boxes[:, 2:] > (1 + _FAR_OUT) * sides).any(1)
    many = len(boxes) >= _XYXY_LEAST
    return likely, fits & (many and likely.mean() >= _XYXY_SHARE and fits.mean() >= _XYXY_FIT)


def proved_right(boxes: Boxes, areas: Boxes, outlines: Boxes) -> Rows:
    """Boxes that their records prove to be x y width height, as they were read.

    `outlines` (M, 4) are the bounds of the outlines, NaN where there is none: they decide if they
    overlap more with the box of one reading. Else the annotated area does, if it is the box's in
    this reading alone.
    """
    other, slack = as_written(boxes), _AREA_SLACK * _areas(boxes) + 1
    ours, theirs = (np.abs(areas - _areas(reading)) <= slack for reading in (boxes, other))
    iou, other_iou = _iou(boxes, outlines), _iou(other, outlines)
    return (iou > other_iou) | (ours & ~theirs & ~(iou < other_iou))


def apart(boxes: Boxes, outlines: Boxes) -> Rows:
    """Boxes whose outlines, with bounds (M, 4), NaN for none, show another place.

    An outline inside its box is none of these, however small: boxes may include what is hidden.
    What is shown twice within two pixels is at one place.
    """
    grown = np.array((-_NEAR, -_NEAR, _NEAR, _NEAR)) / 2
    boxes, outlines = boxes + grown, outlines + grown
    covered = _shared(boxes, outlines) >= _APART_SHARE * _areas(outlines)
    return (_iou(boxes, outlines) < _APART_IOU) & ~covered


def _areas(boxes: Boxes) -> Boxes:
    areas: Boxes = np.prod((boxes[:, 2:] - boxes[:, :2]).clip(min=0), axis=1)
    return areas


def _shared(first: Boxes, second: Boxes) -> Boxes:
    """Areas that pairs of boxes have in common."""
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    return _areas(np.concatenate((low, high), axis=1))


def _iou(first: Boxes, second: Boxes) -> Boxes:
    shared = _shared(first, second)
    iou: Boxes = shared / np.maximum(_areas(first) + _areas(second) - shared, 1e-9)
    return iou
