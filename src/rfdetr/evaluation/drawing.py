"""Objects drawn on their image, for the command line, the loggers and the demo alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from rfdetr.geometry.detections import import_supervision
from rfdetr.models.detector import full_size_masks

if TYPE_CHECKING:
    from supervision import Detections

COLOURS = (
    *("#ff3b30", "#00b2ff", "#ffd60a", "#30d158", "#ff2dd0"),
    *("#ff9500", "#7d5fff", "#00e5c8", "#a2845e", "#c8ff00"),
)
"""Of classes by label, where no text names them."""


def draw(
    image: np.ndarray, found: Detections, texts: Sequence[str] | None, fine: bool = False
) -> Image.Image:
    """A copy of `image` (H, W, 3) uint8 with masks, boxes and one of `texts` for each object.

    Without `texts`, `COLOURS` alone tell the classes. `fine`: with thin lines, as small images are.
    """
    sv = import_supervision()
    style = {} if texts is not None else {"color": sv.ColorPalette.from_hex(list(COLOURS))}
    picture = Image.fromarray(image)
    if found.mask is not None:
        picture = sv.MaskAnnotator(opacity=0.4, **style).annotate(picture, found)
    thickness, padding = (1, 2) if fine or max(image.shape) < 512 else (2, 5)
    picture = sv.BoxAnnotator(thickness=thickness, **style).annotate(picture, found)
    if texts is not None:
        scale = max(0.3, sv.calculate_optimal_text_scale(image.shape[1::-1]))
        labels = sv.LabelAnnotator(text_scale=scale, text_padding=padding, smart_position=True)
        picture = labels.annotate(picture, found, list(texts))
    drawn: Image.Image = picture
    return drawn


def edges(masks: Tensor) -> Tensor:
    """The outermost pixels of masks (n, H, W) bool; what the image's border cuts is open there."""
    inside = masks.clone()
    inside[:, 1:] &= masks[:, :-1]
    inside[:, :-1] &= masks[:, 1:]
    inside[:, :, 1:] &= masks[:, :, :-1]
    inside[:, :, :-1] &= masks[:, :, 1:]
    return masks & ~inside


def draw_objects(
    image: np.ndarray,
    objects: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    named: bool = True,
    outlined: bool = False,
) -> Image.Image:
    """`draw` of a target or of detections: "boxes" (n, 4) xyxy in pixels of the image, "labels"
    (n,) into `names`, perhaps "scores"; "masks" (n, h, w) bool, or "mask_logits", of all of it.
    Names are written unless `named` is False; `outlined` masks are lines, not areas.
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
    if masks is not None and outlined:
        lines = edges(masks).cpu().numpy()
        image, masks = image.copy(), None
        for label, line in zip(labels, lines, strict=True):
            image[line] = ImageColor.getrgb(COLOURS[label % len(COLOURS)])
    detections = import_supervision().Detections(
        xyxy=objects["boxes"].float().cpu().numpy(),
        class_id=objects["labels"].cpu().numpy(),
        mask=None if masks is None else masks.cpu().numpy(),
    )
    return draw(image, detections, texts if named else None, fine=outlined)


def tiled(pictures: Sequence[Image.Image], columns: int, line: int = 4) -> Image.Image:
    """Pictures of one size in rows of `columns`, with `line` white pixels between them."""
    (width, height), rows = pictures[0].size, math.ceil(len(pictures) / columns)
    size = columns * (width + line) - line, rows * (height + line) - line
    whole = Image.new("RGB", size, "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        whole.paste(picture, (column * (width + line), row * (height + line)))
    return whole


def with_legend(picture: Image.Image, title: str, names: Sequence[str]) -> Image.Image:
    """The picture under a line of text, and the name of each label beside its colour."""
    font, places, x, y = ImageFont.load_default(16), [], 8, 32
    for name in names:
        wide = int(font.getlength(name[:40])) + 44
        if x > 8 and x + wide > picture.width:
            x, y = 8, y + 24
        places.append((x, y))
        x += wide
    top = y + 28 if places else 30
    whole = Image.new("RGB", (picture.width, top + picture.height), "white")
    whole.paste(picture, (0, top))
    pen = ImageDraw.Draw(whole)
    pen.text((8, 6), title, "black", font)
    for label, (name, (left, upper)) in enumerate(zip(names, places, strict=True)):
        pen.rectangle((left, upper + 2, left + 16, upper + 18), COLOURS[label % len(COLOURS)])
        pen.text((left + 22, upper), name[:40], "black", font)
    return whole


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height, a white line between them."""
    pair = Image.new("RGB", (left.width + 6 + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 6, 0))
    return pair
