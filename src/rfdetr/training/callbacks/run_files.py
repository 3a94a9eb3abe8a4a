"""What a run writes beside its weights: config.yaml, its figures, metrics.png, a line an epoch."""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities import rank_zero_info

from rfdetr._version import __version__
from rfdetr.config import variant_name
from rfdetr.console import duration
from rfdetr.files import atomic_write
from rfdetr.training.callbacks.time_limit import TimeLimitCallback
from rfdetr.training.callbacks.validation import SHARE, in_training
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.loggers import RunLogger
from rfdetr.training.module import RFDETRModule
from rfdetr.training.records import RunRecord
from rfdetr.training.run_folder import RunFolder, saves
from rfdetr.training.steps import effective_batch

logger = logging.getLogger(__name__)
_SHOWN = {
    **{"train/loss": "loss", "val/mAP_50_95": "mAP", "val/ema_mAP_50_95": "EMA mAP"},
    **{"val/segm_mAP_50_95": "mask mAP", "val/ema_segm_mAP_50_95": "EMA mask mAP"},
}
_SHOWN |= {
    name.replace("val/", SHARE): f"{label} on a share"
    for name, label in _SHOWN.items()
    if name.startswith("val/")
}


class RunFilesCallback(Callback):
    """Keeps the readable record of a run in its output directory; nothing in a `fast_dev_run`.

    A resumed run goes on in the files it finds, less what it will repeat. A new run starts them
    anew, where no other run is or `overwrite` allows it; an earlier run of the same process is
    moved to a subfolder run-1, run-2, ... Until the run ends, no other process writes to the
    directory.
    """

    def __init__(self, output_dir: str | Path, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self._folder = RunFolder(output_dir)
        self._record = RunRecord(output_dir)
        self._started, self._evaluated = 0.0, ""  # what the figures' names start with, if any
        self._ended: dict[str, Any] = {}  # the epoch whose record is still to be written
        self._restored: dict[str, Any] = {}

    def setup(self, trainer: Trainer, _: Any, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is read, whose state comes to `load_state_dict`
            self._restored = {}
            own = (one.record for one in trainer.loggers if isinstance(one, RunLogger))
            self._record = next(own, self._record)
            if self._writes(trainer):
                self._folder.acquire()

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        if self._writes(trainer) and not (self.overwrite or trainer.global_step):
            self._folder.refuse_to_overwrite(trainer.ckpt_path, keep_own=True)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Lets other runs have the directory; after an exception the trainer calls this itself."""
        self._record.render()
        self._folder.release()

    def on_train_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        model, train = module.model_config, module.train_config
        rank_zero_info(f"Effective batch size {effective_batch(train.batch_size, trainer)}")
        self._started = time.monotonic() - self._restored.get("seconds", 0.0)
        known = self._restored.get("evaluated") or ""
        self._evaluated = "val/" if known is True else known  # True: an earlier version's
        if not self._writes(trainer):
            return
        self._take_back(trainer)
        own = {"resume", "overwrite"}  # of the command, not of the run
        content = {
            "rfdetr_version": __version__,
            "variant": variant_name(model),
            "model": model.model_dump(mode="json"),
            "train": {**train.model_dump(mode="json", exclude=own), "seed": module.seed},
            "class_names": module.class_names,
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        atomic_write(self._folder.config, lambda stream: stream.write(text.encode()))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, RFDETRDataModule) and (kept := data.folders.as_record()):
            atomic_write(self._folder.division, lambda stream, kept=kept: stream.write(kept))  # type: ignore[misc]
        for run_logger in trainer.loggers:
            run_logger.log_hyperparams(content)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._write_record(trainer)
        self._started, self._evaluated = time.monotonic(), ""

    def on_validation_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        if in_training(trainer):
            self._evaluated = f"{module.judging}/"

    def on_train_epoch_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        module.log("train/lr", rate)
        seconds = round(time.monotonic() - self._started, 3)
        self._ended = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self._ended |= {"seconds": seconds, "train/lr": rate}

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self._write_record(trainer)

    def on_fit_end(self, trainer: Trainer, *_: Any) -> None:
        if not self._writes(trainer):
            return
        if self._restored:  # resumed with nothing left to train: it logs its end again
            self._take_back(trainer)
        if records := self._record.read()[1]:
            from rfdetr.evaluation.plots import plot_history

            plot_history(records, self._folder.history)

    def state_dict(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started if self._started else 0.0
        return {"bytes": self._record.size, "seconds": seconds, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)

    def _writes(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and saves(trainer)

    def _take_back(self, trainer: Trainer) -> None:
        """Leaves of earlier records what this run does not log again: nothing, if it is a new one.

        A checkpoint tells the length of the record, one of an earlier version the rows of
        metrics.csv, one of another training loop its epoch; from weights alone nothing is repeated.
        """
        known, self._restored = self._restored, {}
        epoch, new = trainer.current_epoch, trainer.ckpt_path is None
        if new and trainer.global_step == 0:
            self._folder.clear()
        elif "bytes" in known:
            self._record.cut(known["bytes"], epoch)
        elif new or epoch or "rows" in known:
            self._record.drop_from(epoch, known.get("rows"))

    def _write_record(self, trainer: Trainer) -> None:
        """Adds the epoch that has ended to the record, when all that is known of it is logged."""
        # At the end of the epoch itself, other callbacks have yet to log their figures.
        record, self._ended = self._ended, {}
        if not record or not self._writes(trainer):
            return
        of_epoch = ("train/", self._evaluated) if self._evaluated else ("train/",)
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(of_epoch) and not name.endswith("_step")
        }
        figures["train/lr"] = record.pop("train/lr")
        self._record.append({**record, **dict(sorted(figures.items()))}, ends_epoch=True)
        self._record.render()
        number, seconds = record["epoch"] + 1, record["seconds"]
        limit, left = find_callback(trainer, TimeLimitCallback), None
        if trainer.should_stop:
            left = 0.0
        elif limit is not None:
            left = limit.left
        logger.info("%s", epoch_line(number, trainer.max_epochs, figures, seconds, left))


def epoch_line(
    epoch: int,
    epochs: int | None,
    figures: dict[str, Any],
    seconds: float,
    most: float | None = None,
) -> str:
    """One line about an epoch, counted from 1, as "epoch 3/10, loss 1.500, mAP 0.250, 0:01:05,
    about 0:07:35 left"; `most` are the seconds that the run may still take, 0 leaves the rest out.
    """
    limited = epochs is not None and epochs > 0
    parts = [f"epoch {epoch}/{epochs}" if limited else f"epoch {epoch}"]
    parts += [f"{label} {figures[name]:.3f}" for name, label in _SHOWN.items() if name in figures]
    parts.append(duration(seconds))
    rest = [(epochs - epoch) * seconds] if epochs is not None and limited else []
    left = min([*rest, *([] if most is None else [most])], default=0)
    if left > 0:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)
