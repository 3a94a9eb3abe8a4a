"""The training loss: every decoder layer and the encoder stage, matched and computed at once, named
at the end.

Classes by IoU-aware binary cross-entropy, as in LW-DETR (arXiv 2406.03459), boxes by L1 and GIoU,
masks as `masks` says; queries in groups that each answer for all targets (Group DETR, arXiv
2207.13085). Letters as in `matcher`; S stages: the decoder layers, then the encoder's proposals.
The candidates of an image are the queries of all stages in that order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rfdetr.geometry.boxes import (
    at_least_float32,
    cxcywh_to_xyxy,
    elementwise_giou,
    elementwise_iou,
)
from rfdetr.losses.masks import mask_costs, mask_losses
from rfdetr.losses.matcher import match
from rfdetr.models.detector import DetectorOutput

IOU_SHARE = (
    0.75  # a matched class aims at p^0.25 IoU^0.75: a score that also tells how well the box fits
)
LEAST_AIM = 0.01


class Criterion(nn.Module):
    """Weighted loss terms of a batch by name; their sum is the loss.

    In training mode the queries are `group_detr` groups, in evaluation mode one.
    """

    def __init__(  # noqa: PLR0913 - keyword-only: how the groups, terms and points count
        self,
        *,
        group_detr: int,
        cls_loss_coef: float = 1.0,
        bbox_loss_coef: float = 5.0,
        giou_loss_coef: float = 2.0,
        mask_ce_loss_coef: float = 5.0,
        mask_dice_loss_coef: float = 5.0,
        mask_point_sample_ratio: int = 16,
    ) -> None:
        super().__init__()
        self.group_detr = group_detr
        self.mask_point_sample_ratio = mask_point_sample_ratio
        self.weights = {
            "loss_ce": cls_loss_coef,
            "loss_bbox": bbox_loss_coef,
            "loss_giou": giou_loss_coef,
            "loss_mask_ce": mask_ce_loss_coef,
            "loss_mask_dice": mask_dice_loss_coef,
        }

    def forward(
        self,
        outputs: DetectorOutput,
        targets: Sequence[Mapping[str, Tensor]],
        across_ranks: bool = True,
    ) -> dict[str, Tensor]:
        """Terms `loss_ce`, `loss_bbox`, `loss_giou` of the last layer, `_0`, `_1`, ... of those
        before it, `_enc`.

        A target has "labels" (T,) and "boxes" (T, 4) cxcywh relative to the image, on the outputs'
        device. Outputs with masks have `loss_mask_ce` and `loss_mask_dice` too, and need targets
        with "masks" (T, h, w) of the whole image, of one size in a batch and any type, and
        "has_mask" (T,) bool where some objects have none. Training divides by the mean number of
        objects over all ranks, which all must be there; without `across_ranks` by this rank's own.
        """
        # Costs and losses are exact in float32 whatever the network ran in: what autocast would
        # round is small anyway.
        with torch.autocast(outputs.logits.device.type, enabled=False):
            return self._terms(outputs, targets, across_ranks)

    def _terms(
        self,
        outputs: DetectorOutput,
        targets: Sequence[Mapping[str, Tensor]],
        across_ranks: bool,
    ) -> dict[str, Tensor]:
        groups = self.group_detr if self.training else 1
        logits = at_least_float32(
            torch.cat((*outputs.logits, outputs.proposal_logits), dim=1)
        )  # (B, C, K)
        boxes = at_least_float32(
            torch.cat((*outputs.boxes, outputs.proposal_boxes), dim=1)
        )  # (B, C, 4)
        layers, _, queries = outputs.logits.shape[:3]
        lengths = [
            *[queries] * layers,
            outputs.proposal_logits.shape[1],
        ]  # candidates of each stage
        blocks = [length // groups for length in lengths for _ in range(groups)]

        ratio = self.mask_point_sample_ratio
        other_costs = None
        if outputs.masks:
            weights = {
                "ce_weight": self.weights["loss_mask_ce"],
                "dice_weight": self.weights["loss_mask_dice"],
            }
            other_costs = mask_costs(outputs.masks, targets, ratio, **weights)
        image, candidate, target = matches = match(logits, boxes, targets, blocks, other_costs)
        labels = torch.cat([t["labels"] for t in targets])[target]
        boxes_xyxy = cxcywh_to_xyxy(matched_boxes := boxes[image, candidate])
        target_xyxy = cxcywh_to_xyxy(
            target_boxes := torch.cat([t["boxes"] for t in targets])[target]
        )
        iou, _ = elementwise_iou(boxes_xyxy, target_xyxy)

        stage = (
            torch.arange(layers + 1).repeat_interleave(torch.tensor(lengths)).to(logits.device)
        )  # (C,)
        sums = {
            "loss_ce": _sum_by(
                stage, class_loss(logits, (image, candidate, labels), iou.detach()), layers + 1
            ),
            "loss_bbox": _sum_by(
                stage[candidate], (matched_boxes - target_boxes).abs().sum(dim=-1), layers + 1
            ),
            "loss_giou": _sum_by(
                stage[candidate], 1 - elementwise_giou(boxes_xyxy, target_xyxy), layers + 1
            ),
        }
        if outputs.masks:
            sums["loss_mask_ce"], sums["loss_mask_dice"] = mask_losses(
                outputs.masks, targets, matches, groups, ratio
            )
        count = groups * sum(len(t["labels"]) for t in targets)
        # In evaluation ranks may have different numbers of batches: one that asked the others could
        # wait forever.
        asks = self.training and across_ranks
        n = _share_of_all(count, logits.device) if asks else max(count, 1)
        suffixes = [*(f"_{layer}" for layer in range(layers - 1)), "", "_enc"]
        return {
            name + suffix: self.weights[name] * value / n
            for name, values in sums.items()
            for suffix, value in zip(suffixes, values, strict=True)
        }


def class_loss(logits: Tensor, matched: tuple[Tensor, Tensor, Tensor], iou: Tensor) -> Tensor:
    """IoU-aware binary cross-entropy of logits (B, C, K), summed over images and classes: (C,).

    At the `matched` indexes (image, candidate, class) the aim is a mix t of the score p and the
    box's IoU (M,), and the loss t * -log(p) + (1 - t) * -log(1 - p); everywhere else it is p^2 *
    -log(1 - p). t is a constant, p^2 is not.
    """
    return _ClassLoss.apply(logits, matched, iou)  # type: ignore[no-any-return, no-untyped-call]


class _ClassLoss(torch.autograd.Function):
    # Its slope is known where its value is, and kept alone: automatic differentiation would keep
    # six tensors this large, and this is by far the largest part of the loss.

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, matched: tuple[Tensor, Tensor, Tensor], iou: Tensor
    ) -> Tensor:
        p, loss = logits.sigmoid(), F.softplus(logits)  # softplus(x) = -log(1 - p)
        slope = (1 - p).mul_(loss).mul_(2).add_(p)
        matched_logits, matched_p = logits[matched], p[matched]
        aim = (matched_p ** (1 - IOU_SHARE) * iou**IOU_SHARE).clamp(min=LEAST_AIM)

        p.square_()
        loss.mul_(p)[matched] = F.binary_cross_entropy_with_logits(
            matched_logits, aim, reduction="none"
        )
        slope.mul_(p)[matched] = matched_p - aim
        ctx.save_for_backward(slope)
        return loss.sum(dim=(0, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient[:, None], None, None


def _sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    return values.new_zeros(size).index_add(0, index, values)


def _share_of_all(count: int, device: torch.device) -> Tensor:
    """The mean count of a rank, of at least one in all: what makes the mean gradient that of one
    batch over all.
    """
    total = torch.tensor(float(count), dtype=torch.float32, device=device)
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        ranks = torch.distributed.get_world_size()
    return total.clamp(min=1) / ranks
