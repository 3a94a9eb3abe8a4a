"""`build_trainer`: a Lightning Trainer with this project's precision, loggers, callbacks and file access."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.training.callbacks import (
    BestModelCallback,
    COCOEvalCallback,
    DropPathCallback,
    RFDETREarlyStopping,
    RFDETREMACallback,
    RunFilesCallback,
)
from rfdetr.training.checkpoints import AtomicCheckpointIO
from rfdetr.training.logs import RunCSVLogger
from rfdetr.training.precision import resolve_precision


def build_trainer(train_config: TrainConfig, model_config: ModelConfig, **trainer_kwargs: Any) -> pl.Trainer:
    """A Trainer wired from the configurations; `trainer_kwargs`, those of `pytorch_lightning.Trainer`, win over them.

    `callbacks=` replaces the whole default list; to add some, extend `trainer.callbacks` of the result. One device
    unless `devices=` says otherwise. Without a sharded strategy, the weights are averaged where `use_ema` asks for it.
    """
    config = train_config
    accelerator = trainer_kwargs.get("accelerator", config.accelerator)
    sharded = is_sharded(trainer_kwargs.get("strategy", "auto"))
    if sharded and config.use_ema and "callbacks" not in trainer_kwargs:
        warnings.warn("sharded strategies cannot average weights: EMA is off for this run", UserWarning, stacklevel=2)
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
        "plugins": None if sharded else [AtomicCheckpointIO()],
        "default_root_dir": config.output_dir,
        "enable_progress_bar": config.progress_bar and is_interactive(),
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # ours know their rank
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **trainer_kwargs,
    }
    if settings.get("enable_checkpointing") is False and "callbacks" not in trainer_kwargs:
        settings["callbacks"] = [c for c in settings["callbacks"] if not isinstance(c, BestModelCallback)]
    with without_noise():
        return _Trainer(**settings)


def build_callbacks(config: TrainConfig, use_ema: bool) -> list[pl.Callback]:
    """The default callbacks, in the order in which they act on an epoch's end."""
    callbacks: list[pl.Callback] = []
    if use_ema:
        callbacks.append(RFDETREMACallback(config.ema_decay, config.ema_tau))
    if config.drop_path > 0:
        callbacks.append(DropPathCallback(config.drop_path))
    callbacks.append(COCOEvalCallback(config.eval_max_dets, config.log_per_class_metrics))
    if config.early_stopping:
        callbacks.append(
            RFDETREarlyStopping(
                config.early_stopping_patience, config.early_stopping_min_delta, config.early_stopping_use_ema
            )
        )
    callbacks.append(RunFilesCallback(config.output_dir))
    callbacks.append(BestModelCallback(config.output_dir, config.checkpoint_interval, config.run_test))
    return callbacks


def build_loggers(config: TrainConfig) -> list[Logger]:
    """metrics.csv always, TensorBoard where asked for."""
    loggers: list[Logger] = [RunCSVLogger(config.output_dir)]
    if config.tensorboard:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(config.output_dir, name="tensorboard", version=""))
    return loggers


def is_sharded(strategy: Any) -> bool:
    """Whether a strategy, by name or as an object, splits the weights over devices."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    return any(kind in name.lower() for kind in ("fsdp", "deepspeed"))


def is_interactive() -> bool:
    """Whether somebody watches: a terminal or a notebook, not a log file."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


class _Trainer(pl.Trainer):
    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with without_noise():
            return super()._run(*args, **kwargs)


@contextmanager
def without_noise() -> Iterator[None]:
    """Holds back, for the length of a block, what Lightning says of code that is as it should be, and nothing else."""
    source = logging.getLogger("pytorch_lightning.utilities.rank_zero")

    def is_no_tip(record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()

    source.addFilter(is_no_tip)
    try:
        with warnings.catch_warnings():
            for message in ("You have overridden `transfer_batch_to_device`", r"`isinstance\(treespec, LeafSpec\)`"):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        source.removeFilter(is_no_tip)
