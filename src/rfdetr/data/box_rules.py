"""Rules about boxes, over all boxes of a split at once: which rows each is about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_ROUNDING = 0.01  # pixels outside the image that are worth no note
_FAR_OUT = 0.1  # of the image's side: so far outside, a box that fits as x1 y1 x2 y2 is likely one
_XYXY_SHARE, _XYXY_FIT, _XYXY_LEAST = 0.2, 0.95, 5  # boxes far out, boxes that fit, boxes at all: then all are xyxy
_WHOLE = 0.99  # of both sides
_HASH = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)


def box_faults(
    boxes: NDArray[np.float64], clipped: NDArray[np.float32], limits: NDArray[np.float64]
) -> dict[str, Mask]:
    """Rows of boxes (M, 4), xyxy in pixels, that are not as they should be; `limits` are width, height, width, height.

    `clipped` are the boxes inside their image. Rows of images without a known size (limits 0) have no faults.
    """
    known: Mask = np.all(limits > 0, axis=1)
    has_area: Mask = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
    outside: Mask = np.any(boxes[:, :2] >= limits[:, 2:], axis=1) | np.any(boxes[:, 2:] <= 0, axis=1)
    outside &= np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    moved: Mask = np.any(np.abs(clipped - boxes) > _ROUNDING, axis=1)
    whole: Mask = np.all(clipped[:, 2:] - clipped[:, :2] >= _WHOLE * limits[:, 2:], axis=1)
    return {
        "box-no-size": known & ~has_area & ~outside,
        "box-outside": known & outside,
        "box-clipped": known & has_area & moved,
        "box-whole-image": known & whole,
    }


def xyxy_boxes(boxes: NDArray[np.float64], limits: NDArray[np.float64]) -> tuple[Mask, bool]:
    """Boxes, read as x y width height, that are likely x1 y1 x2 y2; and whether all of the file's are.

    `boxes` are the xyxy that were made of them.
    """
    corner, far = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # as written: x y, and width height or x2 y2
    sides = limits[:, 2:]
    fits: Mask = np.all((far > corner) & (far <= sides + 1) & (corner >= 0), axis=1)
    likely: Mask = fits & np.any(boxes[:, 2:] > (1 + _FAR_OUT) * sides, axis=1)
    all_are = len(boxes) >= _XYXY_LEAST and likely.mean() >= _XYXY_SHARE and fits.mean() >= _XYXY_FIT
    return likely, bool(all_are)


def repeated_boxes(image_of_box: NDArray[np.int64], boxes: NDArray[np.float64]) -> Mask:
    """Boxes that another one before them in the same image equals (by a 64-bit hash: sorting five columns is slow)."""
    bits = np.ascontiguousarray(boxes, np.float64).view(np.uint64)
    hashed = (bits * _HASH).sum(1, dtype=np.uint64) ^ (image_of_box.astype(np.uint64) * _HASH[0])
    hashed ^= hashed >> np.uint64(29)
    repeated = np.ones(len(boxes), np.bool_)
    repeated[np.unique(hashed, return_index=True)[1]] = False
    return repeated


def odd_areas(areas: NDArray[np.float64], boxes: NDArray[np.float64]) -> Mask:
    """Annotated areas that are not positive, or larger than their boxes; NaN stands for none."""
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    odd: Mask = ~np.isnan(areas) & ((areas <= 0) | (areas > 1.01 * widths * heights + 1)) & (widths > 0) & (heights > 0)
    return odd
