"""Pictures of predictions against the truth, for the loggers that take pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback
from torch import Tensor

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.evaluation.drawing import draw, side_by_side
from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.geometry.detections import import_supervision
from rfdetr.models.postprocess import full_size_masks
from rfdetr.training.callbacks.validation import class_names
from rfdetr.training.loggers import log_images, takes_images

SIDE = 384  # of each half, pixels


class PredictionImagesCallback(Callback):
    """Shows the first validation images of each pass as pairs: the truth on the left, what is found
    on the right.
    """

    def __init__(self, count: int = 4, threshold: float = 0.3) -> None:
        self.count = count
        self.threshold = threshold

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        wanted = (
            batch_idx == 0
            and trainer.is_global_zero
            and not (trainer.sanity_checking or trainer.fast_dev_run)
        )
        takers = [run_logger for run_logger in trainer.loggers if takes_images(run_logger)]
        if not wanted or not takers:
            return
        names = class_names(pl_module)
        samples = zip(batch[0].tensors, outputs["targets"], outputs["results"], strict=True)
        pairs = [
            self._pair(*sample, names)
            for _, sample in zip(range(self.count), samples, strict=False)
        ]
        for run_logger in takers:
            log_images(run_logger, "val/predictions", pairs, trainer.global_step)

    def _pair(
        self,
        pixels: Tensor,
        truth: Mapping[str, Tensor],
        found: Mapping[str, Tensor],
        names: Sequence[str],
    ) -> Image.Image:
        kept = {name: values[found["scores"] >= self.threshold] for name, values in found.items()}
        to_side = SIDE / truth["orig_size"].flip(0).repeat(
            2
        )  # original pixels (x, y, x, y) to the picture's
        scored = zip(_named(kept["labels"], names), kept["scores"].tolist(), strict=True)
        found_texts = [f"{name} {score:.2f}" for name, score in scored]
        true_boxes, found_boxes = cxcywh_to_xyxy(truth["boxes"]) * SIDE, kept["boxes"] * to_side
        picture, true_texts = _picture(pixels), _named(truth["labels"], names)
        return side_by_side(
            _drawn(picture, true_boxes, truth["labels"], true_texts, truth.get("masks")),
            _drawn(picture, found_boxes, kept["labels"], found_texts, kept.get("mask_logits")),
        )


def _named(labels: Tensor, names: Sequence[str]) -> list[str]:
    return [names[label] if label < len(names) else str(label) for label in labels.tolist()]


def _picture(pixels: Tensor) -> np.ndarray:
    """An image of a batch, uint8 or normalised floats, (3, H, W), as pixels (SIDE, SIDE, 3)."""
    if pixels.is_floating_point():
        mean, deviation = (
            pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        pixels = (pixels * deviation + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.asarray(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).resize((SIDE, SIDE)))


def _drawn(
    picture: np.ndarray,
    boxes_xyxy: Tensor,
    labels: Tensor,
    texts: Sequence[str],
    masks: Tensor | None,
) -> Image.Image:
    """Boxes in pixels of the picture; masks (n, h, w) of all of it, bool or logits."""
    if masks is not None:
        logits = masks if masks.is_floating_point() else masks.float() - 0.5
        masks = torch.cat(
            [
                *full_size_masks(logits, (SIDE, SIDE)),
                masks.new_zeros(0, SIDE, SIDE, dtype=torch.bool),
            ]
        )
    found = import_supervision().Detections(
        xyxy=boxes_xyxy.float().cpu().numpy(),
        class_id=labels.cpu().numpy(),
        mask=None if masks is None else masks.cpu().numpy(),
    )
    return draw(picture, found, texts)
