"""The training and the evaluation recipe: upright RGB pixels and boxes in, square uint8 tensor and
relative boxes out.

A recipe is drawn first as one window of the original image; pixels are then cropped and resampled
once, boxes and outlines move analytically, so no intermediate picture of the published recipe
(resize, crop, resize) is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.data.images import resize_square
from rfdetr.geometry.polygons import Crop, Segmentation

SHORT_SIDES = (400, 500, 600)  # pixels the short side is scaled to before cropping
CROP_SIDES = (384, 600)  # smallest and largest crop side, in pixels of that scale
_LUMA = (0.299, 0.587, 0.114)

Segmentations = Sequence[Segmentation | None]
"""One for each box, None where there is no outline; empty where outlines are not wanted."""


class View(NamedTuple):
    """A network input, the part of the image it shows, its boxes; `kept` says which of the given
    ones these are.
    """

    image: Tensor  # (3, size, size) uint8
    boxes_cxcywh: NDArray[np.float32]  # (n, 4), relative to the view
    kept: NDArray[np.bool_]
    window: Crop


@dataclass(frozen=True)
class EvaluationView:
    """The whole image, resized to the square; what validation, test and predict share."""

    size: int  # pixels

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes_xyxy: NDArray[np.float32],
        _rng: np.random.Generator,
        _outlines: Segmentations = (),
        size: int | None = None,
    ) -> View:
        window = Crop(0, 0, image.shape[1], image.shape[0])
        return View(
            resize_square(image, size or self.size), *move_boxes(boxes_xyxy, window), window
        )


@dataclass(frozen=True)
class TrainingView:
    """Mirrored half the time; half the time a random crop; optionally other brightness, contrast
    and saturation.

    `size` of a call, in pixels, is for this view alone: that of its step in multi-scale training.
    """

    size: int  # pixels
    color_jitter: float = 0.0

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes_xyxy: NDArray[np.float32],
        rng: np.random.Generator,
        outlines: Segmentations = (),
        size: int | None = None,
    ) -> View:
        window = draw_window(image.shape[0], image.shape[1], rng)
        boxes, kept = move_boxes(boxes_xyxy, window, outlines)
        shown = image[window.top : window.bottom, window.left : window.right]
        pixels = resize_square(shown, size or self.size)
        if window.flipped:
            pixels = pixels.flip(-1)
        if self.color_jitter:
            pixels = jitter_color(pixels, self.color_jitter, rng)
        return View(pixels, boxes, kept, window)


def draw_window(height: int, width: int, rng: np.random.Generator) -> Crop:
    """The published recipe's crop (short side to 400, 500 or 600; 384 to 600 a side) in the image's
    own pixels.
    """
    flipped = rng.random() < 0.5
    if rng.random() < 0.5:
        return Crop(0, 0, width, height, flipped)
    scale = int(rng.choice(SHORT_SIDES)) / min(height, width)
    top, bottom = _draw_span(height, scale, rng)
    left, right = _draw_span(width, scale, rng)
    return Crop(left, top, right, bottom, flipped)


def _draw_span(side: int, scale: float, rng: np.random.Generator) -> tuple[int, int]:
    smallest, largest = CROP_SIDES
    scaled = round(side * scale)
    length = int(rng.integers(smallest, min(scaled, largest) + 1))
    start = int(rng.integers(0, scaled - length + 1))
    first = min(round(start / scale), side - 1)
    return first, min(max(round((start + length) / scale), first + 1), side)


def move_boxes(
    boxes_xyxy: NDArray[np.float32], window: Crop, outlines: Segmentations = ()
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clip boxes (n, 4) to a window and express them as cxcywh relative to it.

    A clipped box with an outline becomes the box around what the window shows of that. Dropped:
    what shows less than a pixel of width or height, unless the whole box is that small and inside.
    """
    corner = np.array([window.left, window.top], np.float32)
    extent = np.array([window.right, window.bottom], np.float32) - corner
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    clipped_low = np.clip(low - corner, 0, extent)
    clipped_high = np.clip(high - corner, 0, extent)
    if outlines:
        cut = ((clipped_low != low - corner) | (clipped_high != high - corner)).any(1)
        overlaps = (clipped_high > clipped_low).all(1)
        for i in np.flatnonzero(cut & overlaps).tolist():
            if (outline := outlines[i]) is not None:
                box = outline.bounds(window)
                clipped_low[i], clipped_high[i] = (
                    (0, 0) if box is None else (box[:2] - corner, box[2:] - corner)
                )
    visible = clipped_high - clipped_low
    kept = ((visible > 0) & ((visible >= 1) | (visible >= 0.999 * (high - low)))).all(1)
    centres = (clipped_low + clipped_high)[kept] / (2 * extent)
    if window.flipped:
        centres[:, 0] = 1 - centres[:, 0]
    return np.concatenate((centres, visible[kept] / extent), axis=1, dtype=np.float32), kept


def jitter_color(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation of a uint8 (3, H, W) image each times 1 - strength to 1 +
    strength.

    All three are linear in a pixel's colour, its gray and the mean gray, so they are applied as
    one. The mean is that of every fourth row. Each operation rounds each value by itself, so the
    result does not depend on threads.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).tolist()
    luma = torch.tensor(_LUMA, dtype=torch.float32)
    mean_gray = (image[:, ::4].double().mean((1, 2)) @ luma.double()).item()
    colors = image.float()
    weights = brightness * contrast * (1 - saturation) * luma
    shift = (
        (colors[0] * weights[0]).add_(colors[1] * weights[1]).add_(colors[2] * weights[2])
    )  # (H, W)
    shift.add_(
        brightness * (1 - contrast) * mean_gray + 0.5
    )  # the half makes cutting to uint8 rounding
    colors.mul_(brightness * contrast * saturation).add_(shift).clamp_(0, 255)
    return torch.from_numpy(
        colors.numpy().astype(np.uint8)
    )  # three times as fast as torch's own cast
