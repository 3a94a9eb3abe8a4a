"""What is kept of an image's detections beside the figures, for a report that shows them: few bytes
for what is likely, nothing for the rest, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rfdetr.evaluation.matching import Array

if TYPE_CHECKING:
    from supervision import CompactMask

LEAST_SCORE = 0.05
"""Of a detection that is kept: below lies most of what a network gives, and hardly an object."""
LEAST_MASK_SCORE = 0.3
"""Of a detection whose mask is kept."""
MASK_SIDE = 28
"""A mask is kept as a bitmap of so many rows and columns over its box: 98 bytes."""
UNKNOWN_TONE: Array = np.full(2, np.nan, np.float32)
_STEPS = 65535  # a coordinate is a whole number of them: 0.1 pixel of an image 6,500 wide


class Found(NamedTuple):
    """The D detections of one image with a score >= `LEAST_SCORE`, best first; but no more of
    a class than the evaluation counts.
    """

    scores: Array  # (D,) float32
    labels: Array  # (D,) of the narrowest type that holds them
    boxes: Array  # (D, 4) uint16 xyxy, in shares of the image's sides
    masks: Array  # (M, 98) uint8, packed bitmaps of the first M; (0, 98) of a model without masks
    tone: Array  # (2,) float32 brightness and sharpness of the image, gray levels; nan: not known

    def boxes_xyxy(self, height: int, width: int) -> Array:
        """Boxes (D, 4) float32 in pixels."""
        scale = np.array((width, height, width, height), np.float32) / _STEPS
        pixels: Array = self.boxes * scale
        return pixels

    def mask(self, number: int) -> Array | None:
        """The bitmap (28, 28) bool over the box of a detection, if its mask is kept."""
        if number >= len(self.masks):
            return None
        return np.unpackbits(self.masks[number]).reshape(MASK_SIDE, MASK_SIDE).astype(bool)


def keep(
    scores: Array,
    boxes_xywh: Array,
    size: Sequence[int],
    masks: Tensor | CompactMask | None = None,
) -> tuple[Array, Array]:
    """The boxes and masks that `Found` holds, of an image's detections, best first.

    `masks` are all detections' logits (n, h, w) or a CompactMask; `size` is the image's height and
    width.
    """
    likely, sure = (np.count_nonzero(scores >= least) for least in (LEAST_SCORE, LEAST_MASK_SCORE))
    corners = boxes_xywh[:likely].copy()
    corners[:, 2:] += corners[:, :2]
    shares = np.clip(corners / (size[1], size[0], size[1], size[0]), 0, 1)
    if masks is None or not sure:
        small = np.zeros((0, MASK_SIDE**2 // 8), np.uint8)
    elif isinstance(masks, Tensor):
        small = _small_masks(masks[:sure], torch.from_numpy(shares[:sure]).to(masks.device))
    else:
        small = _small_parts(masks, corners[:sure])
    return (shares * _STEPS).round().astype(np.uint16), small


def _small_masks(logits: Tensor, boxes_xyxy: Tensor) -> Array:
    """Packed bitmaps (n, 98) of logits (n, h, w) over boxes (n, 4) in shares of the image."""
    places = (torch.arange(MASK_SIDE, device=logits.device) + 0.5) / MASK_SIDE
    low, extent = boxes_xyxy[:, None, :2], boxes_xyxy[:, None, 2:] - boxes_xyxy[:, None, :2]
    x, y = (low + extent * places[None, :, None]).mul(2).sub(1).float().unbind(-1)  # (n, 28) each
    columns = x[:, None, :].expand(-1, MASK_SIDE, -1)
    grid = torch.stack((columns, y[:, :, None].expand(-1, -1, MASK_SIDE)), dim=-1)
    shown = F.grid_sample(logits[:, None].float(), grid, align_corners=False)[:, 0] > 0
    packed: Array = np.packbits(shown.flatten(1).cpu().numpy(), axis=1)
    return packed


def _small_parts(masks: CompactMask, boxes_xyxy: Array) -> Array:
    """Packed bitmaps (n, 98) of the first n masks over their boxes (n, 4) in pixels: what lies
    under each point.
    """
    places = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE
    small = np.zeros((len(boxes_xyxy), MASK_SIDE, MASK_SIDE), bool)
    for number, (low_x, low_y, high_x, high_y) in enumerate(boxes_xyxy):
        part, (left, top) = masks.crop(number), masks.offsets[number]
        x = (low_x + (high_x - low_x) * places - left).astype(int)
        y = (low_y + (high_y - low_y) * places - top).astype(int)
        rows, columns = (
            (at >= 0) & (at < side) for at, side in zip((y, x), part.shape, strict=True)
        )
        small[number][np.ix_(rows, columns)] = part[np.ix_(y[rows], x[columns])]
    return np.packbits(small.reshape(len(small), -1), axis=1)
