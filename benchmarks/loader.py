"""Images a second of RFDETRNano's training loader: 640x480 and 1920x1080 JPEG files, one thread.

python benchmarks/loader.py [--augment default strong dense]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

SIZES = ((640, 480), (1920, 1080))


def images_per_second(folder: Path, epochs: int, augment: str) -> float:
    """Through the public data module, as training does in the first of its hundred epochs."""
    from rfdetr.config import RFDETRNanoConfig, TrainConfig
    from rfdetr.training import RFDETRDataModule

    train_config = TrainConfig(
        dataset_dir=str(folder),
        output_dir=str(folder / "out"),
        batch_size=4,
        num_workers=0,
        augment=augment,
    )
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
    """Median over epochs, for each image size and preset."""
    import torch

    torch.set_num_threads(1)
    result = {}
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            _common.write_dataset(Path(folder), images=args.images, size=(width, height), classes=1)
            for augment in args.augment:
                name = f"_{augment}" * (augment != "default")
                rate = images_per_second(Path(folder), args.epochs, augment)
                result[f"images_per_s_{width}x{height}{name}"] = rate
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured."""
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--augment", nargs="+", default=["default"], help="presets")


if __name__ == "__main__":
    _common.main(work, add_arguments)
