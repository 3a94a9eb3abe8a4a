"""How fast a run is, and what it will have taken when it ends: told after its first updates."""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer

from rfdetr.errors import InputError
from rfdetr.training import forecast
from rfdetr.training.callbacks.averaging import averaged_model
from rfdetr.training.callbacks.resume import ResumeCallback
from rfdetr.training.callbacks.selection import BestModelCallback
from rfdetr.training.callbacks.validation import in_training
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.loggers import RunLogger
from rfdetr.training.memory import memory_so_far
from rfdetr.training.module import RFDETRModule
from rfdetr.training.records import FORECAST
from rfdetr.training.run_folder import saves
from rfdetr.training.steps import training_sizes

logger = logging.getLogger(__name__)

WARM_UP = 2
"""First updates of a fit, which are slower: memory is taken, kernels are chosen."""
CLOSING = 5.0
"""Seconds that the last files and plots of a run take."""


class PaceCallback(Callback):
    """Refuses a run whose checkpoints find no room, and tells once what the run will take.

    That line comes after a few updates, when one evaluation batch was tried as well: on every rank
    after the same update, as sharded ranks evaluate together. Nothing of it changes the run.
    """

    may_end_early = False

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._start_anew()

    def _start_anew(self) -> None:
        self.validation_seconds = 0.0
        """Of a validation pass over all images, and what else is done between two epochs; 0: not
        known."""
        self._judged = 1.0  # share of the images, in the last pass
        self._updates, self._told = 0, False
        self._seconds, self._pixels, self._images = 0.0, 0, 0  # of the updates after the first ones
        self._batch = (0, 0)  # pixels and images of the update that is going on
        self._area = 0  # of the largest image so far, pixels
        self._last, self._pause = 0.0, 0.0  # end of the last update, also if validation followed
        self._memory = 0  # in use between updates
        self._forecast: dict[str, Any] = {}  # as told

    def setup(self, _: Trainer, __: Any, stage: str) -> None:
        if stage == "fit":
            self._start_anew()

    def on_fit_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        resume = find_callback(trainer, ResumeCallback)
        if resume is None or not (saves(trainer) and trainer.is_global_zero):
            return
        need = forecast.disk_need(trainer, module, self.output_dir)
        ends_early = self.may_end_early or module.train_config.early_stopping
        told = need.shortage(self.output_dir, resume.checkpoint_interval, ends_early)
        if told:
            logger.warning("%s", told)

    def on_train_batch_start(
        self, _: Trainer, __: RFDETRModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if batch_idx == 0 and self._pause:
            self._take_validation(now)
        if batch_idx == 0 or not self._last:
            self._last, self._batch = now, (0, 0)
        count, _, height, width = batch[0].tensors.shape
        self._batch = self._batch[0] + count * height * width, self._batch[1] + count
        self._area = max(self._area, height * width)

    def on_train_batch_end(
        self, trainer: Trainer, module: RFDETRModule, _: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_update(trainer, batch_idx):
            return
        now, self._updates = time.monotonic(), self._updates + 1
        if self._updates > WARM_UP:
            self._seconds += now - self._last
            self._pixels, self._images = (
                self._pixels + self._batch[0],
                self._images + self._batch[1],
            )
        elif found := memory_so_far(trainer.strategy.root_device):
            self._memory = found[0]
        self._last, self._batch = now, (0, 0)
        measured = float(np.clip(trainer.num_training_batches // 4, 3, 10))
        if self._updates == WARM_UP + measured and not self._told:
            self._told = True
            self._tell(trainer, module, batch)
            self._last = time.monotonic()

    def on_validation_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        if in_training(trainer):
            self._pause = self._last
            data = trainer.datamodule  # type: ignore[attr-defined]
            on_share = getattr(data, "on_share", False)
            self._judged = module.train_config.early_eval_share or 1.0 if on_share else 1.0

    def _take_validation(self, now: float) -> None:
        """Notes what a whole pass would have taken."""
        self.validation_seconds, self._pause = (now - self._pause) / self._judged, 0.0

    def update_seconds(self, module: RFDETRModule, largest: bool = False) -> float:
        """Seconds of an update at the mean or the `largest` size of the run; 0: not known."""
        if not self._pixels:
            return 0.0
        area = self._pixels / self._images
        if module.train_config.multi_scale is True:
            areas = np.prod(training_sizes(module.model_config, module.train_config), axis=1)
            area = float(areas.max() if largest else areas.mean())
        updates = self._updates - WARM_UP
        seconds: float = self._seconds / self._pixels * area * self._images / updates
        return seconds

    def closing_seconds(self, trainer: Trainer) -> float:
        """Seconds from the last validation pass to the end: evaluation on test, files and plots."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        best = find_callback(trainer, BestModelCallback)
        if not (best and isinstance(data, RFDETRDataModule)):
            return CLOSING
        seconds = CLOSING + self.validation_seconds * (best.best_few is not None)
        if not (best.run_test and data.has_test):
            return seconds
        with suppress(InputError):  # which the end of the run will tell
            share = len(data.index("test")) / max(len(data.index("valid")), 1)
            return seconds + share * self.validation_seconds
        return seconds

    def _tell(self, trainer: Trainer, module: RFDETRModule, batch: Any) -> None:
        """Logs the forecast, and notes it in the run's record."""
        tried = self._evaluation_seconds(trainer, module, batch)
        self.validation_seconds = self.validation_seconds or tried
        updates = trainer.num_training_batches / trainer.accumulate_grad_batches
        if not trainer.is_global_zero or math.isinf(updates):
            return
        training = math.ceil(updates) * self.update_seconds(module)
        judging = self.validation_seconds
        parts = [f"{forecast.in_time(training)} of training"]
        every = trainer.check_val_every_n_epoch or 1
        sets = "" if self._judges_one(trainer, module) else " of live and averaged weights"
        if share := module.train_config.early_eval_share:
            sets += f", {share:g} of it in the first {module.train_config.epochs_on_share} epochs"
        parts += [f"{forecast.in_time(judging)} of validation{sets}"] * (judging > 0)
        rare = f" (every {every} epochs)" * (every > 1 and judging > 0)
        told = [f"an epoch takes about {' and '.join(parts)}{rare}"]
        told += self._end_in_words(trainer, training, judging)
        record = {"updates": math.ceil(updates), "seconds": [round(training, 3), round(judging, 3)]}
        if found := memory_so_far(trainer.strategy.root_device):
            record["memory"] = used = self._memory_needed(module, found[1].used)
            told.append(
                f"memory up to {forecast.in_bytes(used)} of {forecast.in_bytes(found[1].limit)}"
            )
        if find_callback(trainer, ResumeCallback) and saves(trainer):
            told.append(f"disk {forecast.disk_need(trainer, module, self.output_dir)}")
        logger.info("forecast: %s", "; ".join(told))
        self._note(trainer, record)

    def on_train_end(self, trainer: Trainer, _: RFDETRModule) -> None:
        """Notes the memory that was taken beside what was forecast."""
        if self._forecast and (found := memory_so_far(trainer.strategy.root_device)):
            self._note(trainer, {**self._forecast, "memory_taken": found[1].used})

    def _note(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self._forecast = record
        for one in trainer.loggers:
            if isinstance(one, RunLogger) and saves(trainer):
                one.record.append({FORECAST: record})

    def _end_in_words(self, trainer: Trainer, training: float, judging: float) -> list[str]:
        """When a run with a limit of epochs will end, where an epoch takes so many seconds."""
        last, every = trainer.max_epochs or -1, trainer.check_val_every_n_epoch or 1
        if last < 0:
            return []
        epoch = trainer.current_epoch
        done = trainer.fit_loop.batch_idx / max(trainer.num_training_batches, 1)
        config: Any = trainer.lightning_module.train_config
        early = max(config.epochs_on_share // every - epoch // every, 0)
        whole = last // every - epoch // every - early
        passes = whole + early * (config.early_eval_share or 1)
        left = (last - epoch - done) * training + passes * judging
        left += self.closing_seconds(trainer)
        return [f"the end at {forecast.clock_after(left)}, in {forecast.in_time(left)}"]

    def _memory_needed(self, module: RFDETRModule, peak: int) -> int:
        """The peak in bytes of the largest size: what a step takes grows with the pixels."""
        largest = self._area
        if module.train_config.multi_scale is True:
            sizes = training_sizes(module.model_config, module.train_config)
            largest = max(map(math.prod, sizes))
        step = (peak - self._memory) * (largest / self._area)
        return round(self._memory + max(step, peak - self._memory))

    def _evaluation_seconds(self, trainer: Trainer, module: RFDETRModule, batch: Any) -> float:
        """What a validation pass will take, from one batch that is evaluated twice; 0: not known.

        The evaluator's own work is left out: it is small, but for many objects.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, RFDETRDataModule) or not trainer.limit_val_batches:
            return 0.0
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with torch.inference_mode(), trainer.precision_plugin.val_step_context():
                module.detect(batch)
                self._wait(trainer)
                start = time.monotonic()
                module.detect(batch)
                self._wait(trainer)
        except FloatingPointError:  # it is for validation itself to tell
            return 0.0
        finally:
            for part, training in modes:
                part.training = training
        pixels = batch[0].tensors[:, 0].numel()
        images = math.ceil(len(data.index("valid")) / trainer.world_size)
        area = math.prod(module.model_config.input_size)
        area *= 1 if self._judges_one(trainer, module) else 2
        seconds: float = (time.monotonic() - start) / pixels * area * images
        return seconds

    @staticmethod
    def _judges_one(trainer: Trainer, module: RFDETRModule) -> bool:
        """Whether validation evaluates one set of weights, not the live and the averaged ones."""
        return averaged_model(trainer) is None or module.train_config.validates_average_alone

    @staticmethod
    def _wait(trainer: Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)


def ends_update(trainer: Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step belongs to a batch of the present epoch."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
