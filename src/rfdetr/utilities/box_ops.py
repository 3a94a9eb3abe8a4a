"""Box mathematics under its published names."""

from torch import Tensor

from rfdetr.geometry.boxes import box_area, elementwise_iou
from rfdetr.geometry.boxes import cxcywh_to_xyxy as box_cxcywh_to_xyxy
from rfdetr.geometry.boxes import pairwise_giou as generalized_box_iou
from rfdetr.geometry.boxes import xyxy_to_cxcywh as box_xyxy_to_cxcywh

__all__ = ["box_area", "box_cxcywh_to_xyxy", "box_iou", "box_xyxy_to_cxcywh", "generalized_box_iou"]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of every box (N, 4) with every other (M, 4), xyxy: (N, M) each."""
    return elementwise_iou(boxes1.unsqueeze(-2), boxes2.unsqueeze(-3))
