"""The picture of the steps of augmentation in the documentation: each alone, on drawn images.

python scripts/augmentation.py docs/pictures/augmentation.webp
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from demo import write_small
from PIL import Image, ImageDraw, ImageFont

from rfdetr.config import RFDETRSegMiniConfig, TrainConfig
from rfdetr.config.augment import STEPS
from rfdetr.data.dataset import DetectionDataset
from rfdetr.evaluation.drawing import draw_objects, tiled
from rfdetr.geometry.boxes import cxcywh_to_xyxy
from rfdetr.synthetic import generate
from rfdetr.training import RFDETRDataModule

IMAGE, SIDE, CAPTION, COLUMNS = 9, 180, 18, 6
SHOWN: dict[str, dict[str, Any]] = {  # ranges so narrow that the step is seen
    "rotate": {"degrees": (9, 10)},
    "affine": {"rotate": (-8, -8), "scale": (0.75, 0.8), "shear": (5, 5)},
    "perspective": {"strength": (0.15, 0.15)},
    "hsv": {"hue": (60, 60), "saturation": (0.4, 0.5)},
    "brightness_contrast": {"brightness": (0.15, 0.2), "contrast": (-0.4, -0.4)},
    "blur": {"radius": (2, 2)},
    "noise": {"deviation": (0.08, 0.08)},
    "jpeg": {"quality": (5, 5)},
    "mixup": {"share": (0.4, 0.4)},
    "cutout": {"holes": (3, 3), "size": (0.15, 0.25)},
}


def dataset_of(data: Path, steps: dict[str, Any]) -> DetectionDataset:
    """Training images with nothing but `steps`."""
    alone = {"crop": 0, "horizontal_flip": 0, **steps}
    config = TrainConfig(dataset_dir=data, augment=alone, color_jitter=0, seed=2, epochs=100)
    datamodule = RFDETRDataModule(RFDETRSegMiniConfig(resolution=192), config)
    datamodule.setup("fit")
    dataset: DetectionDataset = datamodule.train_dataloader().dataset  # type: ignore[assignment]
    return dataset


def view(data: Path, name: str, steps: dict[str, Any]) -> Image.Image:
    """The image with its objects, above the name of the step."""
    pixels, target = dataset_of(data, steps)[0, IMAGE]
    image = pixels.permute(1, 2, 0).numpy()
    boxes = cxcywh_to_xyxy(target["boxes"]) * torch.tensor(pixels.shape[:0:-1] * 2)
    drawn = draw_objects(image, {**target, "boxes": boxes}, [""] * 10, named=False, outlined=True)
    cell = Image.new("RGB", (SIDE, SIDE + CAPTION), "white")
    cell.paste(drawn.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    ImageDraw.Draw(cell).text((2, SIDE + 2), name, "#444444", ImageFont.load_default(12))
    return cell


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description="the picture of the steps of augmentation")
    parser.add_argument("picture", type=Path)
    path = parser.parse_args().picture
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder) / "drawn", 60, seed=4)
        views = [view(data, "the image", {})]
        for name in STEPS:
            views.append(view(data, name, {name: {"p": 1, **SHOWN.get(name, {})}}))
    write_small(tiled(views, COLUMNS), path)


if __name__ == "__main__":
    main()
