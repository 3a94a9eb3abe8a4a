"""Masks as `supervision` has them, of one image's mask logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.geometry.detections import import_supervision
from rfdetr.models.detector import full_size_masks

if TYPE_CHECKING:
    from supervision import CompactMask

_PIXELS_AT_ONCE = 2**18
DENSE_PIXELS = 2**21
"""Larger images than this (Full HD is just below) get their masks as run lengths."""


def build_masks(mask_logits: Tensor, size: tuple[int, int]) -> NDArray[np.bool_] | CompactMask:
    """Masks (n, height, width) of an image: an array, for a large image a `CompactMask`.

    A CompactMask indexes, filters and draws like the array, which `numpy.asarray` makes of it.
    """
    if size[0] * size[1] > DENSE_PIXELS and len(mask_logits):
        return compact_masks(mask_logits, size)
    parts = (part.cpu().numpy() for part in full_size_masks(mask_logits, size))
    return np.concatenate([np.zeros((0, *size), np.bool_), *parts])


def compact_masks(mask_logits: Tensor, size: tuple[int, int]) -> CompactMask:
    """Run lengths of the masks of an image or a tile, each enlarged where it is and nowhere else:
    of a hundred megapixels, one mask alone would fill 400 MB.
    """
    sv = import_supervision()
    compact: list[CompactMask] = [sv.CompactMask.from_dense(np.zeros((0, *size), bool), [], size)]
    for logits in mask_logits.float().cpu():
        drawn, left, top = _enlarged_part(logits, size)
        part = sv.CompactMask.from_dense(drawn[None], sv.mask_to_xyxy(drawn[None]), drawn.shape)
        compact.append(part.with_offset(left, top, size))
    merged: CompactMask = sv.CompactMask.merge(compact)
    return merged


def _enlarged_part(logits: Tensor, size: tuple[int, int]) -> tuple[NDArray[np.bool_], int, int]:
    """What `full_size_masks` makes of `logits` (h, w), around all of it that is True; and where
    that is, left and top.
    """
    shown, ends, places = logits > 0, [], []
    for axis, length in enumerate(size):
        cells = shown.any(1 - axis).nonzero().flatten().tolist()
        if not cells:
            return np.zeros((1, 1), np.bool_), 0, 0
        count = shown.shape[axis]
        first = max(math.floor((cells[0] - 0.5) * length / count), 0)
        last = min(math.ceil((cells[-1] + 1.5) * length / count), length)
        # As torch's bilinear interpolation has it: pixels of the mask lie between two cells.
        at = ((torch.arange(first, last) + 0.5) * (count / length) - 0.5).clamp(min=0)
        low = at.long()
        places.append((low, (low + 1).clamp(max=count - 1), at - low))
        ends.append(first)
    (top_cell, bottom_cell, down), (left_cell, right_cell, along) = places
    rows = logits[:, left_cell] * (1 - along) + logits[:, right_cell] * along
    parts, step = [], max(_PIXELS_AT_ONCE // len(along), 1)
    for start in range(0, len(down), step):
        strip = slice(start, start + step)
        upper, lower, share = rows[top_cell[strip]], rows[bottom_cell[strip]], down[strip, None]
        parts.append((upper * (1 - share) + lower * share > 0).numpy())
    return np.concatenate(parts), ends[1], ends[0]


def as_image_has(masks: CompactMask) -> NDArray[np.bool_] | CompactMask:
    """The same masks in the form that `build_masks` gives for an image of their size."""
    _, height, width = masks.shape
    return masks if height * width > DENSE_PIXELS and len(masks) else np.asarray(masks)


def union_mask(masks: CompactMask, rows: Sequence[int]) -> CompactMask:
    """One mask of what any of `rows` covers, drawn in no more than the box around them."""
    if len(rows) == 1:
        return masks[list(rows)]
    boxes = masks.bbox_xyxy[list(rows)]  # the last pixels are inside
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    covered = np.zeros((1, *(high - low + 1)[::-1]), np.bool_)
    for row, (left, top, right, bottom) in zip(rows, boxes - [*low, *low], strict=True):
        covered[0, top : bottom + 1, left : right + 1] |= masks.crop(row)
    shape = covered.shape[1:]
    whole = np.array([[0, 0, shape[1] - 1, shape[0] - 1]])
    drawn: CompactMask = import_supervision().CompactMask.from_dense(covered, whole, shape)
    return drawn.with_offset(int(low[0]), int(low[1]), masks.shape[1:])
