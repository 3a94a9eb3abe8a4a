"""Images a second of RFDETRNano's training loader: 640x480 and 1920x1080 JPEG files, one thread.

python benchmarks/loader.py [--augment default strong dense]
python benchmarks/loader.py --data path/to/bccd-coco --workers 2

Each without `cache="ram"` and, where the package has it, with it, in turn.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

SIZES = ((640, 480), (1920, 1080))


def images_per_second(
    folder: Path, epochs: int, workers: int, presets: list[str]
) -> dict[str, float]:
    """Through the public data module, as training does in the first of its hundred epochs; the
    median over epochs.
    """
    from rfdetr.config import RFDETRNanoConfig, TrainConfig
    from rfdetr.training import RFDETRDataModule

    loaders: dict[str, Any] = {}
    caches = (None,) if _common.is_peer() else (None, "ram")
    for augment, cache in itertools.product(presets, caches):
        ours = {"augment": augment} if augment != "default" else {}
        ours |= {"cache": cache} if cache else {}
        config = TrainConfig(dataset_dir=folder, batch_size=4, num_workers=workers, **ours)
        name = f"_{augment}" * (augment != "default") + "_cached" * (cache is not None)
        datamodule = RFDETRDataModule(RFDETRNanoConfig(), config)
        datamodule.setup("fit")
        loaders[name] = datamodule.train_dataloader()
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(1 + epochs):  # the first warms up, and fills the cache
        for name, loader in loaders.items():
            start, count = time.perf_counter(), 0
            for _, targets in loader:
                count += len(targets)
            rates[name].append(count / (time.perf_counter() - start))
    return {name: sorted(rates[name][1:])[epochs // 2] for name in rates}


def work(args: argparse.Namespace) -> dict[str, float]:
    """Rates for each image size, or of the data that is given, and each preset."""
    import torch

    torch.set_num_threads(1)
    result: dict[str, float] = {}

    def measure(name: str, folder: Path) -> None:
        rates = images_per_second(folder, args.epochs, args.workers, args.augment)
        result.update({f"images_per_s_{name}{kind}": rates[kind] for kind in rates})

    if args.data:
        measure(args.data.name, args.data)
        return result
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            _common.write_dataset(Path(folder), images=args.images, size=(width, height), classes=1)
            measure(f"{width}x{height}", Path(folder))
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured."""
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a labelled folder, in place of drawn files")
    parser.add_argument("--augment", nargs="+", default=["default"], help="presets")


if __name__ == "__main__":
    _common.main(work, add_arguments)
