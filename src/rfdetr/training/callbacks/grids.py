"""Pictures of a run's first batches, so that a user sees what the network will see."""

# mypy: disable-error-code="override"

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from rfdetr.data.dataset import NestedTensor
from rfdetr.data.loaders import ResumableLoader
from rfdetr.evaluation.drawing import draw_objects, tiled
from rfdetr.files import atomic_write
from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.training.callbacks.validation import class_names
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.module import RFDETRModule
from rfdetr.training.run_folder import RunFolder, saves

logger = logging.getLogger(__name__)


class DatasetGridsCallback(Callback):
    """Draws the first `count` batches of training and of validation before a run's first step.

    All images of a batch are in one picture, with boxes, masks and names, in
    dataset_grids/train_batch0_grid.jpg, ..., val_batch0_grid.jpg, ... of `output_dir`. The images
    are made once more, apart from the run's loaders, whose order and random numbers stay as they
    are. Only batches of `RFDETRDataModule` can be so made.
    """

    def __init__(self, output_dir: str | Path, count: int = 3) -> None:
        self.count = count
        self._folder = RunFolder(output_dir).grids

    def on_train_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        if trainer.global_step or not (saves(trainer) and trainer.is_global_zero):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = class_names(module)
        loaders = {}
        if isinstance(data, RFDETRDataModule):
            loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
        for split in ("train", "val"):
            if isinstance(loader := loaders.get(split), ResumableLoader):
                self._draw(split, loader, names)
            else:
                logger.warning("no picture of %s batches: a loader of your own makes them", split)

    def _draw(self, split: str, loader: ResumableLoader, names: Sequence[str]) -> None:
        keys_of_batches = itertools.islice(loader.batch_sampler or [], self.count)
        for number, keys in enumerate(keys_of_batches):
            images, targets = loader.collate_fn([loader.dataset[key] for key in keys])
            picture = batch_picture(images, targets, names)
            path = self._folder / f"{split}_batch{number}_grid.jpg"
            atomic_write(path, partial(picture.save, format="JPEG", quality=90))


def batch_picture(
    images: NestedTensor, targets: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> Image.Image:
    """The images (B, 3, H, W) uint8 of a batch side by side, as near to a square as can be, each
    with its objects; `names` are by label. Padding is black, as the network gets it.
    """
    shown = []
    for number, (pixels, target) in enumerate(zip(images.tensors, targets, strict=True)):
        # Boxes are relative to the image, of which padding is no part.
        height, width = pixels.shape[-2:]
        if images.mask is not None:
            height, width = (int((~images.mask[number]).any(axis).sum()) for axis in (1, 0))
        sides = torch.tensor((width, height) * 2)
        objects = {**target, "boxes": cxcywh_to_xyxy(target["boxes"]) * sides}
        shown.append(draw_objects(pixels.permute(1, 2, 0).numpy(), objects, names))
    return tiled(shown, math.ceil(math.sqrt(len(shown))))
