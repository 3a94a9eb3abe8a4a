"""`batch_size="auto"`: the largest batch that fits, measured on the one that needs the most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from rfdetr.config.augment import steps_of
from rfdetr.config.fields import size_text
from rfdetr.data.augmentation.mixing import most_images
from rfdetr.data.dataset import DetectionDataset, Target, collate
from rfdetr.data.images import normalize
from rfdetr.data.transforms import EvalTransform
from rfdetr.errors import InputError, RunError
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.memory import Peak, is_out_of_memory, measure_peak
from rfdetr.training.module import RFDETRModule
from rfdetr.training.processes import gather
from rfdetr.training.steps import USUAL_BATCH, resize_batch, training_sizes

_MARGIN = 0.85  # of a CPU's memory: the rest of the program grows, and past the limit it is killed


class AutoBatchSizeCallback(Callback):
    """Puts a number in the place of batch_size="auto" before a fit, and accumulates as many batches
    as make an update of 16 images.

    Measured are steps of the module, on every rank, with the images that have the most objects at
    the largest size; they change nothing. The configurations that module and datamodule were made
    with stay as they are. Must stand after callbacks that take memory in their own `setup`.
    """

    def setup(self, trainer: Trainer, module: RFDETRModule, stage: str) -> None:  # type: ignore[override]
        if stage != "fit" or module.train_config.batch_size != "auto":
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, RFDETRDataModule):
            told = "a loader of your own has its own batch size"
            raise InputError(f'batch_size="auto" chooses for RFDETRDataModule; {told}')
        share = -(-USUAL_BATCH // trainer.world_size)
        sizes = [size for size in range(share, 0, -1) if share % size == 0]
        trial = Trial(module, datamodule, trainer)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        choose = largest_below_limit if on_cpu else largest_that_runs
        size, peak = choose(sizes, trial.measure)
        size = min(gather(trainer, size))
        trainer.accumulate_grad_batches = share // size
        chosen = {"batch_size": size, "grad_accum_steps": share // size}
        for owner in (module, datamodule):
            owner.train_config = owner.train_config.model_copy(update=chosen)
        rank_zero_info(
            f"batch_size='auto': {size} x {share // size} batches; a step of {size} images with up "
            f"to {trial.most_objects} objects at {size_text(trial.size)} pixels took "
            f"{peak.used / 2**30:.2f} of {peak.limit / 2**30:.2f} GiB"
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
        "out of memory with a single image: lower resolution, or use gradient_checkpointing=True, "
        "a smaller model, or multi_scale=False"
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


class Trial:
    """A training step on the images with the most objects, at the largest size of the run. Where
    augmentation shows several images in one, it has the objects of so many.
    """

    def __init__(self, module: RFDETRModule, data: RFDETRDataModule, trainer: Trainer) -> None:
        model, train = module.model_config, module.train_config
        self.module, self.trainer = module, trainer
        self.size = max(training_sizes(model, train), key=math.prod)
        index = data.index("train")
        objects = np.diff(index.offsets)
        self.images = most_images(steps_of(train.augment))
        self.dataset = DetectionDataset(index, EvalTransform(model.input_size))
        self.densest: list[int] = np.argsort(-objects, kind="stable").tolist()
        self.most_objects = int(objects[np.resize(self.densest, self.images)].sum())
        # What comes later: the optimizer's moments, the average, DDP's messages.
        copies = 2 + train.use_ema + (trainer.world_size > 1)
        trained = [p for p in module.model.parameters() if p.requires_grad]
        self.later_bytes = copies * sum(p.numel() * p.element_size() for p in trained)

    def measure(self, size: int) -> Peak:
        """The peak of a step with `size` images, what later comes beside it included."""
        module, device = self.module, self.trainer.strategy.root_device
        module.to(device)
        self.trainer.precision_plugin.convert_module(module)  # `setup` of the module comes later
        chosen = itertools.cycle(self.densest)
        views = [list(itertools.islice(chosen, self.images)) for _ in range(size)]
        images, targets = collate([self._view(view) for view in views])
        batch = [resize_batch(images, self.size), targets]
        batch = module.transfer_batch_to_device(batch, device, 0)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                return measure_peak(lambda: self._step(batch), device, self.trainer.num_devices)
            finally:
                module.zero_grad(set_to_none=True)

    def _view(self, images: list[int]) -> tuple[Tensor, Target]:
        """The first of the images, with the objects of all."""
        (image, target), *others = (self.dataset[number] for number in images)
        for name in {"labels", "boxes", "masks", "has_mask"} & target.keys():
            target[name] = torch.cat([target[name], *(other[name] for _, other in others)])
        return image, target

    def _step(self, batch: list[Any]) -> None:
        images, targets = batch
        device = images.tensors.device
        later = torch.ones(self.later_bytes, dtype=torch.uint8, device=device)
        with self.trainer.precision_plugin.train_step_context():
            outputs = self.module.model(normalize(images.tensors), images.mask)
            # Not across ranks: one of them may run out of memory and not come.
            losses = self.module.criterion(outputs, targets, across_ranks=False)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        del later
