"""`build_trainer`: a Lightning Trainer with our precision, loggers, callbacks and file access."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import seed_everything as seed_everything
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm, convert_inf
from pytorch_lightning.plugins.io import CheckpointIO

from rfdetr.checks import check_kind
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.console import lines_shown
from rfdetr.errors import InputError
from rfdetr.training import callbacks as own
from rfdetr.training.adapters import remove_adapters
from rfdetr.training.batch_size import AutoBatchSizeCallback
from rfdetr.training.callbacks.limits import explained_memory
from rfdetr.training.checkpoints import AtomicCheckpointIO, checkpoint_to_resume
from rfdetr.training.compiled import check_compiler
from rfdetr.training.lightning_state import epochs_in, find_callback
from rfdetr.training.loggers import build_loggers, tolerate_logger_failures
from rfdetr.training.memory import freed_memory_kept
from rfdetr.training.module import RFDETRModule
from rfdetr.training.processes import is_sharded, process_settings
from rfdetr.training.run_folder import RunFolder
from rfdetr.training.steps import resolve_precision
from rfdetr.weights.names import from_published
from rfdetr.weights.reading import load_content, read_checkpoint

logger = logging.getLogger(__name__)


def build_trainer(
    train_config: TrainConfig, model_config: ModelConfig, **trainer_kwargs: Any
) -> pl.Trainer:
    """A Trainer wired from the configurations; `trainer_kwargs`, those of
    `pytorch_lightning.Trainer`, win over them.

    `callbacks=` replaces the whole default list; to add some, extend `trainer.callbacks` of the
    result. One device unless `devices=` says otherwise. Without a sharded strategy, the weights are
    averaged where `use_ema` asks for it.
    """
    check_kind("train_config", train_config, TrainConfig)
    check_kind("model_config", model_config, ModelConfig)
    config = train_config
    sharded = is_sharded(trainer_kwargs.get("strategy", "auto"))
    if "callbacks" in trainer_kwargs:
        callbacks = _as_list(trainer_kwargs["callbacks"])
        for callback in callbacks:
            check_kind("callbacks", callback, pl.Callback)
    else:
        if sharded and config.use_ema:
            text = "sharded strategies cannot average weights: EMA is off for this run"
            warnings.warn(text, UserWarning, stacklevel=2)
        keeps_files = trainer_kwargs.get("enable_checkpointing") is not False
        callbacks = build_callbacks(config, config.use_ema and not sharded, keeps_files)
    accelerator = trainer_kwargs.get("accelerator", config.accelerator)
    settings: dict[str, Any] = {
        "max_epochs": config.epochs,
        "accumulate_grad_batches": config.grad_accum_steps,
        "gradient_clip_val": config.clip_max_norm or None,
        "check_val_every_n_epoch": min(config.eval_interval, config.epochs),
        "precision": resolve_precision(model_config.amp, accelerator),
        "accelerator": accelerator,
        "devices": 1,
        "sync_batchnorm": config.sync_bn,
        "logger": build_loggers(config),
        "default_root_dir": config.output_dir,
        "enable_progress_bar": bool(config.progress_bar) and is_interactive(),
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # ours know their rank
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **trainer_kwargs,
    }
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if settings["enable_progress_bar"] and not has_bar:
        bar = RichProgressBar() if config.progress_bar == "rich" else EpochProgressBar()
        callbacks = [*callbacks, bar]
    plugins = _as_list(settings.get("plugins"))
    whole_files = not sharded or trainer_kwargs["strategy"] == "fsdp"
    if whole_files and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins = [*plugins, AtomicCheckpointIO()]
    settings |= {"callbacks": callbacks, "plugins": plugins, **process_settings(settings)}
    try:
        with quiet_lightning():
            trainer = _Trainer(**settings)
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        # Lightning's, which no caller knows.
        chosen = {name: settings[name] for name in ("accelerator", "devices")}
        raise InputError(f"no Trainer has these settings ({chosen}): {error}") from error
    if config.compile:
        check_compiler(trainer.strategy.root_device.type)
    return trainer


def _as_list(given: Any) -> list[Any]:
    """What Lightning takes as a list, one by itself or None, as a list."""
    return given if isinstance(given, list) else [given] if given else []


def build_callbacks(config: TrainConfig, use_ema: bool, keeps_files: bool) -> list[pl.Callback]:
    """The default callbacks, in the order in which they act on an epoch's end."""
    c, folder = config, config.output_dir
    chosen = [
        own.NonFiniteCallback(folder),
        own.UndecodableCallback(),
        own.MemoryCallback(),
        use_ema and own.RFDETREMACallback(c.ema_decay, c.ema_tau, c.ema_update_interval),
        c.drop_path > 0 and own.DropPathCallback(c.drop_path),
        own.COCOEvalCallback(c.eval_max_dets, c.log_per_class_metrics),
        own.PredictionImagesCallback(),
        c.early_stopping
        and own.RFDETREarlyStopping(
            c.early_stopping_patience, c.early_stopping_min_delta, c.early_stopping_use_ema
        ),
        own.RunFilesCallback(folder, c.overwrite),
        own.DataViewsCallback(folder),
        own.TimeLimitCallback(folder, c.minutes) if c.minutes else own.PaceCallback(folder),
        c.save_dataset_grids and own.DatasetGridsCallback(folder),
        keeps_files
        and own.ResumeCallback(
            folder, c.checkpoint_interval, c.checkpoint_every_n_steps, c.checkpoint_every_minutes
        ),
        keeps_files
        and own.BestModelCallback(folder, c.run_test, c.save_safetensors, c.average_best),
        c.batch_size == "auto" and AutoBatchSizeCallback(),  # last: what others hold counts
    ]
    return [callback for callback in chosen if isinstance(callback, pl.Callback)]


