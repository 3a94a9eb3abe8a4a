"""Full-size masks of what is reported, in the form `supervision` holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.geometry.detections import import_supervision
from rfdetr.models.postprocess import full_size_masks

if TYPE_CHECKING:
    from supervision import CompactMask

DENSE_PIXELS = (
    2**21
)  # of an image; larger ones (Full HD is just below) get their masks as run lengths


def build_masks(mask_logits: Tensor, size: tuple[int, int]) -> NDArray[np.bool_] | CompactMask:
    """Masks (n, height, width) of an image's detections: an array, or for a large image a
    `CompactMask`.

    A CompactMask indexes, filters and draws like the array, which `numpy.asarray` makes of it.
    """
    parts = (part.cpu().numpy() for part in full_size_masks(mask_logits, size))
    if size[0] * size[1] <= DENSE_PIXELS or not len(mask_logits):
        return np.concatenate([np.zeros((0, *size), np.bool_), *parts])
    sv = import_supervision()
    compact = [sv.CompactMask.from_dense(part, sv.mask_to_xyxy(part), size) for part in parts]
    merged: CompactMask = sv.CompactMask.merge(compact)
    return merged
