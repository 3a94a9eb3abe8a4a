"""Objects drawn on their image, for the command line, the loggers and the demo alike."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from supervision import Detections

_FIRST_USE = threading.Lock()
SMALL = 512  # pixels of the longer side; smaller images get thin lines


@functools.cache
def import_supervision() -> ModuleType:
    """Imported at the first use (half a second); without OpenCV it is complete for us, so it need
    not warn.
    """
    with (
        _FIRST_USE,
        warnings.catch_warnings(),
    ):  # warning filters are the process's: threads must not interleave
        warnings.filterwarnings("ignore", message="OpenCV")
        import supervision
    return supervision


def draw(image: np.ndarray, found: Detections, texts: Sequence[str]) -> Image.Image:
    """A copy of the image (H, W, 3) uint8 with the masks, boxes and texts of what was found,
    coloured by class.
    """
    sv = import_supervision()
    picture = Image.fromarray(image)
    if found.mask is not None:
        picture = sv.MaskAnnotator(opacity=0.4).annotate(picture, found)
    thickness, padding = (1, 2) if max(image.shape) < SMALL else (2, 5)
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
