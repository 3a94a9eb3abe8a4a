"""Rules about boxes, over all boxes of a split at once: which rows each is about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_ROUNDING = 0.01  # pixels outside the image that are worth no note
_FAR_OUT = 0.1  # of the image's side: so far outside, a box that fits as x1 y1 x2 y2 is likely one
_XYXY_SHARE, _XYXY_FIT, _XYXY_LEAST = (
    0.2,
    0.95,
    5,
)  # boxes far out, boxes that fit, boxes at all: then all are xyxy
_AREA_SLACK = 0.01  # of an area: as much as annotated areas are rounded
_NEAR = 2.0  # pixels: outlines and boxes closer than that are at one place, however small
_APART_IOU, _APART_SHARE = 0.5, 0.9  # less than both: a box and its outline show different places
_WHOLE = 0.99  # of both sides
_HASH = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)


def box_faults(
    boxes: NDArray[np.float64], clipped: NDArray[np.float32], limits: NDArray[np.float64]
) -> dict[str, Mask]:
    """Rows of boxes (M, 4), xyxy in pixels, that are not as they should be; `limits` are width,
    height, width, height.

    `clipped` are the boxes inside their image. Rows of images without a known size (limits 0) have
    no faults.
    """
    known: Mask = np.all(limits > 0, axis=1)
    drawn = has_area(clipped)
    outside: Mask = np.any(boxes[:, :2] >= limits[:, 2:], axis=1) | np.any(
        boxes[:, 2:] <= 0, axis=1
    )
    outside &= np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    moved: Mask = np.any(np.abs(clipped - boxes) > _ROUNDING, axis=1)
    whole: Mask = np.all(clipped[:, 2:] - clipped[:, :2] >= _WHOLE * limits[:, 2:], axis=1)
    return {
        "box-no-size": known & ~drawn & ~outside,
        "box-outside": known & outside,
        "box-clipped": known & drawn & moved,
        "box-whole-image": known & whole,
    }


def has_area(boxes: NDArray[np.floating]) -> Mask:
    """Boxes xyxy with a width and a height."""
    drawn: Mask = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return drawn


def as_written(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers (M, 4) of a file in which `boxes`, xyxy, were read as x y width height."""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def xyxy_boxes(
    boxes: NDArray[np.float64], limits: NDArray[np.float64], right: Mask
) -> tuple[Mask, Mask]:
    """Boxes, read as x y width height, that are likely x1 y1 x2 y2; and those that are if the whole
    file is, or none.

    `boxes` are the xyxy that were made of them; those that are proved `right` (`proved_right`) are
    neither.
    """
    written, sides = as_written(boxes), limits[:, 2:]
    corner, far = written[:, :2], written[:, 2:]
    fits: Mask = np.all((far > corner) & (far <= sides + 1) & (corner >= 0), axis=1) & ~right
    likely: Mask = fits & np.any(boxes[:, 2:] > (1 + _FAR_OUT) * sides, axis=1)
    all_are = (
        len(boxes) >= _XYXY_LEAST and likely.mean() >= _XYXY_SHARE and fits.mean() >= _XYXY_FIT
    )
    return likely, fits & all_are


def proved_right(
    boxes: NDArray[np.float64], areas: NDArray[np.float64], outlines: NDArray[np.floating] | None
) -> Mask:
    """Boxes that their records prove to be x y width height, as they were read.

    `outlines` (M, 4) are the bounds of the outlines, NaN where there is none: they decide if they
    overlap more with the box of one reading. Else the annotated area does, if it is the box's in
    this reading alone.
    """
    other = as_written(boxes)
    slack = _AREA_SLACK * _areas(boxes) + 1
    by_area: Mask = (np.abs(areas - _areas(boxes)) <= slack) & ~(
        np.abs(areas - _areas(other)) <= slack
    )
    if outlines is None:
        return by_area
    ours, theirs = _iou(boxes, outlines), _iou(other, outlines)
    return (ours > theirs) | (by_area & ~(ours < theirs))


def apart(boxes: NDArray[np.floating], outlines: NDArray[np.floating]) -> Mask:
    """Boxes (M, 4) whose outlines, with bounds (M, 4), NaN for none, show another place.

    An outline inside its box is none of these, however small: boxes may include what is hidden.
    What is shown twice within two pixels is at one place.
    """
    grown = np.array((-_NEAR, -_NEAR, _NEAR, _NEAR)) / 2
    boxes, outlines = boxes + grown, outlines + grown
    return (_iou(boxes, outlines) < _APART_IOU) & (
        _shared(boxes, outlines) < _APART_SHARE * _areas(outlines)
    )


def _areas(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    areas: NDArray[np.floating] = np.prod((boxes[:, 2:] - boxes[:, :2]).clip(min=0), axis=1)
    return areas


def _shared(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.floating]:
    """Areas that pairs of boxes have in common."""
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    return _areas(np.concatenate((low, high), axis=1))


def _iou(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.floating]:
    shared = _shared(first, second)
    iou: NDArray[np.floating] = shared / np.maximum(_areas(first) + _areas(second) - shared, 1e-9)
    return iou


def repeated_boxes(image_of_box: NDArray[np.int64], boxes: NDArray[np.float64]) -> Mask:
    """Boxes that another one before them in the same image equals (by a 64-bit hash: sorting five
    columns is slow).
    """
    bits = np.ascontiguousarray(boxes, np.float64).view(np.uint64)
    hashed = (bits * _HASH).sum(1, dtype=np.uint64) ^ (image_of_box.astype(np.uint64) * _HASH[0])
    hashed ^= hashed >> np.uint64(29)
    repeated = np.ones(len(boxes), np.bool_)
    repeated[np.unique(hashed, return_index=True)[1]] = False
    return repeated


def odd_areas(areas: NDArray[np.float64], boxes: NDArray[np.float64]) -> Mask:
    """Annotated areas that are not positive, or larger than their boxes; NaN stands for none."""
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    odd: Mask = (
        ~np.isnan(areas)
        & ((areas <= 0) | (areas > 1.01 * widths * heights + 1))
        & (widths > 0)
        & (heights > 0)
    )
    return odd
