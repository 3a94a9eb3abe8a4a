"""Seconds of one training step (forward, assignment, losses, backward, clipping, optimizer) and peak memory.

RFDETRNano with random weights, batch 4, 12 objects an image, 384 pixels, no multi-scale, through the public
`RFDETRModule` / `RFDETRDataModule` / `build_trainer`; loading of images and EMA stand apart.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import _common
import numpy as np

PRECISIONS = {"default": {}, "bfloat16": {"precision": "bf16-mixed"}, "float32": {"precision": "32-true"}}


def add_arguments(parser: Any) -> None:
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--objects", type=int, default=12)


def work(args: argparse.Namespace) -> dict[str, float]:
    """Median over the steps after two for warming up."""
    import torch
    from pytorch_lightning import Callback

    from rfdetr import training
    from rfdetr.config import RFDETRNanoConfig, TrainConfig

    class Stopwatch(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def _now(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

        def on_train_batch_start(self, *_: Any) -> None:
            self.start = self._now()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds.append(self._now() - self.start)

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), images=args.batch_size * (args.steps + 2), objects=args.objects)
        model_config = RFDETRNanoConfig(num_classes=3, pretrain_weights=None)
        train_config = TrainConfig(
            dataset_dir=folder,
            output_dir=f"{folder}/output",
            epochs=1,
            batch_size=args.batch_size,
            grad_accum_steps=1,
            multi_scale=False,
            use_ema=False,
            tensorboard=False,
            num_workers=0,
            progress_bar=None if _is_peer() else False,
        )
        module_class = training.RFDETRModelModule if _is_peer() else training.RFDETRModule
        stopwatch = Stopwatch()
        trainer = training.build_trainer(
            train_config,
            model_config,
            callbacks=[stopwatch],
            max_steps=args.steps + 2,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            **PRECISIONS[args.precision],
        )
        datamodule = training.RFDETRDataModule(model_config, train_config)
        trainer.fit(module_class(model_config, train_config), datamodule)
    figures = {"step_s": median(stopwatch.seconds[2:]), "peak_memory_gb": _common.peak_memory_gb()}
    if torch.cuda.is_available():
        figures["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def _is_peer() -> bool:
    """Whether this interpreter has the published package, whose progress_bar is a name instead of a switch."""
    import importlib.metadata

    return "rfdetr" in {(distribution.name or "").lower() for distribution in importlib.metadata.distributions()}


def write_dataset(folder: Path, images: int, objects: int, size: tuple[int, int] = (640, 480)) -> None:
    """A COCO folder of JPEG images with `objects` random rectangles of three classes each."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("valid", 1)):
        (folder / split).mkdir()
        records: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": f"class{i}", "supercategory": "none"} for i in range(3)],
        }
        for image_id in range(1, count + 1):
            canvas = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)).resize(size)
            draw = ImageDraw.Draw(canvas)
            for _ in range(objects):
                w, h = (int(v) for v in rng.integers(size[0] // 20, size[0] // 4, 2))
                x, y = int(rng.integers(0, size[0] - w)), int(rng.integers(0, size[1] - h))
                label = int(rng.integers(0, 3))
                draw.rectangle((x, y, x + w, y + h), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
                records["annotations"].append(
                    {"id": len(records["annotations"]) + 1, "image_id": image_id, "category_id": label + 1,
                     "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": []}
                )  # fmt: skip
            name = f"{image_id:05d}.jpg"
            canvas.save(folder / split / name, quality=90)
            records["images"].append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        (folder / split / "_annotations.coco.json").write_text(json.dumps(records))


if __name__ == "__main__":
    _common.main(work, add_arguments)