def is_interactive() -> bool:
    """Whether somebody watches: a terminal or a notebook, not a log file."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ctrl-C in a script: caught as `KeyboardInterrupt`, without a traceback where it is not."""


class _Trainer(pl.Trainer):
    def fit(
        self, model: pl.LightningModule, *args: Any, ckpt_path: Any = None, **kwargs: Any
    ) -> None:
        """Lightning's; "last" is last.ckpt of the output directory, and an interrupt is a
        `KeyboardInterrupt` again.

        A run that has ended is left alone: the module gets its best weights.
        """
        folder = RunFolder(self.default_root_dir)
        if ckpt_path is not None and ckpt_path not in ("best", "hpc"):
            ckpt_path = checkpoint_to_resume(ckpt_path, folder.path)
            ended = nothing_left(ckpt_path, folder, self) if ckpt_path else ""
            if ended and isinstance(model, RFDETRModule):
                remove_adapters(model.detector)
                best = read_checkpoint(folder.best("total"))
                with suppress(RuntimeError):  # another network: resuming says in what it differs
                    model.detector.load_state_dict(from_published(best.model))
                    if self.is_global_zero:
                        with lines_shown():
                            logger.warning("%s", ended)
                    return
        try:
            with self._running():
                super().fit(model, *args, **{**kwargs, "ckpt_path": ckpt_path})
        except (Exception, SystemExit) as error:
            # Lightning's clean-up may fail when a signal ends the run in its midst.
            stop: BaseException | None = error
            while stop is not None and not isinstance(stop, SystemExit):
                stop = stop.__context__
            if stop is None:
                raise
            code = 128 + signal.SIGINT
            if isinstance(stop.__context__, KeyboardInterrupt) or stop.code == code:
                interactive = hasattr(sys, "ps1")
                raise (KeyboardInterrupt() if interactive else Interrupted(code)) from None
            raise stop from None
        finally:
            if run_files := find_callback(self, own.RunFilesCallback):
                run_files.teardown()

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        with self._running():
            return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        with self._running():
            return super().test(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self._running():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """What surrounds whatever the trainer runs: no frames between it and a training step."""
        tolerate_logger_failures(self.loggers)
        with lines_shown(), quiet_lightning(), explained_memory(self), freed_memory_kept():
            yield


def nothing_left(path: Path, folder: RunFolder, trainer: pl.Trainer) -> str:
    """Why the run of a checkpoint has ended, so that nothing is left to train; "": it has not."""
    ended = folder.results.exists() and folder.best("total").exists()
    if not ended or folder.lock.path.exists() or path.resolve().parent != folder.path.resolve():
        return ""
    if path.stat().st_mtime_ns > folder.results.stat().st_mtime_ns:
        return ""
    content = load_content(path)
    epochs = epochs_in(content, "completed") if isinstance(content, dict) else None
    if epochs is None or "seed" not in content:
        return ""
    waited = content["callbacks"].get("RFDETREarlyStopping", {}).get("waited", 0)
    stopping = find_callback(trainer, own.RFDETREarlyStopping)
    timed, time = content["callbacks"].get("TimeLimitCallback", {}), None
    if timed.get("over"):
        time = find_callback(trainer, own.TimeLimitCallback)
    most_epochs, most_steps, steps = trainer.max_epochs, trainer.max_steps, content["global_step"]
    if most_epochs is not None and 0 <= most_epochs <= epochs:
        reason = f"it has had {epochs} epochs, and epochs is {most_epochs}: raise epochs"
    elif 0 <= most_steps <= steps:
        reason = f"it has had {steps} steps, and max_steps is {most_steps}: raise max_steps"
    elif stopping and waited >= stopping.patience:
        reason = f"early stopping ended it after {epochs} epochs: raise early_stopping_patience"
    elif time and time.minutes <= timed["minutes"]:
        reason = f"its {time.minutes:g} min were over after {epochs} epochs: raise minutes"
    else:
        return ""
    return f"nothing is left to train of {path}; {reason} to go on"


class EpochProgressBar(TQDMProgressBar):
    """Lightning's bar as wide as the terminal, epochs counted from 1:
    `epoch 3/50: 45%|███   | 9/20 [00:12<00:15]`.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    @property
    def train_description(self) -> str:
        epochs = self.trainer.max_epochs or 0
        return f"epoch {self.trainer.current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")

    def on_train_start(self, *_: Any) -> None:
        self.train_progress_bar = Tqdm(disable=True)  # none before the first epoch

    def on_train_epoch_start(self, *_: Any) -> None:
        self.train_progress_bar = self.init_train_tqdm()
        self.train_progress_bar.leave = False
        self.train_progress_bar.reset(convert_inf(self.total_train_batches))

    def on_train_epoch_end(self, *_: Any) -> None:
        self.train_progress_bar.close()

    def on_exception(self, *_: Any) -> None:
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()  # so that what is told next has a line of its own

    def get_metrics(self, trainer: pl.Trainer, _: pl.LightningModule) -> dict[str, Any]:
        """The loss and users' own `prog_bar=True`; validation's figures are in the epoch's line."""
        shown = trainer.progress_bar_metrics.items()
        kept = {name: value for name, value in shown if not name.startswith("val/")}
        return {n.removeprefix("train/").removesuffix("_step"): kept[n] for n in kept}


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Holds back what Lightning says of code that is as it should be, or what plan and summary say,
    and nothing else.
    """
    source = logging.getLogger("pytorch_lightning.utilities.rank_zero")

    said_better = "Tip:", " available: ", "Automatic Mixed Precision", "`Trainer.fit` stopped"

    def is_news(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in said_better)

    source.addFilter(is_news)
    try:
        with warnings.catch_warnings():
            for message in (
                "You have overridden `transfer_batch_to_device`",
                r"`isinstance\(treespec, LeafSpec\)`",
                # The same on all ranks already:
                r"It is recommended to use `self.log\('(train/lr|val/|test/)",
                # A first step that float16's scaler skips is a step of the schedule too:
                r"Detected call of `lr_scheduler.step\(\)` before",
                # The criterion copies it:
                "FSDP2-wrapped module .* returned a view tensor",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        source.removeFilter(is_news)
