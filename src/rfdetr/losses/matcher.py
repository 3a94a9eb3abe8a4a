"""Which candidate answers for which target: the costs, one transfer, one assignment pass (DETR,
arXiv 2005.12872).

Letters: B images, C candidates of an image (the queries of every stage and group, block after
block), K logits, T targets of an image, N of the batch, M matched pairs. A block is a set of
candidates that compete for the targets: each target is matched once in every block, each candidate
at most once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from rfdetr.geometry.boxes import cxcywh_to_xyxy, pairwise_giou

COST_CLASS, COST_L1, COST_GIOU = 2.0, 5.0, 2.0
FOCAL_ALPHA = 0.25  # the focal exponent, 2, is written as a square


class Matches(NamedTuple):
    """Indexes (M,) of matched pairs: the image, its candidate, and the target among those of the
    whole batch.
    """

    image: Tensor
    candidate: Tensor
    target: Tensor


@torch.no_grad()
def match(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    block_sizes: Sequence[int],
    other_costs: Sequence[Tensor] | None = None,
) -> Matches:
    """Minimum-cost assignment in every block of every image.

    logits (B, C, K), boxes (B, C, 4); `block_sizes` sum to C; `other_costs` (T, C) of each image
    are added. Of more targets than a block has candidates, those that it would cost most stay
    unmatched.
    """
    per_image = [
        matching_cost(
            image_logits, image_boxes, target["labels"], target["boxes"].to(image_boxes.dtype)
        )
        for image_logits, image_boxes, target in zip(logits, boxes_cxcywh, targets, strict=True)
    ]
    if other_costs is not None:
        per_image = [cost + other for cost, other in zip(per_image, other_costs, strict=True)]
    cost = torch.cat(per_image).cpu().numpy()  # (N, C), the one transfer from the device
    rows = np.cumsum([0, *map(len, per_image)])
    columns = np.cumsum([0, *block_sizes])
    pairs = []
    for image, (top, bottom) in enumerate(pairwise(rows)):
        for left, right in pairwise(columns):
            target, candidate = linear_sum_assignment(finite_cost(cost[top:bottom, left:right]))
            pairs.append(np.stack((np.full_like(target, image), candidate + left, target + top)))
    return Matches(*torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device))


def matching_cost(
    logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, target_boxes_cxcywh: Tensor
) -> Tensor:
    """Cost (T, C) of each candidate, logits (C, K) and boxes (C, 4), of one image for each of its
    targets.
    """
    classes, class_of_target = torch.unique(
        labels, return_inverse=True
    )  # many targets share few classes
    x = logits.T[classes]
    p = x.sigmoid()
    minus_log_not_p = F.softplus(x)
    positive = FOCAL_ALPHA * (1 - p).square() * (minus_log_not_p - x)
    negative = (1 - FOCAL_ALPHA) * p.square() * minus_log_not_p
    cost = (COST_CLASS * (positive - negative))[class_of_target]
    cost += COST_L1 * torch.cdist(target_boxes_cxcywh, boxes_cxcywh, p=1)
    targets_xyxy, boxes_xyxy = cxcywh_to_xyxy(target_boxes_cxcywh), cxcywh_to_xyxy(boxes_cxcywh)
    cost -= COST_GIOU * pairwise_giou(_planar(targets_xyxy), _planar(boxes_xyxy))
    return cost


def finite_cost(cost: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The cost (T, C), non-finite entries above any sum of finite ones: chosen only where nothing
    else is left.
    """
    finite = np.isfinite(cost)
    if finite.all():
        return cost
    exact = cost.astype(np.float64)
    largest = np.abs(exact).max(where=finite, initial=0.0)
    return np.where(finite, exact, (2 * largest + 1) * min(cost.shape))


def _planar(boxes: Tensor) -> Tensor:
    # The same values, coordinate after coordinate in memory: pairwise operations then run along
    # whole vectors.
    return boxes.mT.contiguous().mT
