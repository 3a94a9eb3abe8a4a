"""From predictions to n = `num_select` detections in pixels. Letters as in `rfdetr.models`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.models.detector import DetectorOutput

_PIXELS_AT_ONCE = 2**18  # full-size mask logits at a time: 1 MiB, which a CPU's cache holds
Detections = list[dict[str, Tensor]]


def postprocess(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    sizes: Tensor,
    num_select: int,
    mask_logits: Tensor | None = None,
) -> Detections:
    """The n best (query, class) pairs of each image, best first; ties in the order of the pairs.

    Takes `logits` (B, Q, K), `boxes_cxcywh` (B, Q, 4) relative to the image, `sizes` (B, 2) height
    and width of the images in pixels, and `mask_logits` (B, Q, h, w). Each image gives "scores"
    (n,) float32, "labels" (n,) int64, "boxes" (n, 4) float32 xyxy in pixels inside the image and,
    where there are masks, their "mask_logits" (n, h, w) for `full_size_masks`.
    """
    scores = logits.float().sigmoid().flatten(1)  # B QK
    # `topk` leaves ties open and a stable sort takes ten times as long. Bits of floats from 0 up
    # order as integers do: score (high bits) and index (low bits) make one number without ties.
    ranks = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    pairs = ((scores.view(torch.int32).long() << 32) + ranks).topk(num_select, dim=1).indices
    queries, labels = pairs // logits.shape[-1], pairs % logits.shape[-1]
    boxes = cxcywh_to_xyxy(boxes_cxcywh.float().take_along_dim(queries.unsqueeze(-1), dim=1))
    limits = sizes.to(boxes).flip(-1).repeat(1, 2).unsqueeze(1)  # B 1 4: width, height, twice
    boxes = torch.minimum((boxes * limits).clamp(min=0), limits)
    parts: dict[str, Any] = {"scores": scores.take_along_dim(pairs, dim=1)}
    parts |= {"labels": labels, "boxes": boxes}
    if mask_logits is not None:
        parts["mask_logits"] = [of_all[q] for of_all, q in zip(mask_logits, queries, strict=True)]
    return [{name: values[image] for name, values in parts.items()} for image in range(len(pairs))]


def postprocess_outputs(outputs: DetectorOutput, sizes: Tensor, num_select: int) -> Detections:
    """`postprocess` of a network's last decoder layer, with masks where it has them."""
    last = len(outputs.logits) - 1
    masks = None if outputs.masks is None else outputs.masks.mask_logits(last)
    return postprocess(outputs.logits[last], outputs.boxes[last], sizes, num_select, masks)


def full_size_masks(mask_logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Mask logits (n, h, w) to bool masks (some, *size), in parts: all at once fill a memory."""
    for part in mask_logits.split(max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))):  # type: ignore[no-untyped-call]
        yield F.interpolate(part[:, None].float(), size=size, mode="bilinear")[:, 0] > 0
