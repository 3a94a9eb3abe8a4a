"""What a run writes beside its weights: config.yaml, log.txt, metrics.png, and one line of log an epoch."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback

from rfdetr._version import __version__
from rfdetr.config import variant_name
from rfdetr.training.callbacks.evaluation import in_training
from rfdetr.training.logs import METRICS_FILE, drop_rows_from_step, read_records, write_records
from rfdetr.weights.writing import atomic_write

logger = logging.getLogger(__name__)


class RunFilesCallback(Callback):
    """Keeps the readable record of a run in its output directory; nothing in a `fast_dev_run`.

    A resumed run goes on in the files it finds, less the epochs it will repeat; a new run starts them anew.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._started = 0.0
        self._evaluated = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        drop_rows_from_step(self.output_dir / METRICS_FILE, trainer.global_step)
        records = [row for row in read_records(self._log) if row["epoch"] < trainer.current_epoch]
        write_records(self._log, records)
        content = {
            "rfdetr_version": __version__,
            "variant": variant_name(pl_module.model_config),
            "model": pl_module.model_config.model_dump(mode="json"),
            "train": {**pl_module.train_config.model_dump(mode="json"), "seed": pl_module.seed},
            "class_names": pl_module.class_names,
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        atomic_write(self.output_dir / "config.yaml", lambda stream: stream.write(text.encode()))

    def on_train_epoch_start(self, *_: Any) -> None:
        self._started = time.monotonic()
        self._evaluated = False

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self._evaluated = self._evaluated or in_training(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        pl_module.log("train/lr", rate)
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") or (self._evaluated and name.startswith("val/"))
        }
        record = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": round(seconds, 3)}
        write_records(self._log, [*read_records(self._log), {**record, **figures, "train/lr": rate}])
        logger.info("%s", epoch_line(trainer, figures, seconds))

    def on_fit_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run and trainer.is_global_zero and (records := read_records(self._log)):
            from rfdetr.evaluation.plots import plot_history

            plot_history(records, self.output_dir / "metrics.png")

    @property
    def _log(self) -> Path:
        return self.output_dir / "log.txt"


def epoch_line(trainer: Any, figures: dict[str, Any], seconds: float) -> str:
    """One line about an epoch, for the log of a run without a progress bar."""
    epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
    parts = [f"epoch {epoch}" + (f"/{epochs}" if epochs and epochs > 0 else "")]
    names = {"train/loss": "loss", "val/mAP_50_95": "mAP", "val/ema_mAP_50_95": "EMA mAP"}
    parts += [f"{label} {figures[name]:.3f}" for name, label in names.items() if name in figures]
    parts.append(f"{timedelta(seconds=round(seconds))}")
    if epochs and epochs > epoch:
        parts.append(f"about {timedelta(seconds=round((epochs - epoch) * seconds))} left")
    return ", ".join(parts)
