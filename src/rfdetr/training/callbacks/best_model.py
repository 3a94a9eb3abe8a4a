"""The files of weights that a run leaves: last, periodic, the best of each kind and the best of all."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Checkpoint

from rfdetr.evaluation.metrics import Metrics
from rfdetr.evaluation.results import write_results
from rfdetr.training.callbacks.ema import averaged_model
from rfdetr.training.callbacks.evaluation import EMA, LIVE, MAIN_FIGURE, COCOEvalCallback, evaluate_loader, in_training
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.module import RFDETRModule
from rfdetr.weights.names import from_published
from rfdetr.weights.reading import read_checkpoint
from rfdetr.weights.writing import atomic_write, save_checkpoint

logger = logging.getLogger(__name__)

PREFIXES = {"regular": LIVE, "ema": EMA}


class BestModelCallback(Checkpoint):
    """Writes checkpoint_best_regular.pth and checkpoint_best_ema.pth when their mAP rises, and last.ckpt every epoch.

    At the end the better of both becomes checkpoint_best_total.pth, the module gets its weights, and its figures on
    valid and, with `run_test`, on a test split of the dataset's own go to results.json and plots.
    """

    def __init__(self, output_dir: str | Path, checkpoint_interval: int = 10, run_test: bool = True) -> None:
        self.output_dir = Path(output_dir)
        self.checkpoint_interval = checkpoint_interval
        self.run_test = run_test
        self.best: dict[str, dict[str, float]] = {}  # "regular" and "ema": {"score": mAP, "epoch": counted from 0}
        self.results: dict[str, Metrics] = {}  # of the best weights, by split
        self._valid: dict[str, Metrics | None] = {}

    @property
    def total_path(self) -> Path:
        """The best weights of the run, at its end."""
        return self.output_dir / "checkpoint_best_total.pth"

    @property
    def best_model_path(self) -> str:
        """What Lightning loads for `ckpt_path="best"`."""
        return str(self._path(kind)) if (kind := self.best_kind) else ""

    @property
    def best_kind(self) -> str | None:
        """The weights with the higher mAP, "regular" or "ema"; None before the first evaluation."""
        return max(self.best, key=lambda kind: self.best[kind]["score"], default=None)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not in_training(trainer) or trainer.fast_dev_run:
            return
        models = {"regular": pl_module.model, "ema": averaged_model(trainer)}
        for kind, model in models.items():
            score = trainer.callback_metrics.get(PREFIXES[kind] + MAIN_FIGURE)
            if score is None or model is None or (kind in self.best and score <= self.best[kind]["score"]):
                continue
            self.best[kind] = {"score": float(score), "epoch": trainer.current_epoch}
            self._valid[kind] = _last_metrics(trainer, PREFIXES[kind])
            if trainer.is_global_zero:
                save_checkpoint(self._path(kind), model.state_dict(), pl_module.model_config, pl_module.class_names)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.fast_dev_run:
            return
        trainer.save_checkpoint(self.output_dir / "last.ckpt", weights_only=False)
        done = trainer.current_epoch + 1
        if done % self.checkpoint_interval == 0:
            trainer.save_checkpoint(self.output_dir / f"checkpoint_{done:04d}.ckpt", weights_only=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        # Not on_fit_end: by then Lightning has taken the module off its device.
        if trainer.fast_dev_run:
            return
        self._write_total(trainer, pl_module)
        trainer.strategy.barrier()
        best = from_published(read_checkpoint(self.total_path).model)
        pl_module.model.load_state_dict(best)
        self._report(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.best and not trainer.fast_dev_run:
            self._write_total(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run that goes on in another folder starts a new contest: its files could not hold the old winner.
        self.best = {kind: entry for kind, entry in state_dict["best"].items() if self._path(kind).exists()}

    def _path(self, kind: str) -> Path:
        return self.output_dir / f"checkpoint_best_{kind}.pth"

    def _write_total(self, trainer: Any, module: RFDETRModule) -> None:
        if not trainer.is_global_zero:
            return
        if self.best_kind:
            with open(self._path(self.best_kind), "rb") as source:
                atomic_write(self.total_path, lambda stream: shutil.copyfileobj(source, stream))
            return
        logger.warning("no validation pass ended with a mAP: %s holds the last weights", self.total_path)
        model = averaged_model(trainer) or module.model
        save_checkpoint(self.total_path, model.state_dict(), module.model_config, module.class_names)

    def _report(self, trainer: Any, module: RFDETRModule) -> None:
        """Figures of the best weights: those seen when they were written, measured again only in a resumed run."""
        datamodule = trainer.datamodule
        if not isinstance(datamodule, RFDETRDataModule):
            return
        if self.best_kind:
            valid = self._valid.get(self.best_kind)
            self.results["valid"] = valid or evaluate_loader(trainer, module, datamodule.val_dataloader())
        if self.run_test and datamodule.has_test:
            self.results["test"] = evaluate_loader(trainer, module, datamodule.test_dataloader())
            figures = self.results["test"].logged("test/", module.train_config.log_per_class_metrics)
            for run_logger in trainer.loggers:
                run_logger.log_metrics(figures, step=trainer.global_step)
        if self.results and trainer.is_global_zero:
            from rfdetr.evaluation.plots import plot_metrics

            write_results(self.output_dir / "results.json", self.results, self.total_path.name)
            plot_metrics(self.results.get("test") or self.results["valid"], self.output_dir)


def _last_metrics(trainer: Any, prefix: str) -> Metrics | None:
    evaluations = [callback for callback in trainer.callbacks if isinstance(callback, COCOEvalCallback)]
    return evaluations[0].metrics.get(prefix) if evaluations else None
