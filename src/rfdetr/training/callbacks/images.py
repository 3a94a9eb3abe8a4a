"""Pictures of predictions against the truth, for the loggers that take pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from pytorch_lightning import Callback
from torch import Tensor

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.training.callbacks.evaluation import class_names
from rfdetr.training.loggers import log_images, takes_images

TRUTH, FOUND = (40, 200, 60), (235, 60, 40)
SIDE = 384  # of each half, pixels


class PredictionImagesCallback(Callback):
    """Shows the first validation images of each pass as pairs: the truth on the left, what is found on the right."""

    def __init__(self, count: int = 4, threshold: float = 0.3) -> None:
        self.count = count
        self.threshold = threshold

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        wanted = batch_idx == 0 and trainer.is_global_zero and not (trainer.sanity_checking or trainer.fast_dev_run)
        takers = [run_logger for run_logger in trainer.loggers if takes_images(run_logger)]
        if not wanted or not takers:
            return
        names = class_names(pl_module)
        samples = zip(batch[0].tensors, outputs["targets"], outputs["results"], strict=True)
        pairs = [self._pair(*sample, names) for _, sample in zip(range(self.count), samples, strict=False)]
        for run_logger in takers:
            log_images(run_logger, "val/predictions", pairs, trainer.global_step)

    def _pair(
        self, pixels: Tensor, truth: Mapping[str, Tensor], found: Mapping[str, Tensor], names: Sequence[str]
    ) -> Image.Image:
        picture = _picture(pixels)
        kept = found["scores"] >= self.threshold
        to_side = SIDE / truth["orig_size"].flip(0).repeat(2)  # original pixels (x, y, x, y) to the picture's
        scored = zip(found["labels"][kept].tolist(), found["scores"][kept].tolist(), strict=True)
        halves = (
            (cxcywh_to_xyxy(truth["boxes"]) * SIDE, [_name(label, names) for label in truth["labels"].tolist()], TRUTH),
            (found["boxes"][kept] * to_side, [f"{_name(label, names)} {score:.2f}" for label, score in scored], FOUND),
        )
        pair = Image.new("RGB", (2 * SIDE, SIDE))
        for column, (boxes, texts, colour) in enumerate(halves):
            pair.paste(_drawn(picture.copy(), boxes.float().cpu(), texts, colour), (column * SIDE, 0))
        return pair


def _picture(pixels: Tensor) -> Image.Image:
    """An image of a batch, uint8 or normalised floats, (3, H, W)."""
    if pixels.is_floating_point():
        mean, deviation = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (pixels * deviation + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).resize((SIDE, SIDE))


def _drawn(picture: Image.Image, boxes: Tensor, texts: Sequence[str], colour: tuple[int, int, int]) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    for (left, top, right, bottom), text in zip(boxes.tolist(), texts, strict=True):
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
        spot = (left + 3, top + 1)
        draw.rectangle(draw.textbbox(spot, text), fill=colour)
        draw.text(spot, text, fill=(255, 255, 255))
    return picture


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else str(label)
