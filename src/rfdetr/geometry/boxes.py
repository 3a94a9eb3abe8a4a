"""Box mathematics on (..., 4) float tensors: formats, IoU, and deltas on reference boxes.

cxcywh is centre and size, xyxy is two corners; either may be in pixels or relative to the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY_AREA = 1e-12  # keeps the IoU of boxes without area at 0 instead of 0 / 0


def at_least_float32(values: Tensor) -> Tensor:
    """`values` as float32, or as they are if they are float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...); a box with corners the wrong way round has area 0."""
    return _area(boxes_xyxy[..., :2], boxes_xyxy[..., 2:])


def elementwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of boxes paired by broadcasting: (..., 4) and (..., 4) -> (...), (...)."""
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    intersection = _area(low, torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]))
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    return intersection / union.clamp(min=_TINY_AREA), union


def elementwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes paired by broadcasting, in [-1, 1]."""
    iou, union = elementwise_iou(a_xyxy, b_xyxy)
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull = _area(low, torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]))
    return iou - (hull - union) / hull.clamp(min=_TINY_AREA)


def pairwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU of every a (..., N, 4) with every b (..., M, 4): (..., N, M)."""
    return elementwise_giou(a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))


def apply_box_deltas(deltas: Tensor, reference_cxcywh: Tensor) -> Tensor:
    """Move centres by `deltas` in units of the reference's size, and scale sizes by exp(delta).

    At least in float32, whatever comes in: bfloat16 has 8 bits, a box of 1000 pixels needs more.
    """
    deltas, reference_cxcywh = at_least_float32(deltas), at_least_float32(reference_cxcywh)
    centre, size = reference_cxcywh[..., :2], reference_cxcywh[..., 2:]
    return torch.cat((deltas[..., :2] * size + centre, deltas[..., 2:].exp() * size), dim=-1)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
