"""The training loss: classes, boxes and masks of every decoder layer and of the proposals.

Classes by IoU-aware binary cross-entropy as in LW-DETR (arXiv 2406.03459), boxes by L1 and GIoU as
in DETR (2005.12872), masks as in `masks`. Each query group answers for all targets (Group DETR,
2207.13085). Letters as in `rfdetr.models`. All S sets of predictions are judged at once: put one
after another they are the A candidates of an image,

    layer 0: group 0 (Q), group 1 (Q), ... | layer 1: ... | proposals: group 0 (k), group 1 (k), ...

The proposals count as one more layer here, the last of S.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from rfdetr.losses.matcher import Targets, match
from rfdetr.models.detector import DetectorOutput

IOU_SHARE = 0.75  # of the target score p^0.25 IoU^0.75: it tells how well the box fits, too
LOWEST_TARGET = 0.01


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
        self, outputs: DetectorOutput, targets: Targets, across_ranks: bool = True
    ) -> dict[str, Tensor]:
        """Scalars `loss_ce`, ... of the last layer, `loss_ce_0`, ... before it, `loss_ce_enc`.

        A target has "labels" (T,) and "boxes" (T, 4) cxcywh relative to the image, on the outputs'
        device. Outputs with masks need targets with "masks" (T, H, W) of any type, of one size in a
        batch, and "has_mask" (T,) bool where some objects have none. All terms are divided by the
        number of targets; in training by its mean over all ranks, which all must call this
        together, unless `across_ranks` is False.
        """
        groups = self.group_detr if self.training else 1
        ratio, weights = self.mask_point_sample_ratio, self.weights
        # Costs and losses are exact in float32 whatever the network ran in: autocast gains nothing.
        with torch.autocast(outputs.logits.device.type, enabled=False):
            # Who answers for which target.
            logits = at_least_float32(torch.cat([*outputs.logits, outputs.proposal_logits], 1))
            boxes = at_least_float32(torch.cat([*outputs.boxes, outputs.proposal_boxes], 1))
            lengths = [x.shape[1] for x in (*outputs.logits, outputs.proposal_logits)]  # S
            costs = None
            if outputs.masks:
                factors = weights["loss_mask_ce"], weights["loss_mask_dice"]
                costs = mask_costs(outputs.masks, targets, ratio, *factors)
            block_sizes = [length // groups for length in lengths for _ in range(groups)]
            matches = match(logits, boxes, targets, block_sizes, costs)
            image, candidate, target = matches
            labels = torch.cat([t["labels"] for t in targets])[target]  # (M,)
            truth = torch.cat([t["boxes"] for t in targets])[target]  # (M, 4)

            # What each pair and each candidate costs, and the sums of every layer, (S,) each.
            l1, giou, iou = box_losses(boxes[image, candidate], truth)
            ce = class_loss(logits, (image, candidate, labels), iou)
            none = ce.new_zeros(len(lengths))
            layer = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))  # (A,)
            layer = layer.to(ce.device)
            sums = {
                "loss_ce": none.index_add(0, layer, ce),
                "loss_bbox": none.index_add(0, layer[candidate], l1),
                "loss_giou": none.index_add(0, layer[candidate], giou),
            }
            if outputs.masks:
                masks = mask_losses(outputs.masks, targets, matches, groups, ratio)
                sums["loss_mask_ce"], sums["loss_mask_dice"] = masks

            # The mean over targets. In evaluation ranks may have different numbers of batches: one
            # that asks the others for their targets would wait forever.
            count = groups * sum(len(t["labels"]) for t in targets)
            shared = self.training and across_ranks
            normalizer = mean_count(count, ce.device) if shared else max(count, 1)
            return name_terms({name: weights[name] * sums[name] / normalizer for name in sums})


def box_losses(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1 and 1 - GIoU of matched boxes (M, 4), and their IoU without gradient: (M,) each."""
    boxes_xyxy, targets_xyxy = cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(targets_cxcywh)
    iou, _ = elementwise_iou(boxes_xyxy, targets_xyxy)
    l1 = (boxes_cxcywh - targets_cxcywh).abs().sum(dim=-1)
    return l1, 1 - elementwise_giou(boxes_xyxy, targets_xyxy), iou.detach()


def class_loss(logits: Tensor, matched: tuple[Tensor, Tensor, Tensor], iou: Tensor) -> Tensor:
    """IoU-aware binary cross-entropy of `logits` (B, A, K), summed over images and classes: (A,).

    With p = sigmoid(logit), every logit costs p^2 * -log(1 - p), but for those at the indexes
    `matched` (image, candidate, class), (M,) each. Their target score is t = p^0.25 IoU^0.75, with
    `iou` (M,), and they cost t * -log(p) + (1 - t) * -log(1 - p). t is a constant, p^2 is not.
    """
    return _ClassLoss.apply(logits, matched, iou)  # type: ignore[no-any-return, no-untyped-call]


class _ClassLoss(torch.autograd.Function):
    # The gradient is computed with the value, and kept alone: automatic differentiation would keep
    # six tensors (B, A, K), and this is by far the largest part of the loss.

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, matched: tuple[Tensor, Tensor, Tensor], iou: Tensor
    ) -> Tensor:
        p, loss = logits.sigmoid(), F.softplus(logits)  # softplus(x) = -log(1 - p)
        gradient = (1 - p).mul_(loss).mul_(2).add_(p)  # of p^2 softplus(x), but for a factor p^2
        x, score = logits[matched], p[matched]
        target = (score ** (1 - IOU_SHARE) * iou**IOU_SHARE).clamp(min=LOWEST_TARGET)
        p.square_()
        loss.mul_(p)[matched] = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        gradient.mul_(p)[matched] = score - target
        ctx.save_for_backward(gradient)
        return loss.sum(dim=(0, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss[:, None], None, None


def mean_count(count: int, device: torch.device) -> Tensor:
    """The mean `count` of a rank, of 1 at least in all.

    Divided by it, the ranks' mean gradient is that of one batch that holds all ranks' images.
    """
    total, ranks = torch.tensor(float(count), dtype=torch.float32, device=device), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        ranks = torch.distributed.get_world_size()
    return total.clamp(min=1) / ranks


def name_terms(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Terms (S,) each to scalars: `x` of S = 3 to `x_0`, `x` (the last layer's) and `x_enc`."""
    named: dict[str, Tensor] = {}
    for name, values in terms.items():
        suffixes = [*(f"_{layer}" for layer in range(len(values) - 2)), "", "_enc"]
        named |= {name + end: value for end, value in zip(suffixes, values, strict=True)}
    return named
