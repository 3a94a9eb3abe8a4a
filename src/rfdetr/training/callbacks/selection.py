"""Which weights a run leaves, the best of each kind and of all, and when it has seen enough."""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from rfdetr.evaluation.metrics import Metrics, write_results
from rfdetr.files import digest_of, link_checkpoint, record_digests, recorded_digests
from rfdetr.training.adapters import remove_adapters
from rfdetr.training.best_few import BestFew
from rfdetr.training.callbacks import validation
from rfdetr.training.callbacks.averaging import averaged_model
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.facts import facts_of
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.module import RFDETRModule
from rfdetr.training.processes import load_whole_weights, whole_weights
from rfdetr.training.run_folder import RunFolder, saves
from rfdetr.weights.names import from_published
from rfdetr.weights.reading import read_checkpoint
from rfdetr.weights.writing import save_checkpoint, save_safetensors

logger = logging.getLogger(__name__)


class BestModelCallback(Checkpoint):
    """Writes checkpoint_best_regular.pth and checkpoint_best_ema.pth when their score rises: mAP
    (of masks if there are any), or as `best_model_metric`, `smooth_alpha`, `skip_best_epochs` say.

    At the end the better of both becomes checkpoint_best_total.pth, with `safetensors` also
    checkpoint_best_total.safetensors. The module gets its weights, and its figures on valid and,
    with `run_test`, on a test split of the dataset's own go to results.json and plots.

    With `average_best`, the weights of so many best evaluations are kept too: the averaged ones, if
    there are any. Their mean is evaluated at the end, and is the best of all if it is no worse.
    """

    def __init__(
        self,
        output_dir: str | Path,
        run_test: bool = True,
        safetensors: bool = False,
        average_best: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.average_best = average_best
        self.run_test, self.safetensors = run_test, safetensors
        self._folder = RunFolder(output_dir)
        self.total_path = self._folder.best("total")
        self._start_anew()

    def _start_anew(self) -> None:
        self.best: dict[str, dict[str, float]] = {}
        """Of "regular" and "ema" weights: {"score": figure, "epoch": counted from 0}."""
        self._smoothed: dict[str, float] = {}  # the score of each kind, over all evaluations
        self.results: dict[str, Metrics] = {}
        """Figures of the best weights, by split."""
        self._valid: dict[str, Metrics | None] = {}
        self._unsaved: dict[str, dict[str, Tensor]] = {}  # best weights that are not in files yet
        few = self.average_best
        self.best_few = BestFew(self._folder, few) if few else None
        self.mean_figures: tuple[float, float] | None = None
        """Of the mean of the best few weights on valid, and of the best single ones."""
        self._ended = False

    def setup(self, _: Trainer, __: Any, stage: str) -> None:
        if stage == "fit":  # a checkpoint that is resumed is read later
            self._start_anew()

    @property
    def best_model_path(self) -> str:
        """What Lightning loads for `ckpt_path="best"`."""
        return str(self._folder.best(kind)) if (kind := self.best_kind) else ""

    @property
    def best_kind(self) -> str | None:
        """The weights with the higher score, "regular" or "ema", or at the end "mean", where
        that is no worse; None before one was chosen.
        """
        if "mean" in self.best:
            return "mean"
        return max(self.best, key=lambda kind: self.best[kind]["score"], default=None)

    def on_validation_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        if not validation.in_training(trainer) or not saves(trainer):
            return
        if self.best_few and trainer.is_global_zero:
            self.best_few.remove_others()
        alpha = module.train_config.smooth_alpha
        skips = trainer.current_epoch < module.train_config.skip_best_epochs
        models = {"regular": module.model, "ema": averaged_model(trainer)}
        prefixes = (validation.LIVE, validation.EMA)
        for prefix, (kind, model) in zip(prefixes, models.items(), strict=True):
            found = trainer.callback_metrics.get(prefix + validation.main_figure(module))
            if found is None or model is None:
                continue
            now = float(found)
            score = alpha * self._smoothed.get(kind, now) + (1 - alpha) * now
            self._smoothed[kind] = score
            names = [] if skips else self._names_for(kind, score, trainer)
            if not names:
                continue
            if kind in names:
                judge = find_callback(trainer, validation.COCOEvalCallback)
                self._valid[kind] = judge.metrics.get(prefix) if judge else None
            state = whole_weights(trainer, module) if kind == "regular" else model.state_dict()
            if trainer.is_global_zero:
                self._unsaved |= dict.fromkeys(names, state)
        try:
            self._save_best(module)
        except OSError as error:
            logger.error("%s; training goes on, and the next evaluation tries again", error)
            for state in self._unsaved.values():  # as it is now, not as training goes on
                state.update({name: tensor.to("cpu", copy=True) for name, tensor in state.items()})

    def _names_for(self, kind: str, score: float, trainer: Trainer) -> list[str]:
        """Under which names the present weights of a kind are kept: as its best, among the few."""
        entry, names = {"score": score, "epoch": trainer.current_epoch}, []
        if kind not in self.best or score > self.best[kind]["score"]:
            self.best[kind] = entry
            names.append(kind)
        averaged = "regular" if averaged_model(trainer) is None else "ema"
        if self.best_few and kind == averaged:
            name = self.best_few.offer(trainer.global_step, entry)
            names += [name] if name else []
            kept = {*self.best, *self.best_few.members}
            self._unsaved = {n: state for n, state in self._unsaved.items() if n in kept}
        return names

    def on_train_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        # Not on_fit_end: by then Lightning has taken the module off its device.
        if not saves(trainer):
            return
        self._ended = True
        self._save_best(module)
        self._write_total(trainer, module)
        self._judge_mean(trainer, module)
        best = self._load("total") if trainer.is_global_zero else None
        if best and self.safetensors:
            _save(module, self.total_path.with_suffix(".safetensors"), best)
        remove_adapters(module.detector)
        load_whole_weights(trainer, module, best)
        self._report(trainer, module)
        module.evaluation_loss.reset()  # a later trainer.validate() adds to a mean of its own

    def on_fit_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        if not self._ended and trainer.global_step > 0:
            # Resumed with nothing left to train: Lightning skips the end of training.
            module.to(trainer.strategy.root_device)
            self.on_train_end(trainer, module)
            module.cpu()

    def on_exception(self, trainer: Trainer, module: RFDETRModule, *_: Any) -> None:
        if self.best and not self._unsaved and saves(trainer):
            self._write_total(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        digests = {kind: recorded_digests(self._folder.best(kind)) for kind in self.best}
        state = {"best": self.best, "files": digests, "smoothed": self._smoothed}
        return state | ({"few": self.best_few.state_dict()} if self.best_few else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best scores whose files are in this folder, as the checkpoint knew them.

        A file may be missing (a run that goes on in another folder) or hold later weights (one that
        goes on from an earlier checkpoint); then the next evaluation writes its weights, whatever
        their score. The file's own digest decides, as checksums.json may be lost.
        """
        self._smoothed = dict(state_dict.get("smoothed", {}))
        if self.best_few:
            self.best_few.load_state_dict(state_dict.get("few", {}))
        for kind, entry in state_dict["best"].items():
            path, noted = self._folder.best(kind), state_dict.get("files", {}).get(kind)
            if path.exists() and noted and digest_of(path) not in noted:
                told = "%s is not as the checkpoint knows it: the next best weights replace it"
                logger.warning(told, path)
            elif path.exists():
                self.best[kind] = entry

    def _load(self, kind: str) -> dict[str, Tensor]:
        return from_published(read_checkpoint(self._folder.best(kind)).model)

    def _save_best(self, module: RFDETRModule) -> None:
        """Writes the best weights that are not in files yet; `OSError` where there is no room."""
        for kind in list(self._unsaved):
            _save(module, self._folder.best(kind), self._unsaved[kind])
            del self._unsaved[kind]

    def _write_total(self, trainer: Trainer, module: RFDETRModule) -> None:
        """Gives the better file the second name of the best weights of all, or writes the last."""
        if self.best_kind:
            if trainer.is_global_zero:
                link_checkpoint(self._folder.best(self.best_kind), self.total_path)
            return
        average = averaged_model(trainer)
        state = average.state_dict() if average else whole_weights(trainer, module)
        if trainer.is_global_zero:
            told = "no validation pass has chosen weights: %s holds the last ones"
            logger.warning(told, self.total_path)
            _save(module, self.total_path, state)

    def _judge_mean(self, trainer: Trainer, module: RFDETRModule) -> None:
        """Makes the mean of the best few weights the best of all, if valid says it is no worse."""
        few, data, kind = self.best_few, trainer.datamodule, self.best_kind  # type: ignore[attr-defined]
        if not (few and kind and isinstance(data, RFDETRDataModule)):
            return
        if len(few.members) < 2:
            told = (
                "average_best=%d: fewer than two evaluations have chosen weights; no mean is made"
            )
            logger.warning(told, few.most)
            return
        remove_adapters(module.detector)

        def judged(weights: dict[str, Tensor] | None) -> Metrics:
            load_whole_weights(trainer, module, weights)
            loader = data.evaluation_loader("valid")
            return validation.evaluate_loader(trainer, module, loader)[0]

        if (single := self._valid.get(kind)) is None:  # of a run that was resumed
            best = self._load("total") if trainer.is_global_zero else None
            self._valid[kind] = single = judged(best)
        mean = few.mean() if trainer.is_global_zero else None
        found, name = judged(mean), validation.main_figure(module)
        figures = [of.logged("", per_class=False)[name] for of in (found, single)]
        self.mean_figures = figures[0], figures[1]
        path = self._folder.best("mean")
        if figures[0] < figures[1]:
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)  # of an earlier end of this run
                record_digests(path, [])
            return
        last = max(entry["epoch"] for entry in few.members.values())
        self.best["mean"], self._valid["mean"] = {"score": figures[0], "epoch": last}, found
        if mean is not None:
            _save(module, path, mean)
            link_checkpoint(path, self.total_path)

    def _report(self, trainer: Trainer, module: RFDETRModule) -> None:
        """Writes the figures of the best weights, as seen when they were; a resumed run's anew."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, RFDETRDataModule):
            return
        if self.best_kind:
            valid = self._valid.get(self.best_kind)
            if valid is None:
                loader = datamodule.evaluation_loader("valid")
                valid = validation.evaluate_loader(trainer, module, loader)[0]
            self.results["valid"] = valid
        if self.run_test and datamodule.has_test:
            self._test(trainer, module, datamodule.test_dataloader())
        if self.results and trainer.is_global_zero:
            from rfdetr.evaluation.plots import plot_metrics

            write_results(self._folder.results, self.results, self.total_path.name)
            split, shown = list(self.results.items())[-1]  # test, if there is one
            chosen = self.results.get("valid") if split == "test" else None
            plot_metrics(shown, self.output_dir, split, chosen)
            self._write_report(module, datamodule)

    def _write_report(self, module: RFDETRModule, datamodule: RFDETRDataModule) -> None:
        """Writes report.html, which is no reason to lose a run: what fails there is a warning."""
        try:
            from rfdetr.report.write import write_report

            names = tuple(validation.class_names(module))
            indexes = {
                split: replace(datamodule.index(split), class_names=names)
                for split in ("train", *self.results)
            }
            kind = self.best_kind
            best = {"kind": kind, **self.best[kind]} if kind else None
            write_report(self.output_dir, self.results, indexes, facts_of(self._folder, best))
        except Exception as error:  # weights and figures are written already
            logger.warning("report.html could not be written: %r", error, exc_info=True)

    def _test(self, trainer: Trainer, module: RFDETRModule, loader: Any) -> None:
        """Logs test/* of the best weights and test/ema_* of the best averaged ones, in one pass.

        Where the averaged weights are the best, one set of weights is measured.
        """
        average: Any = averaged_model(trainer)
        if average is not None and "ema" in self.best:
            best = self._load("ema") if trainer.is_global_zero else None
            remove_adapters(average)  # files hold merged weights
            average.load_state_dict(trainer.strategy.broadcast(best))
        other = None if self.best_kind == "ema" else average
        metrics = validation.evaluate_loader(trainer, module, loader, other)
        self.results["test"] = metrics[0]
        figures = metrics[0].logged(validation.TEST, module.train_config.log_per_class_metrics)
        if average is not None:
            figures |= metrics[-1].logged(validation.TEST_EMA, per_class=False)
        if module.judges_loss:
            figures["test/loss"] = float(module.evaluation_loss.compute())
        for run_logger in trainer.loggers:
            run_logger.log_metrics(figures, step=trainer.global_step)


class RFDETREarlyStopping(Callback):
    """Ends training after `patience` evaluations in a row whose mAP (of masks if there are any), or
    mAR with `best_model_metric`, rose by less than `min_delta`; those that `skip_best_epochs` names
    do not count.

    Watches the better of live and averaged weights, or the averaged ones alone (`use_ema`).
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.001, use_ema: bool = False) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.prefixes = (validation.EMA,) if use_ema else (validation.LIVE, validation.EMA)
        self.best, self.waited = -math.inf, 0

    def setup(self, _: Trainer, __: Any, stage: str) -> None:
        if stage == "fit":
            self.best, self.waited = -math.inf, 0

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        if self.waited >= self.patience:  # resumed after its end
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, module: RFDETRModule) -> None:
        found, figure = trainer.callback_metrics, validation.main_figure(module)
        scores = [float(found[name + figure]) for name in self.prefixes if name + figure in found]
        skips = trainer.current_epoch < module.train_config.skip_best_epochs
        if not validation.in_training(trainer) or not scores or skips:
            return
        if max(scores) > self.best + self.min_delta:
            self.best, self.waited = max(scores), 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True
            told = "stopping early: in %d evaluations %s has not risen by more than %g above %.4f"
            figure = "mAR" if figure == "mAR" else "mAP"
            logger.info(told, self.waited, figure, self.min_delta, self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def _save(module: RFDETRModule, path: Path, state: dict[str, Tensor]) -> None:
    save = save_safetensors if path.suffix == ".safetensors" else save_checkpoint
    save(path, state, module.model_config, module.class_names, data=module.data_record)
