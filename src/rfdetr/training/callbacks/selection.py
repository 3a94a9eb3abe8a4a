"""The files of weights that a run leaves: last, periodic, the best of each kind and the best of
all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from rfdetr.evaluation.metrics import Metrics, write_results
from rfdetr.files import digest_of, link_checkpoint, recorded_digests
from rfdetr.training.adapters import remove_adapters
from rfdetr.training.callbacks.averaging import averaged_model
from rfdetr.training.callbacks.validation import (
    EMA,
    LIVE,
    TEST,
    TEST_EMA,
    COCOEvalCallback,
    evaluate_loader,
    in_training,
    main_figure,
)
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.module import RFDETRModule
from rfdetr.training.processes import load_whole_weights, whole_weights
from rfdetr.weights.names import from_published
from rfdetr.weights.reading import read_checkpoint
from rfdetr.weights.writing import save_checkpoint, save_safetensors

logger = logging.getLogger(__name__)

PREFIXES = {"regular": LIVE, "ema": EMA}


class BestModelCallback(Checkpoint):
    """Writes checkpoint_best_regular.pth and checkpoint_best_ema.pth when their mAP rises (of masks
    if there are any).

    At the end the better of both becomes checkpoint_best_total.pth, with `safetensors` also
    checkpoint_best_total.safetensors. The module gets its weights, and its figures on valid and,
    with `run_test`, on a test split of the dataset's own go to results.json and plots.
    """

    def __init__(
        self, output_dir: str | Path, run_test: bool = True, safetensors: bool = False
    ) -> None:
        self.output_dir = Path(output_dir)
        self.run_test = run_test
        self.safetensors = safetensors
        self.best: dict[
            str, dict[str, float]
        ] = {}  # "regular" and "ema": {"score": mAP, "epoch": counted from 0}
        self.results: dict[str, Metrics] = {}  # of the best weights, by split
        self._valid: dict[str, Metrics | None] = {}
        self._unsaved: dict[str, dict[str, Tensor]] = {}  # best weights that found no room yet
        self._ended = False

    def setup(self, _trainer: Any, _pl_module: Any, stage: str) -> None:
        if stage == "fit":  # each has a contest of its own, which a checkpoint restores
            self.best, self.results, self._valid, self._unsaved = {}, {}, {}, {}

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
            score = trainer.callback_metrics.get(PREFIXES[kind] + main_figure(pl_module))
            if (
                score is None
                or model is None
                or (kind in self.best and score <= self.best[kind]["score"])
            ):
                continue
            self.best[kind] = {"score": float(score), "epoch": trainer.current_epoch}
            self._valid[kind] = _last_metrics(trainer, PREFIXES[kind])
            state = whole_weights(trainer, pl_module) if kind == "regular" else model.state_dict()
            if trainer.is_global_zero:
                self._unsaved[kind] = state
        try:
            self._save_best(pl_module)
        except OSError as error:
            logger.error("%s; training goes on, and the next evaluation tries again", error)
            self._unsaved = {kind: _copied(state) for kind, state in self._unsaved.items()}

    def on_fit_start(self, *_: Any) -> None:
        self._ended = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        # Not on_fit_end: by then Lightning has taken the module off its device.
        if trainer.fast_dev_run:
            return
        self._ended = True
        self._save_best(pl_module)
        self._write_total(trainer, pl_module)
        best = (
            from_published(read_checkpoint(self.total_path).model)
            if trainer.is_global_zero
            else None
        )
        if best is not None and self.safetensors:
            _save(pl_module, self.total_path.with_suffix(".safetensors"), best)
        remove_adapters(pl_module.detector)
        load_whole_weights(trainer, pl_module, best)
        self._report(trainer, pl_module)
        pl_module.evaluation_loss.reset()  # what a later trainer.validate() adds is a mean of its own

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if (
            not self._ended and trainer.global_step > 0
        ):  # resumed with nothing left to train: Lightning skips its end
            pl_module.to(trainer.strategy.root_device)
            self.on_train_end(trainer, pl_module)
            pl_module.cpu()

    def on_exception(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.best and not self._unsaved and not trainer.fast_dev_run:
            self._write_total(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "files": {kind: recorded_digests(self._path(kind)) for kind in self.best},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best scores whose files are there as they were; for others the contest
        begins anew.

        A file's own digest decides, so that a lost or damaged checksums.json loses no best weights.
        """
        for kind, entry in state_dict["best"].items():
            path, noted = self._path(kind), state_dict.get("files", {}).get(kind)
            if path.exists() and (not noted or digest_of(path) in noted):
                self.best[kind] = entry
            elif path.exists():
                logger.warning(
                    "%s is not as the checkpoint knows it: the next best weights replace it", path
                )

    def _path(self, kind: str) -> Path:
        return self.output_dir / f"checkpoint_best_{kind}.pth"

    def _save_best(self, module: RFDETRModule) -> None:
        for kind, state in list(self._unsaved.items()):
            _save(module, self._path(kind), state)
            del self._unsaved[kind]

    def _write_total(self, trainer: Any, module: RFDETRModule) -> None:
        if self.best_kind:
            if trainer.is_global_zero:
                link_checkpoint(self._path(self.best_kind), self.total_path)
            return
        average = averaged_model(trainer)
        state = average.state_dict() if average else whole_weights(trainer, module)
        if trainer.is_global_zero:
            logger.warning(
                "no validation pass ended with a mAP: %s holds the last weights", self.total_path
            )
            _save(module, self.total_path, state)

    def _report(self, trainer: Any, module: RFDETRModule) -> None:
        """Figures of the best weights: those seen when they were written, measured again only in a
        resumed run.
        """
        datamodule = trainer.datamodule
        if not isinstance(datamodule, RFDETRDataModule):
            return
        if self.best_kind:
            valid = self._valid.get(self.best_kind)
            self.results["valid"] = (
                valid or evaluate_loader(trainer, module, datamodule.val_dataloader())[0]
            )
        if self.run_test and datamodule.has_test:
            self._test(trainer, module, datamodule.test_dataloader())
        if self.results and trainer.is_global_zero:
            from rfdetr.evaluation.plots import plot_metrics

            write_results(self.output_dir / "results.json", self.results, self.total_path.name)
            split, shown = list(self.results.items())[-1]  # test, if there is one
            chosen = self.results.get("valid") if split == "test" else None
            plot_metrics(shown, self.output_dir, split, chosen)

    def _test(self, trainer: Any, module: RFDETRModule, loader: Iterable[Any]) -> None:
        """Figures on the test split under the names of validation: of the best weights, and of the
        best averaged ones.

        One pass serves both, and where the averaged weights are the best, one set of weights is
        measured.
        """
        average: Any = averaged_model(trainer)
        if average is not None and "ema" in self.best:
            best = (
                from_published(read_checkpoint(self._path("ema")).model)
                if trainer.is_global_zero
                else None
            )
            remove_adapters(average)  # files hold merged weights
            average.load_state_dict(trainer.strategy.broadcast(best))
        other = None if self.best_kind == "ema" else average
        metrics = evaluate_loader(trainer, module, loader, other)
        self.results["test"] = metrics[0]
        figures = metrics[0].logged(TEST, module.train_config.log_per_class_metrics)
        if average is not None:
            figures |= metrics[-1].logged(TEST_EMA, per_class=False)
        if module.train_config.compute_val_loss:
            figures["test/loss"] = float(module.evaluation_loss.compute())
        for run_logger in trainer.loggers:
            run_logger.log_metrics(figures, step=trainer.global_step)


def _save(module: RFDETRModule, path: Path, state: dict[str, Tensor]) -> None:
    save = save_safetensors if path.suffix == ".safetensors" else save_checkpoint
    save(path, state, module.model_config, module.class_names, data=module.data_record)


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def _last_metrics(trainer: Any, prefix: str) -> Metrics | None:
    evaluations = [
        callback for callback in trainer.callbacks if isinstance(callback, COCOEvalCallback)
    ]
    return evaluations[0].metrics.get(prefix) if evaluations else None
