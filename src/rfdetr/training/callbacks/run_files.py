"""What a run writes beside its weights: config.yaml, log.txt, metrics.png, and one line of log an
epoch.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_info

from rfdetr._version import __version__
from rfdetr.config import variant_name
from rfdetr.files import atomic_write
from rfdetr.training.callbacks.validation import in_training
from rfdetr.training.records import (
    METRICS_FILE,
    RunCSVLogger,
    count_rows,
    drop_rows_from_epoch,
    keep_rows,
    read_records,
    write_records,
)
from rfdetr.training.run_folder import FolderLock, clear_run, refuse_to_overwrite
from rfdetr.training.steps import effective_batch

logger = logging.getLogger(__name__)


class RunFilesCallback(Callback):
    """Keeps the readable record of a run in its output directory; nothing in a `fast_dev_run`.

    A resumed run goes on in the files it finds, less what it will repeat; a new run starts them
    anew, where no other run is or `overwrite` allows it. (An earlier run of the same process is
    kept in a subfolder run-1, run-2, ...) No other process writes to the directory until the run
    ends.
    """

    def __init__(self, output_dir: str | Path, overwrite: bool = False) -> None:
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self._lock = FolderLock(self.output_dir)
        self._started = 0.0
        self._evaluated = False
        self._ended: dict[str, Any] | None = None  # the epoch whose record is still to be written
        self._restored: dict[str, Any] = {}

    def setup(self, trainer: Any, _pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._restored = {}
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:
            self._lock.acquire()

    def on_fit_start(self, trainer: Any, *_: Any) -> None:
        if trainer.is_global_zero and not (
            self.overwrite or trainer.fast_dev_run or trainer.global_step
        ):
            refuse_to_overwrite(self.output_dir, trainer.ckpt_path, keep_own=True)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Lets other runs have the directory; after an exception the trainer does, when all is
        written.
        """
        self._lock.release()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        rank_zero_info(
            f"Effective batch size {effective_batch(pl_module.train_config.batch_size, trainer)}"
        )
        self._started = time.monotonic() - self._restored.get("seconds", 0.0)
        self._evaluated = self._restored.get("evaluated", False)
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        if trainer.global_step == 0 and trainer.ckpt_path is None:
            clear_run(self.output_dir)
        known = "rows" in self._restored
        if known or (trainer.ckpt_path is None and trainer.current_epoch == 0):
            keep_rows(self._metrics, self._restored.pop("rows", 0))
        elif trainer.current_epoch:
            drop_rows_from_epoch(self._metrics, trainer.current_epoch)
        if (
            known or trainer.ckpt_path is None or trainer.current_epoch
        ):  # else from weights: nothing is repeated
            records = [
                row
                for row in read_records(self._log)
                if row.get("epoch", -1) < trainer.current_epoch
            ]
            write_records(self._log, records)
        content = {
            "rfdetr_version": __version__,
            "variant": variant_name(pl_module.model_config),
            "model": pl_module.model_config.model_dump(mode="json"),
            "train": {
                **pl_module.train_config.model_dump(mode="json", exclude={"resume", "overwrite"}),
                "seed": pl_module.seed,
            },
            "class_names": pl_module.class_names,
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        atomic_write(self.output_dir / "config.yaml", lambda stream: stream.write(text.encode()))
        for run_logger in trainer.loggers:
            if not isinstance(run_logger, RunCSVLogger):
                run_logger.log_hyperparams(content)

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self._write_record(trainer)
        self._started = time.monotonic()
        self._evaluated = False

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self._evaluated = self._evaluated or in_training(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        pl_module.log("train/lr", rate)
        seconds = round(time.monotonic() - self._started, 3)
        self._ended = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": seconds,
            "rate": rate,
        }

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._write_record(trainer)

    def state_dict(self) -> dict[str, Any]:
        # Times differ from run to run; all else does not.
        seconds = time.monotonic() - self._started if self._started else 0.0
        return {"rows": count_rows(self._metrics), "seconds": seconds, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)

    def _write_record(self, trainer: Any) -> None:
        """Adds the epoch that has ended to log.txt, once everything has logged what there is to log
        about it.
        """
        record, self._ended = self._ended, None
        if record is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        of_epoch = ("train/", "val/") if self._evaluated else ("train/",)
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(of_epoch) and not name.endswith("_step")
        }
        figures = dict(sorted({**figures, "train/lr": record.pop("rate")}.items()))
        try:
            write_records(self._log, [*read_records(self._log), {**record, **figures}])
        except OSError as error:
            logger.error("%s: this epoch is missing there: %s", self._log, error)
        line = epoch_line(
            record["epoch"] + 1, trainer.max_epochs, figures, record["seconds"], trainer.should_stop
        )
        logger.info("%s", line)

    def on_fit_end(self, trainer: Any, *_: Any) -> None:
        if (
            "rows" in self._restored and trainer.is_global_zero
        ):  # resumed with nothing left to train
            keep_rows(self._metrics, self._restored.pop("rows"))
        if (
            not trainer.fast_dev_run
            and trainer.is_global_zero
            and (records := read_records(self._log))
        ):
            from rfdetr.evaluation.plots import plot_history

            plot_history(records, self.output_dir / "metrics.png")

    @property
    def _log(self) -> Path:
        return self.output_dir / "log.txt"

    @property
    def _metrics(self) -> Path:
        return self.output_dir / METRICS_FILE


def epoch_line(
    epoch: int, epochs: int | None, figures: dict[str, Any], seconds: float, last: bool = False
) -> str:
    """One line about an epoch, counted from 1: figures, how long it took and, unless it is the
    last, the time left.
    """
    parts = [f"epoch {epoch}" + (f"/{epochs}" if epochs and epochs > 0 else "")]
    names = {"train/loss": "loss", "val/mAP_50_95": "mAP", "val/ema_mAP_50_95": "EMA mAP"}
    names |= {"val/segm_mAP_50_95": "mask mAP", "val/ema_segm_mAP_50_95": "EMA mask mAP"}
    parts += [f"{label} {figures[name]:.3f}" for name, label in names.items() if name in figures]
    parts.append(f"{timedelta(seconds=round(seconds))}")
    if epochs and epochs > epoch and not last:
        parts.append(f"about {timedelta(seconds=round((epochs - epoch) * seconds))} left")
    return ", ".join(parts)
