"""What a run shows of its data before the first step: labels.jpg and train_views.jpg."""

# mypy: disable-error-code="override"

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from rfdetr.config.fields import size_text
from rfdetr.evaluation.drawing import COLOURS, draw_objects, tiled, with_legend
from rfdetr.files import atomic_write
from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.training.callbacks.validation import class_names
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.module import RFDETRModule
from rfdetr.training.run_folder import RunFolder, saves

logger = logging.getLogger(__name__)

COUNT, COLUMNS = 16, 4
SIDE, CAPTION = 384, 20
"""The longer side of each view, and the height of the line under it, in pixels."""
_TITLE = (
    "Training views as the network gets them: cropped, mirrored, recoloured, at the step's size"
)


class DataViewsCallback(Callback):
    """Draws the labels and the first 16 training views, once, before the first step of a new run.

    Views are made apart from the run's loaders, with the numbers that the loaders will draw for
    them, so a run is the same with and without. A picture that fails is a warning.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self._folder = RunFolder(output_dir)

    def on_train_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        draws = saves(trainer) and trainer.is_global_zero and isinstance(data, RFDETRDataModule)
        if trainer.global_step or not draws:
            return
        names = class_names(module)
        pictures: dict[Path, Callable[[], Image.Image]] = {
            self._folder.labels: partial(draw_labels, data, names),
            self._folder.views: partial(draw_views, data, names),
        }
        for path, make in pictures.items():
            try:
                atomic_write(path, partial(make().save, format="JPEG", quality=88))
            except Exception as error:  # noqa: BLE001 - no picture is worth a run
                said = (path.name, type(error).__name__, error)
                logger.warning("%s is not drawn, the run goes on: %s: %s", *said)


def draw_labels(data: RFDETRDataModule, names: Sequence[str]) -> Image.Image:
    """The picture of the labels of train, and of valid beside it."""
    from rfdetr.evaluation.label_plots import labels_picture

    limits = {"resolution", "patch_size", "num_queries"}
    splits = {split: data.index(split) for split in ("train", "valid")}
    return labels_picture(splits, names, **data.model_config.model_dump(include=limits))


def draw_views(data: RFDETRDataModule, names: Sequence[str]) -> Image.Image:
    """The first training views side by side, each with the name of its file and its size.

    Up to ten classes have a colour and a legend; of more, each object has its name beside it.
    """
    loader: Any = data.train_dataloader()
    index = data.index("train")
    keys = itertools.islice(itertools.chain.from_iterable(loader.batch_sampler), COUNT)
    samples = [loader.dataset[key] for key in keys]
    present = sorted({label for _, target in samples for label in target["labels"].tolist()})
    coloured = len(present) <= len(COLOURS)
    shown = [names[label] for label in present]
    sizes = [_view_size(pixels) for pixels, _ in samples]
    cell = max(width for width, _ in sizes), max(height for _, height in sizes)
    views = []
    for pixels, target in samples:
        label = torch.searchsorted(torch.tensor(present, dtype=torch.int64), target["labels"])
        drawn = {**target, "labels": label}
        image = np.flatnonzero(index.image_ids == int(target["image_id"]))[0]
        name = index.path(int(image)).name
        name = name if len(name) <= 40 else f"{name[:24]}...{name[-12:]}"
        text = f"{name}, {size_text(pixels.shape[-2:])} pixels"
        views.append(_captioned(pixels, drawn, shown, text, cell, named=not coloured))
    picture = tiled(views, COLUMNS)
    return with_legend(picture, _TITLE, shown if coloured else [])


def _view_size(pixels: Tensor) -> tuple[int, int]:
    """Width and height at which a view (3, H, W) is shown: `SIDE` is the longer one."""
    height, width = pixels.shape[-2:]
    scale = SIDE / max(height, width)
    return round(width * scale), round(height * scale)


def _captioned(
    pixels: Tensor,
    objects: dict[str, Tensor],
    names: Sequence[str],
    text: str,
    cell: tuple[int, int],
    *,
    named: bool,
) -> Image.Image:
    """A view (3, H, W) in a cell of (width, height), with its objects, above a line of text."""
    image, size = Image.fromarray(pixels.permute(1, 2, 0).numpy()), _view_size(pixels)
    sized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    objects = {**objects, "boxes": cxcywh_to_xyxy(objects["boxes"]) * torch.tensor(size * 2)}
    view = Image.new("RGB", (cell[0], cell[1] + CAPTION), "white")
    view.paste(draw_objects(sized, objects, names, named=named, outlined="masks" in objects))
    ImageDraw.Draw(view).text((2, cell[1] + 3), text, "#444444", ImageFont.load_default(12))
    return view
