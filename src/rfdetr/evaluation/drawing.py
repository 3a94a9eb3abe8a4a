"""Objects drawn on their image, for the command line, the loggers and the demo alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rfdetr.geometry.detections import import_supervision
from rfdetr.models.detector import full_size_masks

if TYPE_CHECKING:
    from supervision import Detections


def draw(image: np.ndarray, found: Detections, texts: Sequence[str]) -> Image.Image:
    """A copy of `image` (H, W, 3) uint8 with masks, boxes and one of `texts` for each object."""
    sv = import_supervision()
    picture = Image.fromarray(image)
    if found.mask is not None:
        picture = sv.MaskAnnotator(opacity=0.4).annotate(picture, found)
    thickness, padding = (1, 2) if max(image.shape) < 512 else (2, 5)  # finer in small images
    picture = sv.BoxAnnotator(thickness=thickness).annotate(picture, found)
    scale = max(0.3, sv.calculate_optimal_text_scale(image.shape[1::-1]))
    labels = sv.LabelAnnotator(text_scale=scale, text_padding=padding, smart_position=True)
    drawn: Image.Image = labels.annotate(picture, found, list(texts))
    return drawn


def draw_objects(
    image: np.ndarray, objects: Mapping[str, Tensor], names: Sequence[str]
) -> Image.Image:
    """`draw` of a target or of detections: "boxes" (n, 4) xyxy in pixels of the image, "labels"
    (n,) into `names`, perhaps "scores"; "masks" (n, h, w) bool, or "mask_logits", of all of it.
    """
    labels, scores = objects["labels"].tolist(), objects.get("scores")
    texts = [names[label] if label < len(names) else str(label) for label in labels]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    masks, size = objects.get("masks", objects.get("mask_logits")), image.shape[:2]
    if masks is not None:
        logits = masks if masks.is_floating_point() else masks.float() - 0.5
        none = masks.new_zeros(0, *size, dtype=torch.bool)
        masks = torch.cat([*full_size_masks(logits, size), none])
    detections = import_supervision().Detections(
        xyxy=objects["boxes"].float().cpu().numpy(),
        class_id=objects["labels"].cpu().numpy(),
        mask=None if masks is None else masks.cpu().numpy(),
    )
    return draw(image, detections, texts)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height, a white line between them."""
    pair = Image.new("RGB", (left.width + 6 + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 6, 0))
    return pair
