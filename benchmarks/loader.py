"""Images a second of the training loader for RFDETRNano, no workers, one thread: 640x480 and 1920x1080 JPEG files."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import _common
import numpy as np
from PIL import Image

SIZES = ((640, 480), (1920, 1080))


def make_dataset(folder: Path, width: int, height: int, images: int) -> None:
    """A COCO dataset of smooth pictures with some noise, about as many bytes a pixel as a photograph."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True)
        records, annotations = [], []
        for i in range(images):
            coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
            pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
            noisy = (pixels + rng.integers(-6, 7, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / split / f"{i}.jpg", quality=85)
            records.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
            for k in range(12):
                box = [*rng.uniform(0, 0.7, 2) * (width, height), *rng.uniform(0.05, 0.3, 2) * (width, height)]
                annotation = {"id": 12 * i + k, "image_id": i, "category_id": 1, "iscrowd": 0, "area": box[2] * box[3]}
                annotations.append({**annotation, "bbox": [round(float(value), 2) for value in box]})
        categories = [{"id": 1, "name": "thing", "supercategory": "all"}]
        content = {"info": {}, "licenses": [], "images": records, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def images_per_second(folder: Path, epochs: int) -> float:
    """Through the public data module, as training does."""
    from rfdetr.config import RFDETRNanoConfig, TrainConfig
    from rfdetr.training import RFDETRDataModule

    train_config = TrainConfig(dataset_dir=str(folder), output_dir=str(folder / "out"), batch_size=4, num_workers=0)
    datamodule: Any = RFDETRDataModule(RFDETRNanoConfig(num_classes=1), train_config)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    rates = []
    for _ in range(1 + epochs):  # the first warms up
        start, count = time.perf_counter(), 0
        for _, targets in loader:
            count += len(targets)
        rates.append(count / (time.perf_counter() - start))
    return sorted(rates[1:])[epochs // 2]


def work(args: argparse.Namespace) -> dict[str, float]:
    """Median over epochs, for each image size."""
    import torch

    torch.set_num_threads(1)
    result = {}
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            make_dataset(Path(folder), width, height, args.images)
            result[f"images_per_s_{width}x{height}"] = images_per_second(Path(folder), args.epochs)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured."""
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)


if __name__ == "__main__":
    _common.main(work, add_arguments)
