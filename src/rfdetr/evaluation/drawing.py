"""Objects drawn on their image, for the command line, the loggers and the demo alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rfdetr.geometry.detections import import_supervision

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


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height, a white line between them."""
    pair = Image.new("RGB", (left.width + 6 + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 6, 0))
    return pair
