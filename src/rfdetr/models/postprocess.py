"""From a network's predictions to detections in pixels: one function for training, prediction and export alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.geometry.boxes import cxcywh_to_xyxy

_MASKS_AT_ONCE = 16  # bounds the memory of full-size mask logits


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    sizes: Tensor,
    num_select: int,
    mask_logits: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """The `num_select` best (query, class) pairs of each image, best first; equal scores in the order of the pairs.

    Takes logits (B, Q, K), boxes (B, Q, 4) relative to the image, sizes (B, 2) of the images (height, width) in pixels,
    and mask logits (B, Q, Hm, Wm). Each image gives "scores" (n,) float32, "labels" (n,) int64, "boxes" (n, 4) float32
    xyxy pixels inside the image and, with mask logits, "masks" (n, height, width) bool.
    """
    scores = logits.float().sigmoid().flatten(1)
    pairs = _best_first(scores, num_select)
    scores = scores.take_along_dim(pairs, dim=1)
    queries = pairs // logits.shape[-1]
    labels = pairs % logits.shape[-1]
    boxes = cxcywh_to_xyxy(boxes_cxcywh.float().take_along_dim(queries.unsqueeze(-1), dim=1))
    limits = sizes.to(boxes).flip(-1).repeat(1, 2).unsqueeze(1)  # B 1 (width, height, width, height)
    boxes = torch.minimum((boxes * limits).clamp(min=0), limits)
    detections = [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes, strict=True)]
    if mask_logits is not None:
        for image, (height, width) in enumerate(sizes.tolist()):
            chosen = mask_logits[image, queries[image]]
            detections[image]["masks"] = _full_size_masks(chosen, (int(height), int(width)))
    return detections


def _best_first(scores: Tensor, count: int) -> Tensor:
    """Indexes (B, count) of the largest scores (B, n), which are not negative; ties to the lower index.

    `topk` leaves ties open and a stable sort takes ten times as long. The bits of floats from 0 up order as integers,
    so score and index make one number without ties.
    """
    ranks = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    return ((scores.view(torch.int32).long() << 32) + ranks).topk(count, dim=1).indices


def _full_size_masks(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (n, Hm, Wm) -> masks (n, height, width)."""
    masks = torch.empty((mask_logits.shape[0], *size), dtype=torch.bool, device=mask_logits.device)
    for start in range(0, mask_logits.shape[0], _MASKS_AT_ONCE):
        part = mask_logits[start : start + _MASKS_AT_ONCE, None].float()
        masks[start : start + _MASKS_AT_ONCE] = F.interpolate(part, size=size, mode="bilinear")[:, 0] > 0
    return masks
