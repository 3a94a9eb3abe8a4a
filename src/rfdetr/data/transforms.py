"""Transforms: upright RGB pixels and boxes in, a uint8 tensor of one size and relative boxes out.

A transform first draws one crop of the original image, and what the other geometric steps do. Then
pixels are cut out and resampled once, and boxes and outlines move by arithmetic. The published
recipe resizes, crops and resizes again: its intermediate pictures are never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfdetr.config.fields import input_size
from rfdetr.data.augmentation.effects import LUMA, apply_effects
from rfdetr.data.augmentation.warp import (
    Outlines,
    Steps,
    draw_placement,
    place_objects,
    place_pixels,
)
from rfdetr.geometry.polygons import Crop, Segmentation

RECIPE: Steps = {"horizontal_flip": {"p": 0.5}, "crop": {"p": 0.5}}
"""The published steps. A crop scales the short side to one of `SHORT_SIDES` and cuts out a height
and a width, each drawn from `CROP_SIDES`; all in pixels."""
SHORT_SIDES, CROP_SIDES = (400, 500, 600), (384, 600)


class Transformed(NamedTuple):
    """A network input and its boxes; `kept` says which of the given boxes these are.

    `crop` cuts the view out of the image; or, where there are `outlines`, out of what these n are
    in.
    """

    image: Tensor  # (3, height, width) uint8
    boxes_cxcywh: NDArray[np.float32]  # (n, 4), relative to the crop
    kept: NDArray[np.bool_]  # of each given box
    crop: Crop
    outlines: Sequence[Segmentation | None] | None = None

    def outlines_of(self, given: Outlines) -> Outlines:
        """Outlines of the n boxes, in what `crop` is of, of those `given` to the transform."""
        kept = np.flatnonzero(self.kept).tolist()
        return [given[at] for at in kept] if self.outlines is None else self.outlines


@dataclass(frozen=True)
class TrainTransform:
    """The published recipe; with `color_jitter`, other brightness, contrast and saturation as well;
    or other `steps` of a single image.

    A call takes an image (H, W, 3) uint8 and its boxes (m, 4) xyxy in pixels, and draws from `rng`.
    Its `size` in pixels, (height, width) or the side of a square, is for this image alone: that of
    its step in multi-scale training.
    """

    size: int | tuple[int, int]  # (height, width), or the side of a square, pixels
    color_jitter: float = 0.0  # from 0 to 1, see `jitter_color`
    steps: Steps = field(default_factory=lambda: RECIPE)
    _draws_crop: ClassVar[bool] = True
    own_size: ClassVar[bool] = False

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes_xyxy: NDArray[np.float32],
        rng: np.random.Generator,
        outlines: Outlines = (),
        size: int | tuple[int, int] | None = None,
    ) -> Transformed:
        height, width = image.shape[:2]
        steps = self.steps if self._draws_crop else {}
        crop = draw_crop(height, width, rng, steps) if steps else Crop(0, 0, width, height)
        wanted, moved = input_size(size or self.size), None
        placement = draw_placement(crop, steps, rng)
        pixels = place_pixels(image, placement, wanted)
        if placement.plain:
            boxes, kept = move_boxes(boxes_xyxy, crop, outlines)
        else:
            matrix, crop = placement.to_view(wanted), Crop(0, 0, wanted[1], wanted[0])
            boxes, kept, moved = place_objects(boxes_xyxy, outlines, matrix, wanted)
        if self.color_jitter:
            pixels = jitter_color(pixels, self.color_jitter, rng)
        return Transformed(apply_effects(pixels, steps, rng), boxes, kept, crop, moved)


class EvalTransform(TrainTransform):
    """The whole image, stretched to the size: what validation, test and predict share."""

    _draws_crop = False


class OwnSizeTransform(TrainTransform):
    """The whole image in its own size, for what slices it. Its pixels, perhaps a hundred millions,
    are neither measured nor given bitmaps of masks.
    """

    own_size = True

    def __init__(self) -> None:
        super().__init__(0)

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes_xyxy: NDArray[np.float32],
        *_: Any,
    ) -> Transformed:
        height, width = image.shape[:2]
        crop = Crop(0, 0, width, height)
        boxes, kept = move_boxes(boxes_xyxy, crop)
        return Transformed(torch.from_numpy(image).permute(2, 0, 1), boxes, kept, crop)


def draw_crop(height: int, width: int, rng: np.random.Generator, steps: Steps = RECIPE) -> Crop:
    """A crop of an image (height, width), mirrored or not, drawn by the recipe's two `steps`, in
    the image's own pixels. Two numbers are drawn for them even where they are off.
    """
    flips, crops = (steps.get(name, {"p": 0.0})["p"] for name in ("horizontal_flip", "crop"))
    flipped = rng.random() < flips
    if rng.random() < 1 - crops:
        return Crop(0, 0, width, height, flipped)
    scale = int(rng.choice(SHORT_SIDES)) / min(height, width)
    spans = []  # first pixel and the one past the last, from top to bottom and from left to right
    for side in (height, width):
        scaled = round(side * scale)
        length = int(rng.integers(CROP_SIDES[0], min(scaled, CROP_SIDES[1]) + 1))
        start = int(rng.integers(0, scaled - length + 1))
        first = min(round(start / scale), side - 1)
        spans.append((first, min(max(round((start + length) / scale), first + 1), side)))
    (top, bottom), (left, right) = spans
    return Crop(left, top, right, bottom, flipped)


def move_boxes(
    boxes_xyxy: NDArray[np.float32], crop: Crop, outlines: Outlines = ()
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clip boxes (m, 4) to `crop`; cxcywh (n, 4) relative to it, and which boxes are kept (m,).

    A clipped box with an outline becomes the box around what the crop shows of the outline. A box
    that shows less than a pixel of width or height is dropped, unless it is that small by itself.
    """
    corner = np.array(crop[:2], np.float32)
    extent = np.array(crop[2:4], np.float32) - corner
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    shown_low, shown_high = np.clip(low - corner, 0, extent), np.clip(high - corner, 0, extent)
    if outlines:
        cut = ((shown_low != low - corner) | (shown_high != high - corner)).any(1)
        for i in np.flatnonzero(cut & (shown_high > shown_low).all(1)).tolist():
            if (outline := outlines[i]) is not None:
                box = outline.bounds(crop)
                moved = np.zeros((2, 2)) if box is None else box.reshape(2, 2) - corner
                shown_low[i], shown_high[i] = moved
    visible = shown_high - shown_low
    kept = ((visible > 0) & ((visible >= 1) | (visible >= 0.999 * (high - low)))).all(1)
    centres = (shown_low + shown_high)[kept] / (2 * extent)
    if crop.flipped:
        centres[:, 0] = 1 - centres[:, 0]
    return np.concatenate((centres, visible[kept] / extent), axis=1, dtype=np.float32), kept


def jitter_color(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Multiply brightness, contrast and saturation of `image` (3, H, W) uint8 by drawn factors.

    Each factor is from 1 - strength to 1 + strength. All three operations are linear in a pixel's
    colour, its gray and the image's mean gray (of every fourth row), so they are applied as one.
    Values are rounded one by one, so the result does not depend on the number of threads.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).tolist()
    luma = torch.tensor(LUMA, dtype=torch.float32)
    mean_gray = (image[:, ::4].double().mean((1, 2)) @ luma.double()).item()
    colors = image.float()
    red, green, blue = brightness * contrast * (1 - saturation) * luma
    shift = (colors[0] * red).add_(colors[1] * green).add_(colors[2] * blue)  # (H, W)
    shift.add_(brightness * (1 - contrast) * mean_gray + 0.5)  # + 0.5: cutting to uint8 rounds
    colors.mul_(brightness * contrast * saturation).add_(shift).clamp_(0, 255)
    return torch.from_numpy(colors.numpy().astype(np.uint8))  # a third of the time of torch's cast
