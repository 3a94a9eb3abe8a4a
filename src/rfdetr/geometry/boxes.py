"""Box mathematics: formats, IoU, and deltas on reference boxes. All functions take and return (...,
4) float tensors.

cxcywh is centre and size, xyxy is two corners; either may be in pixels or relative to the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY_AREA = 1e-12  # keeps the IoU of boxes without area at 0 instead of 0 / 0


def at_least_float32(values: Tensor) -> Tensor:
    """The same values, as float32 unless they are more exact."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Corners of boxes given by centre and size."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    half = size * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Centre and size of boxes given by corners."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...); a box with corners the wrong way round has area 0."""
    width, height = _extent(boxes_xyxy[..., :2], boxes_xyxy[..., 2:])
    return width * height


def elementwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of boxes paired by broadcasting: (..., 4) and (..., 4) -> (...), (...)."""
    width, height = _extent(
        torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2]),
        torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]),
    )
    intersection = width * height
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    return intersection / union.clamp(min=_TINY_AREA), union


def elementwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes paired by broadcasting, in [-1, 1]."""
    iou, union = elementwise_iou(a_xyxy, b_xyxy)
    width, height = _extent(
        torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2]),
        torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]),
    )
    hull = width * height
    return iou - (hull - union) / hull.clamp(min=_TINY_AREA)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of every a with every b: (..., N, 4) and (..., M, 4) -> (..., N, M) twice."""
    return elementwise_iou(a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))


def pairwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU of every a with every b: (..., N, 4) and (..., M, 4) -> (..., N, M)."""
    return elementwise_giou(a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))


def apply_box_deltas(deltas: Tensor, reference_cxcywh: Tensor) -> Tensor:
    """Boxes from deltas: the centre moves in units of the reference's size, the size scales by
    exp(delta).

    At least in float32, whatever comes in: bfloat16 has 8 bits, a box of 1000 pixels needs more.
    """
    deltas, reference_cxcywh = at_least_float32(deltas), at_least_float32(reference_cxcywh)
    centre, size = reference_cxcywh[..., :2], reference_cxcywh[..., 2:]
    return torch.cat((deltas[..., :2] * size + centre, deltas[..., 2:].exp() * size), dim=-1)


def _extent(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width, height
