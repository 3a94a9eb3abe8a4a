"""Seconds and peak memory of one training step, from the forward pass to the optimizer.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --variant seg-nano --objects 100     # masks of many objects

Random weights, batch 4, 12 objects an image, at the variant's resolution, no multi-scale, through
the public `RFDETRModule`, `RFDETRDataModule` and `build_trainer`; loading and EMA stand apart.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import _common

PRECISIONS = {
    "default": {},
    "bfloat16": {"precision": "bf16-mixed"},
    "float32": {"precision": "32-true"},
}


def add_arguments(parser: Any) -> None:
    parser.add_argument("--variant", choices=_common.VARIANTS, default="nano")
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--objects", type=int, default=12)


def work(args: argparse.Namespace) -> dict[str, float]:
    """Median over the steps after two for warming up."""
    import torch
    from pytorch_lightning import Callback

    from rfdetr import config, training

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
        images = args.batch_size * (args.steps + 2)
        _common.write_dataset(Path(folder), images=images, size=(640, 480), objects=args.objects)
        model_config = getattr(config, f"{_common.VARIANTS[args.variant]}Config")(
            num_classes=3, pretrain_weights=None
        )
        config_class = (
            config.SegmentationTrainConfig if model_config.segmentation_head else config.TrainConfig
        )
        train_config = config_class(
            dataset_dir=folder,
            output_dir=f"{folder}/output",
            epochs=1,
            batch_size=args.batch_size,
            grad_accum_steps=1,
            multi_scale=False,
            use_ema=False,
            tensorboard=False,
            num_workers=0,
            progress_bar=None if _common.is_peer() else False,  # there it is a name
        )
        module_class = training.RFDETRModelModule if _common.is_peer() else training.RFDETRModule
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


if __name__ == "__main__":
    _common.main(work, add_arguments)
