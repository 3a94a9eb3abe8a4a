"""Which candidate answers for which target: costs, one transfer, one assignment pass.

As in DETR (arXiv 2005.12872). Letters as in `rfdetr.models`. Candidates compete in blocks, the
queries of one group in one layer: each target is matched once in every block, each candidate at
most once. With 3 targets, 2 groups and S = 3 sets of predictions an image has M = 18 pairs.
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
Targets = Sequence[Mapping[str, Tensor]]


class Matches(NamedTuple):
    """Indexes (M,) int64 of matched pairs: the image, its candidate, the target in the batch."""

    image: Tensor
    candidate: Tensor
    target: Tensor


@torch.no_grad()
def match(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    targets: Targets,
    block_sizes: Sequence[int],
    other_costs: Sequence[Tensor] | None = None,
) -> Matches:
    """Minimum-cost assignment in every block of every image.

    `logits` (B, A, K), `boxes_cxcywh` (B, A, 4); `block_sizes` sum to A; `other_costs`, (T, A) of
    each image, are added. Where a block has fewer candidates than there are targets, those targets
    stay unmatched that would cost most.
    """
    costs = []
    for image, target in enumerate(targets):
        labels, truth = target["labels"], target["boxes"].to(boxes_cxcywh.dtype)
        cost = matching_cost(logits[image], boxes_cxcywh[image], labels, truth)
        costs.append(cost if other_costs is None else cost + other_costs[image])
    matrix = torch.cat(costs).cpu().numpy()  # (targets of the batch, A): the one transfer
    rows = np.cumsum([0, *map(len, costs)])
    columns = np.cumsum([0, *block_sizes])
    pairs = []
    for image, (top, bottom) in enumerate(pairwise(rows)):
        for left, right in pairwise(columns):
            target, candidate = linear_sum_assignment(finite_cost(matrix[top:bottom, left:right]))
            pairs.append(np.stack((np.full_like(target, image), candidate + left, target + top)))
    return Matches(*torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device))


def matching_cost(
    logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, target_boxes_cxcywh: Tensor
) -> Tensor:
    """Cost (T, A) of each candidate of an image for each of its targets.

    `logits` (A, K), `boxes_cxcywh` (A, 4), `labels` (T,), `target_boxes_cxcywh` (T, 4).
    """
    # A row for each class or, where these are fewer, for each target. (Not for each class that is
    # there: a GPU would have to be waited for to tell how many.)
    fewer_targets = len(labels) < logits.shape[1]
    x = logits.T[labels] if fewer_targets else logits.T
    p = x.sigmoid()
    minus_log_not_p = F.softplus(x)
    positive = FOCAL_ALPHA * (1 - p).square() * (minus_log_not_p - x)
    negative = (1 - FOCAL_ALPHA) * p.square() * minus_log_not_p
    cost = COST_CLASS * (positive - negative)
    if not fewer_targets:
        cost = cost[labels]
    cost += COST_L1 * torch.cdist(target_boxes_cxcywh, boxes_cxcywh, p=1)
    # The same values, stored coordinate after coordinate: pairwise work then runs along vectors.
    targets_xyxy, boxes_xyxy = (
        cxcywh_to_xyxy(boxes).mT.contiguous().mT for boxes in (target_boxes_cxcywh, boxes_cxcywh)
    )
    cost -= COST_GIOU * pairwise_giou(targets_xyxy, boxes_xyxy)
    return cost


def finite_cost(cost: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The `cost` (T, candidates of a block) with every NaN and infinity replaced by one large cost.

    It is larger than any sum of finite ones: such pairs are matched only where no other is left.
    """
    finite = np.isfinite(cost)
    if finite.all():
        return cost
    exact = cost.astype(np.float64)
    largest = np.abs(exact).max(where=finite, initial=0.0)
    return np.where(finite, exact, (2 * largest + 1) * min(cost.shape))
