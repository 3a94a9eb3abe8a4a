"""From a network's predictions to detections in pixels: one function for training, prediction and
export alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.models.detector import DetectorOutput

_PIXELS_AT_ONCE = 2**18  # full-size mask logits at a time: 1 MiB, which a CPU's cache holds


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    sizes: Tensor,
    num_select: int,
    mask_logits: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """The `num_select` best (query, class) pairs of each image, best first; equal scores in the
    order of the pairs.

    Takes logits (B, Q, K), boxes (B, Q, 4) relative to the image, sizes (B, 2) of the images
    (height, width) in pixels, and mask logits (B, Q, Hm, Wm). Each image gives "scores" (n,)
    float32, "labels" (n,) int64, "boxes" (n, 4) float32 xyxy pixels inside the image and, where
    there are masks, their "mask_logits" (n, Hm, Wm) for `full_size_masks`.
    """
    scores = logits.float().sigmoid().flatten(1)
    pairs = _best_first(scores, num_select)
    scores = scores.take_along_dim(pairs, dim=1)
    queries = pairs // logits.shape[-1]
    labels = pairs % logits.shape[-1]
    boxes = cxcywh_to_xyxy(boxes_cxcywh.float().take_along_dim(queries.unsqueeze(-1), dim=1))
    limits = (
        sizes.to(boxes).flip(-1).repeat(1, 2).unsqueeze(1)
    )  # B 1 (width, height, width, height)
    boxes = torch.minimum((boxes * limits).clamp(min=0), limits)
    detections = [
        {"scores": s, "labels": c, "boxes": b}
        for s, c, b in zip(scores, labels, boxes, strict=True)
    ]
    if mask_logits is not None:
        for found, of_queries, chosen in zip(detections, mask_logits, queries, strict=True):
            found["mask_logits"] = of_queries[chosen]
    return detections


def postprocess_outputs(
    outputs: DetectorOutput, sizes: Tensor, num_select: int
) -> list[dict[str, Tensor]]:
    """`postprocess` of what a network gives: its last decoder layer, with masks where it has them."""
    last = len(outputs.logits) - 1
    masks = None if outputs.masks is None else outputs.masks.mask_logits(last)
    return postprocess(outputs.logits[last], outputs.boxes[last], sizes, num_select, masks)


def _best_first(scores: Tensor, count: int) -> Tensor:
    """Indexes (B, count) of the largest scores (B, n), which are not negative; ties to the lower
    index.

    `topk` leaves ties open and a stable sort takes ten times as long. The bits of floats from 0 up
    order as integers, so score and index make one number without ties.
    """
    ranks = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    return ((scores.view(torch.int32).long() << 32) + ranks).topk(count, dim=1).indices


def full_size_masks(mask_logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Mask logits (n, Hm, Wm) to bool masks (k, height, width), in parts: many large ones fill a
    memory.
    """
    for part in mask_logits.split(max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))):  # type: ignore[no-untyped-call]
        yield F.interpolate(part[:, None].float(), size=size, mode="bilinear")[:, 0] > 0
