"""`build_trainer`: a Lightning Trainer with our precision, loggers, callbacks and file access."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.plugins.io import CheckpointIO

from rfdetr.checks import check_kind
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.console import lines_shown
from rfdetr.errors import InputError
from rfdetr.training.adapters import remove_adapters
from rfdetr.training.batch_size import AutoBatchSizeCallback
from rfdetr.training.callbacks import (
    BestModelCallback,
    COCOEvalCallback,
    DropPathCallback,
    MemoryCallback,
    NonFiniteCallback,
    PredictionImagesCallback,
    ResumeCallback,
    RFDETREarlyStopping,
    RFDETREMACallback,
    RunFilesCallback,
    UndecodableCallback,
)
from rfdetr.training.callbacks.limits import explained_memory
from rfdetr.training.checkpoints import AtomicCheckpointIO, checkpoint_to_resume
from rfdetr.training.lightning_state import epochs_in
from rfdetr.training.loggers import build_loggers, tolerate_logger_failures
from rfdetr.training.memory import freed_memory_kept
from rfdetr.training.module import RFDETRModule
from rfdetr.training.processes import is_sharded, process_settings
from rfdetr.training.progress import with_progress_bar
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
    given = trainer_kwargs.get("callbacks") or []
    for callback in given if isinstance(given, list) else [given]:
        check_kind("callbacks", callback, pl.Callback)
    config, replaced = train_config, "callbacks" in trainer_kwargs
    accelerator = trainer_kwargs.get("accelerator", config.accelerator)
    sharded = is_sharded(trainer_kwargs.get("strategy", "auto"))
    if sharded and config.use_ema and not replaced:
        text = "sharded strategies cannot average weights: EMA is off for this run"
        warnings.warn(text, UserWarning, stacklevel=2)
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
        "callbacks": build_callbacks(config, use_ema=config.use_ema and not sharded),
        "default_root_dir": config.output_dir,
        "enable_progress_bar": config.progress_bar and is_interactive(),
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # ours know their rank
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **trainer_kwargs,
    }
    plugins = settings.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    whole_files = not sharded or trainer_kwargs["strategy"] == "fsdp"
    if whole_files and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins = [*plugins, AtomicCheckpointIO()]
    settings.update(plugins=plugins, **process_settings(settings))
    if settings["enable_progress_bar"]:
        settings["callbacks"] = with_progress_bar(settings["callbacks"])
    if settings.get("enable_checkpointing") is False and not replaced:
        files = (BestModelCallback, ResumeCallback)
        settings["callbacks"] = [c for c in settings["callbacks"] if not isinstance(c, files)]
    try:
        with quiet_lightning():
            return _Trainer(**settings)
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        # Lightning's, which no caller knows.
        chosen = {name: settings[name] for name in ("accelerator", "devices") if name in settings}
        raise InputError(f"no Trainer has these settings ({chosen}): {error}") from error


def build_callbacks(config: TrainConfig, use_ema: bool) -> list[pl.Callback]:
    """The default callbacks, in the order in which they act on an epoch's end."""
    callbacks: list[pl.Callback] = [NonFiniteCallback(config.output_dir)]
    callbacks += [UndecodableCallback(), MemoryCallback()]
    if use_ema:
        callbacks.append(RFDETREMACallback(config.ema_decay, config.ema_tau))
    if config.drop_path > 0:
        callbacks.append(DropPathCallback(config.drop_path))
    callbacks.append(COCOEvalCallback(config.eval_max_dets, config.log_per_class_metrics))
    callbacks.append(PredictionImagesCallback())
    if config.early_stopping:
        callbacks.append(
            RFDETREarlyStopping(
                config.early_stopping_patience,
                config.early_stopping_min_delta,
                config.early_stopping_use_ema,
            )
        )
    callbacks.append(RunFilesCallback(config.output_dir, config.overwrite))
    callbacks.append(
        ResumeCallback(
            config.output_dir,
            config.checkpoint_interval,
            config.checkpoint_every_n_steps,
            config.checkpoint_every_minutes,
        )
    )
    callbacks.append(BestModelCallback(config.output_dir, config.run_test, config.save_safetensors))
    if config.batch_size == "auto":
        callbacks.append(AutoBatchSizeCallback())  # last: what others hold in memory counts
    return callbacks


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
        folder = Path(self.default_root_dir)
        if ckpt_path is not None and ckpt_path not in ("best", "hpc"):
            ckpt_path = checkpoint_to_resume(ckpt_path, folder)
            ended = nothing_left(ckpt_path, self) if ckpt_path else ""
            if ended and isinstance(model, RFDETRModule):
                if self.is_global_zero:
                    with lines_shown():
                        logger.warning("%s", ended)
                remove_adapters(model.detector)
                best = read_checkpoint(RunFolder(folder).best("total"))
                model.detector.load_state_dict(from_published(best.model))
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
            for callback in self.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunFilesCallback):
                    callback.teardown()

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


def nothing_left(path: Path, trainer: pl.Trainer) -> str:
    """Why the run of a checkpoint has ended, so that nothing is left to train; "": it has not."""
    folder = RunFolder(trainer.default_root_dir)
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
    most_epochs, most_steps, steps = trainer.max_epochs, trainer.max_steps, content["global_step"]
    if most_epochs is not None and 0 <= most_epochs <= epochs:
        reason = f"it has had {epochs} epochs, and epochs is {most_epochs}: raise epochs"
    elif 0 <= most_steps <= steps:
        reason = f"it has had {steps} steps, and max_steps is {most_steps}: raise max_steps"
    elif any(
        isinstance(callback, RFDETREarlyStopping) and waited >= callback.patience
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    ):
        reason = f"early stopping ended it after {epochs} epochs: raise early_stopping_patience"
    else:
        return ""
    return f"nothing is left to train of {path}; {reason} to go on"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Holds back what Lightning says of code that is as it should be, and nothing else."""
    source = logging.getLogger("pytorch_lightning.utilities.rank_zero")

    def is_no_tip(record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()

    source.addFilter(is_no_tip)
    try:
        with warnings.catch_warnings():
            for message in (
                "You have overridden `transfer_batch_to_device`",
                r"`isinstance\(treespec, LeafSpec\)`",
                # The same on all ranks already:
                r"It is recommended to use `self.log\('(train/lr|val/|test/)",
                # The criterion copies it:
                "FSDP2-wrapped module .* returned a view tensor",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        source.removeFilter(is_no_tip)
