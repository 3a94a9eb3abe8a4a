"""`batch_size="auto"`: the largest batch that fits into memory, measured on the batch that will
need the most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

from rfdetr.config import TrainConfig
from rfdetr.data.batches import collate
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.images import normalize
from rfdetr.data.transforms import EvalTransform
from rfdetr.errors import InputError, RunError
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.memory import Peak, is_out_of_memory, measure_peak
from rfdetr.training.optim import multi_scale_sizes
from rfdetr.training.processes import gather
from rfdetr.training.steps import USUAL_BATCH, resize_batch

_MARGIN = (
    0.85  # of a CPU's memory: the rest of the program grows, and past the limit it would be killed
)
_GIB = 2**30


def resolve_batch_size(module: Any, datamodule: Any, trainer: pl.Trainer) -> None:
    """Puts a number in the place of batch_size="auto", and accumulates as many batches as make an
    update of 16 images.

    Measured are steps of the module, on every rank, with the images that have the most objects at
    the largest size; they change nothing. The configurations that module and datamodule were made
    with stay as they are.
    """
    config: TrainConfig = module.train_config
    if config.batch_size != "auto":
        return
    if not isinstance(datamodule, RFDETRDataModule):
        raise InputError(
            'batch_size="auto" chooses for RFDETRDataModule; a loader of your own has its own batch size'
        )
    share = -(-USUAL_BATCH // trainer.world_size)
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    device = trainer.strategy.root_device
    trial = _Trial(module, datamodule, trainer)
    size, peak = (largest_below_limit if device.type == "cpu" else largest_that_runs)(
        sizes, trial.measure
    )
    size = min(gather(trainer, size))
    accumulate = share // size
    for owner in (module, datamodule):
        resolved = {"batch_size": size, "grad_accum_steps": accumulate}
        owner.train_config = owner.train_config.model_copy(update=resolved)
    trainer.accumulate_grad_batches = accumulate
    rank_zero_info(
        f"batch_size='auto': {size} x {accumulate} batches; a step of {size} images with up to {trial.most_objects} "
        f"objects at {trial.side} pixels took {peak.used / _GIB:.2f} of {peak.limit / _GIB:.2f} GiB"
    )


def largest_that_runs(sizes: list[int], measure: Callable[[int], Peak]) -> tuple[int, Peak]:
    """The first of the falling `sizes` that does not run out of memory, and its peak."""
    for size in sizes:
        try:
            return size, measure(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    raise RunError(
        "out of memory with a single image: lower resolution, or use gradient_checkpointing=True, a smaller model, or "
        "multi_scale=False"
    )


def largest_below_limit(sizes: list[int], measure: Callable[[int], Peak]) -> tuple[int, Peak]:
    """The largest of the falling `sizes` that leaves a margin: foretold from one and two images,
    then measured.

    A CPU's memory cannot be tried out: the system would end the process, or another one.
    """
    measure(1)  # once for what is allocated only once
    peak, two = measure(1), measure(2)
    for size in sizes:
        foretold = peak.used + (size - 1) * max(two.used - peak.used, 0)
        if size > 1 and foretold <= _MARGIN * peak.limit:
            found = measure(size)
            if found.used <= _MARGIN * found.limit:
                return size, found
    return 1, peak


class _Trial:
    """A training step on the images with the most objects, at the largest size of the run."""

    def __init__(self, module: Any, datamodule: RFDETRDataModule, trainer: pl.Trainer) -> None:
        config, train = module.model_config, module.train_config
        self.module = module
        self.trainer = trainer
        self.side = config.resolution
        if train.multi_scale:
            grid = (config.resolution, config.patch_size, config.num_windows)
            self.side = max(multi_scale_sizes(*grid, train.expanded_scales))
        index = datamodule.index("train")
        counts = np.diff(index.offsets)
        self.dataset = DetectionDataset(index, EvalTransform(config.resolution))
        self.densest: list[int] = np.argsort(-counts, kind="stable").tolist()
        self.most_objects = int(counts.max())
        copies = (
            2 + train.use_ema + (trainer.world_size > 1)
        )  # of the optimizer, of the average, of DDP's messages
        weights = sum(
            p.numel() * p.element_size() for p in module.model.parameters() if p.requires_grad
        )
        self.ballast = copies * weights

    def measure(self, size: int) -> Peak:
        """The peak of a step with `size` images, what later comes beside it included."""
        device = self.trainer.strategy.root_device
        self.module.to(device)
        images, targets = collate(
            [self.dataset[self.densest[i % len(self.densest)]] for i in range(size)]
        )
        batch = self.module.transfer_batch_to_device(
            [resize_batch(images, self.side), targets], device, 0
        )
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                return measure_peak(
                    lambda: self._step(batch), device, sharers=self.trainer.num_devices
                )
            finally:
                self.module.zero_grad(set_to_none=True)

    def _step(self, batch: Any) -> None:
        images, targets = batch
        ballast = torch.ones(self.ballast, dtype=torch.uint8, device=images.tensors.device)
        with self.trainer.precision_plugin.train_step_context():
            outputs = self.module.model(normalize(images.tensors), images.mask)
            # Not across ranks: one of them may run out of memory and not come.
            losses = self.module.criterion(outputs, targets, across_ranks=False)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        del ballast
